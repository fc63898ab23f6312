"""Zero-shot editing: the masked part of a picture is drawn anew, as any class.

In-painting masks the inside, out-painting the outside, class-conditional editing an object; the
model is the one that was trained, as VAR, MaskGIT, MAR, RandAR and ARPG show.
"""

import logging
import os
import pathlib

import jax
import numpy as np
from jaxtyping import Float

from nexttok import evaluate, sampling
from nexttok.config import ConfigError, check
from nexttok.data.files import Unreadable, picture
from nexttok.data.loader import class_names
from nexttok.data.transforms import fit, to_channels, to_float
from nexttok.evals import pictures
from nexttok.experiment import Experiment
from nexttok.rng import stream

log = logging.getLogger("nexttok")


def read_picture(path: str, side: int, channels: int, where: str) -> Float[np.ndarray, "H W C"]:
    """A picture file in [-1, 1], its centre at side x side.

    Raises:
      ConfigError: no such file, or one that is no picture.
    """
    try:
        with picture(pathlib.Path(path)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Unreadable as error:
        raise ConfigError(f"config.{where} = {path!r}: expected a picture ({error})") from error
    return fit(to_channels(to_float(pixels), channels), side)


def edit(models: evaluate.Models, workdir: str) -> None:
    """Draws the masked part of `config.sample.source` as every class of `config.sample.classes`
    (all, when empty), `per_class` times.

    Writes pictures/editing.png (source, mask, then samples, one row per class) and edited.npz.

    Raises:
      ConfigError: a file that cannot be read, a mask that hides nothing, or a model that cannot
        keep known tokens.
    """
    exp = models.experiment
    cfg, side = exp.sample, exp.data.resolution
    source = read_picture(cfg.source, side, exp.data.channels, "sample.source")
    mask = (read_picture(cfg.mask, side, 1, "sample.mask")[..., 0] > 0).astype(np.float32)
    check(bool(mask.any()), "sample.mask", cfg.mask, "a mask with white where to draw anew")
    known = sampling.known_tokens(exp, mask)
    sample = sampling.sampler(exp, known)
    tokens = np.asarray(evaluate.array_of(models.encode(source[None])))
    labels = np.repeat(np.asarray(exp.sampled_classes, np.int32), cfg.per_class)
    given = np.repeat(tokens, len(labels), axis=0)
    key = stream(jax.random.key(exp.config.seed), "editing")
    size = min(exp.eval.batch_size, len(labels))
    drawn = evaluate.batched(
        lambda label, kept, k: sample(models.params, label, k, kept)[0], size, labels, given,
        key=stream(key, "ids"),
    )  # fmt: skip
    images = evaluate.batched(
        lambda t, k: models.decode(t, drawn.shape[1], k), size, drawn, key=stream(key, "decode")
    )
    draw(exp, source, mask, images, workdir)
    path = os.path.join(workdir, "edited.npz")
    np.savez_compressed(path, images=images, labels=labels, tokens=drawn, known=known)
    log.info("wrote %s", path)


def draw(
    exp: Experiment,
    source: Float[np.ndarray, "H W C"],
    mask: Float[np.ndarray, "H W"],
    images: Float[np.ndarray, "M H W C"],
    workdir: str,
) -> None:
    """pictures/editing.png: the source, what is kept of it, and the edits, one class a row."""
    kept = np.where(mask[..., None] > 0, 0.0, source)
    rows = images.reshape(len(exp.sampled_classes), -1, *source.shape)
    front = np.broadcast_to(np.stack([source, kept]), (len(rows), 2, *source.shape))
    names = class_names(exp.data, exp.config.seed)
    path = os.path.join(workdir, "pictures", "editing.png")
    pictures.save_grid(
        path, np.concatenate([front, rows], axis=1), title="Drawn anew where masked",
        row_labels=[names[c] for c in exp.sampled_classes],
        col_labels=["source", "kept", *[""] * rows.shape[1]],
    )  # fmt: skip
    log.info("wrote %s", path)
