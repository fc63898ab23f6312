"""Held-out numbers and pictures of a finished run."""

import dataclasses
import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nexttok import sampling
from nexttok.data.loader import load_source, make_loader
from nexttok.evals import frechet, metrics
from nexttok.evals.classifier import class_agreement, train_classifier
from nexttok.evals.memorization import memorization
from nexttok.evals.videos import frames, strip
from nexttok.experiment import Experiment
from nexttok.rng import stream
from nexttok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Models:
    """Jitted functions of one experiment with its trained parameters.

    Attributes:
      experiment: the parts.
      params: {"tokenizer": with its frozen parts merged in, "generator": if trained}.
    """

    experiment: Experiment
    params: dict

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Prefix lengths that are measured."""
        return self.experiment.tokenizer.spec.prefixes

    @functools.cached_property
    def encode(self):
        """images [B, H, W, C] -> Tokens."""
        tokenizer = self.experiment.tokenizer
        encode = jax.jit(lambda params, x: tokenizer.encode(params, x, None))
        return lambda x: encode(self.params["tokenizer"], x)

    @functools.cached_property
    def decode(self):
        """(tokens [B, N, ...], prefix length, key) -> images clipped to [-1, 1].

        Tokens are ids, or values where they are continuous.
        """
        tokenizer = self.experiment.tokenizer

        @jax.jit
        def decode(params, tokens, keep, key):
            tokens = Tokens(ids=tokens) if tokenizer.spec.vocab else Tokens(values=tokens)
            if not tokenizer.spec.nested:
                return jnp.clip(tokenizer.decode(params, tokens, key), -1.0, 1.0)
            kept = jnp.full((len(jax.tree.leaves(tokens)[0]),), keep, jnp.int32)
            return jnp.clip(tokenizer.decode(params, tokens, key, kept), -1.0, 1.0)

        return lambda tokens, keep, key: decode(self.params["tokenizer"], tokens, keep, key)

    @functools.cached_property
    def nats(self):
        """(tokens, labels) -> mean negative log-likelihood per token of each example, nats."""
        gen = self.experiment.generator
        loss = jax.jit(lambda params, tokens, label: gen.loss(params, tokens, label, None)[0])
        return lambda tokens, label: loss(self.params["generator"], tokens, label).mean(-1)

    @functools.cached_property
    def sample(self):
        """(labels [B], key) -> (tokens [B, n, ...], stats); n is `config.sample.tokens`, or N."""
        sample = sampling.sampler(self.experiment)

        def run(label, key):
            return sample(self.params, label, key, sampling.blank(self.experiment, len(label)))

        return run


def held_out(experiment: Experiment, limit: int) -> dict[str, np.ndarray]:
    """The first `limit` held-out images and labels."""
    batch = experiment.eval.batch_size
    parts: dict[str, list] = {"image": [], "label": []}
    loader = make_loader(experiment.data, "test", batch, experiment.config.seed)
    seen = 0
    for part in loader:
        mask = part["mask"]
        for name, rows in parts.items():
            rows.append(part[name][mask])
        seen += int(mask.sum())
        if seen >= limit:
            break
    return {name: np.concatenate(rows)[:limit] for name, rows in parts.items()}


def batched(fn, size: int, *arrays: np.ndarray, key: Any = None) -> np.ndarray:
    """Applies fn to batches of exactly `size` rows (the last one padded), so it compiles once.

    fn takes the batch arrays, and a key folded from the batch number when `key` is given.
    """
    count, outs = len(arrays[0]), []
    for i, at in enumerate(range(0, count, size)):
        part = [a[at : at + size] for a in arrays]
        short = size - len(part[0])
        part = [np.concatenate([p, np.repeat(p[-1:], short, 0)]) for p in part]
        extra = () if key is None else (stream(key, i),)
        outs.append(np.asarray(fn(*part, *extra))[: size - short])
    return np.concatenate(outs)


def drawn(models: Models, labels: np.ndarray, size: int, key: Any) -> tuple[np.ndarray, dict]:
    """Tokens of every label in batches of `size`, and the executor's stats of one batch."""
    stats = {}

    def draw(label, key):
        tokens, found = models.sample(label, key)
        stats.update(found)
        return tokens

    tokens = batched(draw, size, labels, key=key)
    return tokens, {name: int(value) for name, value in stats.items()}


