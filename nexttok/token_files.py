"""Tokens of a whole data set on disk, written once and trained from ever after.

A folder holds ArrayRecord shards and manifest.json, which says of which data and which tokenizer
(its config and a hash of its parameters) they are. A record is the example's label (int32) and the
arrays of the manifest's `fields`, one after the other. Example i of pass p is the same whoever
writes it, so shards are written by any number of processes, and a run that was stopped goes on with
the shards that lack.
"""

import hashlib
import json
import logging
import math
import os
import pathlib
import reprlib
import time
from typing import Any

import grain.python as pygrain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from nexttok.config import check, read_json
from nexttok.data.loader import Batches, load_source
from nexttok.distributed import alone, barrier
from nexttok.evals.results import write_text
from nexttok.experiment import TRAINING_ONLY, Experiment
from nexttok.rng import stream

log = logging.getLogger(__name__)
SHARD, BATCH = 4096, 128  # examples of a file, and encoded at once: noise depends on the latter
EPOCHS = 1_000_000


def digest(params: Any) -> str:
    """SHA-256 of the names and values of the parameters that a tokenizer reads after training."""
    total, kept = hashlib.sha256(), {k: v for k, v in params.items() if k not in TRAINING_ONLY}
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def manifest(exp: Experiment, params: Any) -> dict:
    """What the files of a folder must be for this experiment, with these tokenizer parameters."""
    config = json.loads(exp.config.to_json())
    passes = max(1, exp.config.cached_passes)
    count = passes * len(load_source(exp.data, "train", exp.config.seed))
    # how the data is read has no influence on it
    data = {k: v for k, v in config["data"].items() if k not in ("workers", "prefetch", "root")}
    return {
        "format": 1,
        "data": data,
        "seed": exp.config.seed,
        "passes": passes,
        "examples": count,
        "shards": math.ceil(count / SHARD),
        "tokenizer": {
            "latent": config["latent"],
            "config": config["tokenizer"],
            "sha256": digest(params),
        },
        "fields": {name: {"shape": list(a.shape), "dtype": str(a.dtype)}
                   for name, a in fields(exp, params).items()},
    }  # fmt: skip


def fields(exp: Experiment, params: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays of one example's tokens that a generator reads; the parameters may be shapes."""
    x = jax.ShapeDtypeStruct((1, *exp.image_shape), np.float32)
    encode = lambda p, x: vars(exp.tokenizer.encode(p, x, None))
    made, spec = jax.eval_shape(encode, params, x), exp.tokenizer.spec
    needed = {"ids": spec.vocab > 0, "values": bool(spec.scales) or not spec.vocab}
    return {
        name: jax.ShapeDtypeStruct(made[name].shape[1:], made[name].dtype)
        for name, wanted in needed.items()
        if wanted
    }


def shard_path(folder: pathlib.Path, index: int, shards: int) -> pathlib.Path:
    """tokens-00003-of-00010.array_record"""
    return folder / f"tokens-{index:05d}-of-{shards:05d}.array_record"


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """Paths at which two manifests differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        inner = [differences(found.get(k), wanted.get(k), f"{where}.{k}") for k in keys]
        return [path for paths in inner for path in paths]
    return (
        [] if found == wanted else [f"{where.lstrip('.')} is {reprlib.repr(found)}, not {wanted!r}"]
    )


def check_manifest(folder: pathlib.Path, wanted: dict) -> None:
    """Raises ConfigError unless the folder's manifest is the wanted one, naming what differs."""
    found = read_json(
        folder / "manifest.json", "token_dataset", "a folder that --mode=tokenize wrote"
    )
    wrong = differences(found, wanted)
    check(not wrong, "token_dataset", str(folder),
          f"tokens of this config and tokenizer; {'; '.join(wrong[:4])}")  # fmt: skip


def tokenize(exp: Experiment, params: Any, folder: str | os.PathLike) -> None:
    """Writes the shards that a folder lacks; each is there whole or not at all.

    Args:
      exp: its data, tokenizer, `cached_passes` (at least one is written) and seed count.
      params: of the tokenizer, frozen parts included.
      folder: may hold a part of the same tokens.

    Raises:
      ConfigError: the folder holds tokens of another config or tokenizer.
    """
    folder, wanted = pathlib.Path(folder), manifest(exp, params)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "manifest.json").exists():
        check_manifest(folder, wanted)
    elif jax.process_index() == 0:
        write_text(folder / "manifest.json", json.dumps(wanted, indent=2, sort_keys=True) + "\n")
    mine = range(wanted["shards"])[jax.process_index() :: jax.process_count()]
    lacking = [i for i in mine if not shard_path(folder, i, wanted["shards"]).exists()]
    encode = jax.jit(lambda p, x, k: exp.tokenizer.encode(p, x, k))
    begun, done = time.monotonic(), 0
    for index in lacking:
        first = index * SHARD
        last = min(first + SHARD, wanted["examples"])
        _write_shard(exp, params, encode, shard_path(folder, index, wanted["shards"]),
                     range(first, last), wanted["fields"])  # fmt: skip
        done += last - first
        rate = done / (time.monotonic() - begun)
        left = sum(min(SHARD, wanted["examples"] - i * SHARD) for i in lacking) - done
        log.info("tokens %d/%d  %.0f examples/s  %d:%02d left", done, done + left, rate,
                 *divmod(int(left / rate), 60))  # fmt: skip


