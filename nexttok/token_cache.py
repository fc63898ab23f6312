"""Tokens of augmented passes, computed once and drawn from ever after."""

import hashlib
import json
import os
import pathlib

import jax
import numpy as np

from nexttok.config import check
from nexttok.data.loader import load_source, make_loader
from nexttok.experiment import Experiment
from nexttok.rng import stream


def cached_loader(exp: Experiment, frozen: dict, workdir: str):
    """Tokenizes `config.cached_passes` augmented passes once; batches are drawn from those tokens.

    The tokens lie in workdir/tokens-<hash>.npz; the hash covers what they depend on.
    """
    cfg = exp.train["generator"]
    keep = ("seed", "data", "latent", "tokenizer", "train", "cached_passes", "tokenizer_checkpoint")
    text = json.dumps({k: json.loads(exp.config.to_json())[k] for k in keep}, sort_keys=True)
    name = f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz"
    path = pathlib.Path(workdir) / name
    if not path.is_file():
        tokenize(exp, frozen, path)
    with np.load(path) as saved:
        tokens, labels = {k: saved[k] for k in saved if k != "labels"}, saved["labels"]

    def batches(start: int):
        per_pass = len(labels) // cfg.batch_size
        check(per_pass >= 1, "cached_passes", exp.config.cached_passes,
              f"enough passes for one batch of {cfg.batch_size}")  # fmt: skip
        for step in range(start, cfg.steps):
            rng = np.random.default_rng((exp.config.seed, step // per_pass))
            at = step % per_pass * cfg.batch_size
            rows = rng.permutation(len(labels))[at : at + cfg.batch_size]
            rows = np.split(rows, jax.process_count())[jax.process_index()]
            yield {k: v[rows] for k, v in tokens.items()} | {"label": labels[rows]}

    return batches


def tokenize(exp: Experiment, frozen: dict, path: pathlib.Path) -> None:
    """Writes tokens [M, N, ...] and labels [M] of augmented passes over the training data."""
    size = exp.train["generator"].batch_size
    source = load_source(exp.data, "train", exp.config.seed)
    count = max(1, exp.config.cached_passes * len(source) // size)
    posterior = jax.random.key(exp.config.seed)
    encode = jax.jit(lambda p, x, k: exp.tokenizer.encode(p, x, k))
    loader = make_loader(exp.data, "train", size, exp.config.seed + 2)
    spec, made, labels = exp.tokenizer.spec, [], []
    kept = [
        name
        for name, needed in (("ids", spec.vocab), ("values", spec.scales or not spec.vocab))
        if needed
    ]
    try:
        for i in range(count):
            batch = next(loader)
            tokens = encode(frozen["tokenizer"], batch["image"], stream(posterior, "posterior", i))
            made.append({k: np.asarray(getattr(tokens, k)) for k in kept})
            labels.append(batch["label"])
    finally:
        loader.close()
    partial = path.with_suffix(".partial.npz")
    joined = {k: np.concatenate([m[k] for m in made]) for k in made[0]}
    np.savez(partial, **joined, labels=np.concatenate(labels))
    os.replace(partial, path)
