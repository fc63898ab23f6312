"""Coarse labels of a tokenizer's codes, and what pictures lose by them; see
bottlenecks/clusters.py.

`--mode=cluster` writes clusters.npz {labels, centres, counts}, clusters.json and a picture.
"""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from nexttok import evaluate
from nexttok.bottlenecks import clusters
from nexttok.bottlenecks.vq import VQ
from nexttok.config import check
from nexttok.evals import pictures
from nexttok.evals.metrics import psnr
from nexttok.evals.results import write_text
from nexttok.rng import stream

COUNTED = 5000  # training images whose codes are counted
SHOWN = 8  # pictures


def codebook(models: evaluate.Models) -> np.ndarray:
    """Rows [V, C] as the decoder reads them.

    Raises:
      ConfigError: the tokens are not the codes of one codebook.
    """
    tokenizer = models.experiment.tokenizer
    bottleneck = getattr(tokenizer, "bottleneck", None)
    name = type(bottleneck or tokenizer).__name__
    check(isinstance(bottleneck, VQ), "tokenizer.bottleneck.name", name, "vq, for clusters")
    ids = jnp.arange(bottleneck.size, dtype=jnp.int32)
    return np.asarray(bottleneck.ids_to_values(models.params["tokenizer"]["quantizer"], ids))


def encoded(models: evaluate.Models, images: np.ndarray) -> np.ndarray:
    """Ids [M, N]."""
    size = min(models.experiment.eval.batch_size, len(images))
    return evaluate.batched(lambda x: models.encode(x).ids, size, images)


def run(models: evaluate.Models, size: int, workdir: str) -> dict:
    """Clusters the codes, measures on held-out images, writes everything.

    Returns:
      {clusters, codes, inertia, bits: {label, code_given_label}, psnr: {name: dB}}.

    Raises:
      ConfigError: tokens that are no codes of one codebook, or more clusters than codes.
    """
    exp = models.experiment
    rows, seed = codebook(models), exp.config.seed
    images = evaluate.train_images(exp, COUNTED)
    counts = np.bincount(encoded(models, images).ravel(), minlength=len(rows)).astype(np.float64)
    found = clusters.cluster(rows, counts, size, seed)
    test = evaluate.held_out(exp, exp.eval.images)["image"]
    ids, random = encoded(models, test), np.random.default_rng(seed)
    drawn = {
        "codes": ids,
        "nearest to centre": clusters.representatives(rows, found)[found.labels[ids]],
        "same cluster": clusters.members(ids, found.labels, random),
        "any code": random.integers(0, len(rows), ids.shape).astype(ids.dtype),
    }
    key, batch = stream(jax.random.key(seed), "decode"), min(exp.eval.batch_size, len(test))
    full = models.lengths[-1]
    decoded = {
        name: evaluate.batched(lambda i, k: models.decode(i, full, k), batch, codes, key=key)
        for name, codes in drawn.items()
    }
    label, code = clusters.entropies(counts, found.labels)
    results = {
        "clusters": size,
        "codes": len(rows),
        "inertia": found.inertia,
        "bits": {"label": label, "code_given_label": code},
        "psnr": {name: float(psnr(x, test).mean()) for name, x in decoded.items()},
    }
    os.makedirs(os.path.join(workdir, "pictures"), exist_ok=True)
    partial = os.path.join(workdir, "clusters.partial.npz")
    np.savez_compressed(partial, labels=found.labels, centres=found.centres, counts=counts)
    os.replace(partial, os.path.join(workdir, "clusters.npz"))
    write_text(os.path.join(workdir, "clusters.json"), json.dumps(results, indent=2) + "\n")
    shown = {"data": test} | decoded
    pictures.save_grid(
        os.path.join(workdir, "pictures", "clusters.png"),
        np.stack([x[:SHOWN] for x in shown.values()]),
        title=f"{size} clusters of {len(rows)} codes", row_labels=list(shown),
    )  # fmt: skip
    return results


def table(results: dict) -> str:
    """What `run` found, as text."""
    bits = results["bits"]
    lines = [
        f"{results['clusters']} clusters of {results['codes']} codes",
        f"bits of a label {bits['label']:.2f}, of a code given its label "
        f"{bits['code_given_label']:.2f}",
        *[f"{name:<18} PSNR {value:6.2f}" for name, value in results["psnr"].items()],
    ]
    return "\n".join(lines)
