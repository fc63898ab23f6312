"""Images of a finished run as files that evaluators read: uint8 `arr_0` of .npz.

images/originals.npz holds the first `eval.images` held-out images, reconstructions.npz what the
tokenizer makes of them, samples.npz `eval.samples` samples of all classes in turn. They are made
batch by batch, each kept until the file is whole, by any number of processes: a run that was
stopped goes on where it was.
"""

import contextlib
import hashlib
import logging
import math
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable

import jax
import numpy as np

from nexttok import evaluate
from nexttok.config import check
from nexttok.distributed import alone, barrier
from nexttok.evals.results import write_arrays
from nexttok.progress import Progress
from nexttok.rng import stream

log = logging.getLogger("nexttok")
Batch = Callable[[int, slice], np.ndarray]  # (number, rows) -> float [n, H, W, C] in [-1, 1]


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8, to the nearest."""
    return np.uint8(np.clip(np.round(127.5 * images + 127.5), 0, 255))


def digest(models: evaluate.Models) -> str:
    """Of the config and the parameters."""
    total = 0
    for leaf in jax.tree.leaves(models.params):
        total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
    text = f"{models.experiment.config.to_json()} {total}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def makers(models: evaluate.Models) -> dict[str, tuple[int, Batch]]:
    """File name -> number of images, and how a batch of them is made."""
    exp = models.experiment
    size, key = exp.eval.batch_size, jax.random.key(exp.config.seed)
    test = evaluate.held_out(exp, exp.eval.images)
    full = models.lengths[-1]

    def fill(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])

    def reconstruct(number, rows):
        tokens = evaluate.array_of(models.encode(fill(test["image"][rows])))
        return models.decode(tokens, full, stream(key, "reconstructions", number))

    made = {
        "originals": (len(test["image"]), lambda number, rows: test["image"][rows]),
        "reconstructions": (len(test["image"]), reconstruct),
    }
    if exp.generator is None:
        return made
    labels = evaluate.balanced(exp.eval.samples, exp.data.num_classes)
    given = evaluate.openings(models, test, labels)

    def sample(number, rows):
        keys = (stream(key, name, number) for name in ("images", "decode"))
        tokens, _ = models.sample_from(fill(labels[rows]), fill(given[rows]), next(keys))
        return models.decode(tokens, tokens.shape[1], next(keys))

    return made | {"samples": (len(labels), sample)}


def write_images(models: evaluate.Models, workdir: str) -> list[pathlib.Path]:
    """Writes the files and returns their paths; batches of a run that was stopped are kept.

    Raises:
      ConfigError: the data are videos.
    """
    frames = models.experiment.data.frames
    check(not frames, "data.frames", frames, "0: metrics of images")
    folder = pathlib.Path(workdir) / "images"
    parts = folder / f"parts-{digest(models)}"
    size, paths = models.experiment.eval.batch_size, []
    for name, (count, make) in makers(models).items():
        batches = math.ceil(count / size)
        numbers = range(jax.process_index(), batches, jax.process_count())
        path = lambda number, name=name: parts / f"{name}-{number:06d}.npz"
        lacking = [n for n in numbers if not path(n).exists()]
        shown = jax.process_index() == 0 and bool(lacking)
        with (
            alone(),
            contextlib.closing(Progress(len(lacking), 0, name, size, shown=shown)) as progress,
        ):
            for step, number in enumerate(lacking, 1):
                rows = slice(number * size, min((number + 1) * size, count))
                images = to_bytes(np.asarray(make(number, rows)))[: rows.stop - rows.start]
                write_arrays(path(number), {"arr_0": images})
                progress.update(step, {})
        barrier(f"{name} are made")
        paths.append(folder / f"{name}.npz")
        if jax.process_index() == 0:
            join([path(n) for n in range(batches)], paths[-1])
    barrier("images are written")
    if jax.process_index() == 0:
        shutil.rmtree(parts)
    return paths


def join(parts: list[pathlib.Path], out: pathlib.Path) -> None:
    """Writes the arrays `arr_0` of files one after the other as that of one file, whole or not at
    all, never more than one of them in memory."""
    shapes = []
    for part in parts:
        with np.load(part) as arrays:
            shapes.append(arrays["arr_0"].shape)
    header = {
        "descr": "|u1", "fortran_order": False,
        "shape": (sum(s[0] for s in shapes), *shapes[0][1:]),
    }  # fmt: skip
    partial = out.with_name(f"{out.name}.partial")
    with (
        zipfile.ZipFile(partial, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            with np.load(part) as arrays:
                file.write(arrays["arr_0"].tobytes())
    partial.replace(out)