def reconstruction(models: Models, images: np.ndarray, key) -> tuple[dict, dict]:
    """PSNR, SSIM, bits at every prefix length; codebook usage.

    Returns:
      Results, and decoded images by prefix length (for the picture).
    """
    exp = models.experiment
    size = min(exp.eval.batch_size, len(images))
    tokens = batched(lambda x: array_of(models.encode(x)), size, images)
    vocab = exp.tokenizer.spec.vocab
    rows, decoded = [], {}
    for length in models.lengths:
        out = batched(
            lambda i, k, n=length: models.decode(i, n, k), size, tokens, key=stream(key, length)
        )
        decoded[length] = out
        row = {"tokens": length}
        if vocab:
            row["bits"] = float(metrics.bits_per_image(length, vocab))
        row["psnr"] = float(np.mean(metrics.psnr(frames(images), frames(out))))
        row["ssim"] = float(np.mean(metrics.ssim(frames(images), frames(out))))
        rows.append(row)
    found = {"images": len(images), "prefixes": rows}
    if vocab:
        found["codebook"] = metrics.codebook_usage(tokens, vocab)
    return found, decoded


def array_of(tokens: Tokens) -> jax.Array:
    """What identifies tokens: their ids, or their values where they are continuous."""
    return tokens.values if tokens.ids is None else tokens.ids


def likelihood(models: Models, images: np.ndarray, labels: np.ndarray) -> dict:
    """Held-out negative log-likelihood in bits per token and per image; {} where there is none.

    Of random orders it is that of one order per image.
    """
    if not models.experiment.generator.has_likelihood:
        return {}
    size = min(models.experiment.eval.batch_size, len(images))
    nats = batched(lambda x, y: models.nats(models.encode(x), y), size, images, labels)
    bits = float(nats.mean() / np.log(2))
    n = models.experiment.generator.spec.length
    return {"bits_per_token": bits, "bits_per_image": bits * n}


def judge(experiment: Experiment, test: dict[str, np.ndarray]):
    """The classifier of the real data in whose features and labels samples are judged.

    It sees a video as the strip of its frames.
    """
    cfg = experiment.data
    batches = make_loader(cfg, "train", 128, experiment.config.seed + 1)
    pictures = ({**batch, "image": strip(batch["image"])} for batch in batches)
    try:
        return train_classifier(
            pictures, strip(test["image"]), test["label"], cfg.num_classes,
            experiment.eval.classifier_steps, experiment.config.seed,
        )  # fmt: skip
    finally:
        batches.close()


def train_images(experiment: Experiment, limit: int) -> np.ndarray:
    """The first `limit` training images, not augmented (videos as strips)."""
    source = load_source(experiment.data, "train", experiment.config.seed)
    return strip(np.stack([source[i]["image"] for i in range(min(limit, len(source)))]))


def samples(models: Models, test: dict[str, np.ndarray], classifier, key) -> tuple[dict, dict]:
    """Draws class-balanced samples and measures them at every prefix length.

    Returns:
      Results (class agreement and Frechet distance by length, memorization at full length), and
      images (or videos) by length with their labels.
    """
    exp = models.experiment
    count, size = exp.eval.samples, min(exp.eval.batch_size, exp.eval.samples)
    labels = (np.arange(count) % exp.data.num_classes).astype(np.int32)
    ids, stats = drawn(models, labels, size, stream(key, "ids"))
    made = ids.shape[1]
    real = classifier.features(strip(test["image"]))
    rows, images = [], {}
    for length in [n for n in models.lengths if n < made] + [made]:
        out = batched(
            lambda i, k, n=length: models.decode(i, n, k), size, ids, key=stream(key, length)
        )
        images[length] = out
        shown = strip(out)
        row = {
            "tokens": length,
            "frechet_distance": float(frechet.frechet_distance(classifier.features(shown), real)),
        }
        if exp.data.num_classes > 1:
            row["class_agreement"] = float(class_agreement(classifier, shown, labels))
        rows.append(row)
    reference = train_images(exp, 5000)
    results = {
        "count": count,
        "prefixes": rows,
        "memorization": memorization(strip(images[made]), reference),
        "classifier_accuracy": float(classifier.accuracy),
        "network_calls": stats["network_calls"],
    }
    return results, {"labels": labels, "images": images}


def speed(models: Models, key) -> dict:
    """Images a second of one batch, tokens and pixels, compiled before."""
    exp = models.experiment
    size = min(exp.eval.batch_size, exp.eval.samples)
    labels = (np.arange(size) % exp.data.num_classes).astype(np.int32)
    start = time.perf_counter()
    tokens, _ = models.sample(labels, key)
    jax.block_until_ready(models.decode(tokens, tokens.shape[1], key))
    seconds = time.perf_counter() - start
    return {
        "images_per_second": size / seconds,
        "batch_size": size,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
    }