def _examples(exp, numbers):
    """Augmented training examples by number; number = pass x data set + index."""
    source = load_source(exp.data, "train", exp.config.seed)
    for number in numbers:
        rng = np.random.default_rng((exp.config.seed, 2, number))
        yield source.augmented(number % len(source), rng)


def _write_shard(exp, params, encode, path, numbers, fields):
    """Encodes batch by batch, the last one padded."""
    partial = path.with_name(path.name + f".partial{os.getpid()}")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for start in range(0, len(numbers), BATCH):
        rows = list(_examples(exp, numbers[start : start + BATCH]))
        images = np.stack([r["image"] for r in rows + [rows[-1]] * (BATCH - len(rows))])
        key = stream(jax.random.key(exp.config.seed), "posterior", numbers[start])
        tokens = encode(params, images, key)
        arrays = [np.asarray(getattr(tokens, name)) for name in fields]
        for i, row in enumerate(rows):
            parts = [np.int32(row["label"]), *(a[i] for a in arrays)]
            writer.write(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))
    writer.close()
    os.replace(partial, path)


def _parse(record: bytes, fields: dict) -> dict[str, np.ndarray]:
    """The arrays of a record.

    Raises:
      DamagedShard: it is of another length.
    """
    size = sum(math.prod(f["shape"]) * np.dtype(f["dtype"]).itemsize for f in fields.values())
    if len(record) != 4 + size:
        raise DamagedShard(f"a record of {len(record)} bytes among tokens of {4 + size}")
    out, at = {"label": np.frombuffer(record, np.int32, 1).reshape(())}, 4
    for name, field in fields.items():
        count, kind = math.prod(field["shape"]), np.dtype(field["dtype"])
        out[name] = np.frombuffer(record, kind, count, at).reshape(field["shape"])
        at += count * kind.itemsize
    return out


def _checked(tokens: dict[str, np.ndarray], exp: Experiment) -> dict[str, np.ndarray]:
    """The arrays of a record, if a tokenizer can have written them.

    Raises:
      DamagedShard: labels or ids out of range, values that are not finite.
    """
    limits = {"label": exp.data.num_classes, "ids": exp.tokenizer.spec.vocab}
    for name in tokens.keys() & limits.keys():
        found, limit = tokens[name], limits[name]
        if found.min() < 0 or found.max() >= limit:
            raise DamagedShard(f"a record whose {name} lie outside 0 .. {limit - 1}")
    if not np.isfinite(tokens.get("values", 0)).all():
        raise DamagedShard("a record whose values are not finite")
    return tokens


def loader(exp: Experiment, params: Any, folder: str | os.PathLike, stage: str = "generator"):
    """start step -> iterator over this process's share of a stage's batches.

    Raises:
      ConfigError: the folder's tokens are of another config or tokenizer, or not all there.
    """
    folder, wanted = pathlib.Path(folder), manifest(exp, params)
    check_manifest(folder, wanted)
    paths = [shard_path(folder, i, wanted["shards"]) for i in range(wanted["shards"])]
    lacking = [p.name for p in paths if not p.exists()]
    check(not lacking, "token_dataset", str(folder),
          f"every shard; {len(lacking)} lack (--mode=tokenize goes on)")  # fmt: skip
    cfg = exp.train[stage]
    check(wanted["examples"] >= cfg.batch_size, f"train.{stage}.batch_size", cfg.batch_size,
          f"at most the {wanted['examples']} examples of config.token_dataset")  # fmt: skip

    def batches(start: int):
        source = _Shards(paths)
        data = pygrain.MapDataset.source(source).seed(exp.config.seed).shuffle().repeat(EPOCHS)
        data = data.map(lambda record: _checked(_parse(record, wanted["fields"]), exp))
        count = jax.process_count()
        data = data.batch(cfg.batch_size // count)[jax.process_index() :: count]
        return Batches(data, exp.data, start)

    return batches


class DamagedShard(RuntimeError):
    """A shard whose bytes are not those that were written."""


class _Shards:
    """Records of all shards by number; ArrayRecord's own check sums tell which are damaged."""

    def __init__(self, paths: list[pathlib.Path]):
        self.sources = [self._of(path, lambda p=path: _source(p)) for path in paths]
        self.paths, self.ends = paths, np.cumsum([len(s) for s in self.sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> bytes:
        at = int(np.searchsorted(self.ends, number, side="right"))
        place = number - (int(self.ends[at - 1]) if at else 0)
        return self._of(self.paths[at], lambda: self.sources[at][place])

    @staticmethod
    def _of(path, read):
        try:
            return read()
        except RuntimeError as error:
            raise DamagedShard(
                f"shard {path} is damaged; delete it, and --mode=tokenize (for cached passes the "
                f"same run) writes it again ({str(error).splitlines()[0]})"
            ) from error


def _source(path):
    return pygrain.ArrayRecordDataSource([str(path)])


def cached_loader(exp: Experiment, params: Any, workdir: str, stage: str = "generator"):
    """`loader` of `config.cached_passes` passes in a folder of the workdir, written if need be."""
    text = json.dumps(manifest(exp, params), sort_keys=True)
    name = f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder = pathlib.Path(workdir) / name
    with alone():
        tokenize(exp, params, folder)
    barrier("tokens are written")
    return loader(exp, params, folder, stage)
