"""Held-out numbers and pictures of a finished run."""

import dataclasses
import functools
import itertools
import logging
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nexttok import sampling
from nexttok.config import check
from nexttok.data.loader import load_source, make_loader
from nexttok.evals import film, frechet, metrics
from nexttok.evals.classifier import train_classifier
from nexttok.evals.memorization import memorization
from nexttok.evals.videos import frames
from nexttok.experiment import Experiment
from nexttok.rng import stream
from nexttok.samplers.drafts import ngram
from nexttok.tokens import Tokens

log = logging.getLogger("nexttok")

SHOWN_CLASSES = 20  # in pictures
COUNTED = 10_000  # training images whose pairs of tokens are counted
COMPARED = 5000  # samples, and training images, of the memorization figure
REWARDING = 1000  # on the seed of the classifier that rewards while sampling: not what measures


@dataclasses.dataclass(frozen=True)
class Models:
    """Jitted functions of one experiment with its trained parameters.

    Attributes:
      experiment: the parts.
      params: {"tokenizer": with its frozen parts merged in, "generator": if trained, "drafter": of
        a sampler whose guesses another model makes}.
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
    def measures(self):
        """images [B, ...] -> {name: [B]}: what the tokenizer measures itself, if anything."""
        measure = getattr(self.experiment.tokenizer, "measures", lambda params, x: {})
        measure = jax.jit(measure)
        return lambda x: measure(self.params["tokenizer"], x)

    @functools.cached_property
    def nats(self):
        """(tokens, labels) -> mean negative log-likelihood per token of each example, nats."""
        gen = self.experiment.generator
        loss = jax.jit(lambda params, tokens, label: gen.loss(params, tokens, label, None)[0])
        return lambda tokens, label: loss(self.params["generator"], tokens, label).mean(-1)

    @functools.cached_property
    def sample_from(self):
        """(labels [B], tokens [B, N, ...], key) -> (tokens [B, n, ...], stats): see `openings`.

        n is `config.sample.tokens`, or all of them when it is 0.
        """
        sample = sampling.sampler(self.experiment)
        params = self.params | sampling.tables(self.experiment, self.params["tokenizer"])
        if self.experiment.sampler.judged:
            test = held_out(self.experiment, self.experiment.eval.images)
            params = params | {"judge": judge(self.experiment, test, REWARDING).params}
        if self.experiment.sampler.name == "ngram":
            params = params | {"ngrams": self.ngrams}
        return lambda label, given, key: sample(params, label, key, given)

    @functools.cached_property
    def ngrams(self) -> ngram.Table:
        """What follows pairs of tokens in the training images, in the order of generation."""
        exp = self.experiment
        images = train_images(exp, COUNTED)
        size = min(exp.eval.batch_size, len(images))
        tokens = batched(lambda x: array_of(self.encode(x)), size, images)[:, exp.plan.order]
        return ngram.count(tokens, exp.generator.spec.vocab, max(exp.sampler.successors))

    @functools.cached_property
    def sample(self):
        """(labels [B], key) -> (tokens [B, n, ...], stats), of a plan that gives no steps."""
        exp = self.experiment
        given = exp.generator.plan.given
        check(not given, "generator.plan.given", given, "0 where nothing is known beforehand")
        return lambda label, key: self.sample_from(label, sampling.blank(exp, len(label)), key)


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


def padded(size: int, *arrays: np.ndarray):
    """Batches of exactly `size` rows, the last one padded, so that what runs on them compiles once.

    Yields (batch number, slice of real rows, batch arrays).
    """
    for i, at in enumerate(range(0, len(arrays[0]), size)):
        part = [a[at : at + size] for a in arrays]
        count = len(part[0])
        part = [np.concatenate([p, np.repeat(p[-1:], size - count, 0)]) for p in part]
        yield i, slice(at, at + count), part


def batched(fn, size: int, *arrays: np.ndarray, key: Any = None) -> np.ndarray:
    """Applies fn to batches of exactly `size` rows.

    fn takes the batch arrays, and a key folded from the batch number when `key` is given.
    """
    outs = []
    for i, rows, part in padded(size, *arrays):
        extra = () if key is None else (stream(key, i),)
        outs.append(np.asarray(fn(*part, *extra))[: rows.stop - rows.start])
    return np.concatenate(outs)


def drawn(
    models: Models, labels: np.ndarray, given: np.ndarray, size: int, key: Any
) -> tuple[np.ndarray, dict]:
    """Tokens of every label in batches of `size`, and the means of what the sampler counts; where
    the executor ran, also the `order` [B, n] that each was drawn in.

    `given` holds what samples start from (see `openings`). The log tells the counts and the time.
    """
    stats: dict[str, list] = {}
    start = time.perf_counter()

    def draw(label, opening, key):
        tokens, found = models.sample_from(label, opening, key)
        for name, value in found.items():
            stats.setdefault(name, []).append(value if name == "order" else np.mean(value))
        return tokens

    tokens = batched(draw, size, labels, given, key=key)
    orders = stats.pop("order", ())
    found = {name: float(np.mean(values)) for name, values in stats.items()}
    counts = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "steps")
    seconds = time.perf_counter() - start
    log.info("drew %d in %.1f s, compilation included: %s", len(labels), seconds, counts)
    return tokens, found | ({"order": np.concatenate(orders)[: len(labels)]} if orders else {})


def reconstruction(models: Models, images: np.ndarray, classifier, key) -> tuple[dict, dict]:
    """PSNR, SSIM, Frechet distance and bits at every prefix length; codebook usage; means of what
    the tokenizer measures itself.

    Returns:
      Results, and the first batch of decoded images by prefix length (for the picture).
    """
    exp = models.experiment
    vocab, lengths = exp.tokenizer.spec.vocab, models.lengths
    tokens, shown, more = [], {}, {}
    scores: dict[int, list] = {n: [] for n in lengths}
    seen: dict[int, list] = {n: [] for n in lengths}
    for i, rows, (x,) in padded(min(exp.eval.batch_size, len(images)), images):
        coded, count = array_of(models.encode(x)), rows.stop - rows.start
        tokens.append(np.asarray(coded)[:count])
        for name, values in models.measures(x).items():
            more.setdefault(name, []).append(np.asarray(values)[:count])
        for n in lengths:
            out = np.asarray(models.decode(coded, n, stream(stream(key, n), i)))[:count]
            true, made = frames(x[:count]), frames(out)
            scores[n].append((metrics.psnr(true, made), metrics.ssim(true, made)))
            seen[n].append(classifier.features(out))
            shown.setdefault(n, out)
    table, real = [], classifier.features(images)
    for n in lengths:
        distance = frechet.frechet_distance(np.concatenate(seen[n]), real)
        psnr, ssim = (float(np.mean(np.concatenate(s))) for s in zip(*scores[n], strict=True))
        codes = n * exp.tokenizer.spec.codes
        bits = {"bits": float(metrics.bits_per_image(codes, vocab))} if vocab else {}
        row = {"psnr": psnr, "ssim": ssim, "frechet_distance": float(distance)}
        table.append({"tokens": n, **bits, **row})
    means = {name: float(np.mean(np.concatenate(values))) for name, values in more.items()}
    found = {"images": len(images), "prefixes": table} | means
    if vocab:
        found["codebook"] = metrics.codebook_usage(np.concatenate(tokens), vocab)
    return found, shown


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
    plan = models.experiment.generator.plan
    n = plan.length - plan.known
    return {"bits_per_token": bits, "bits_per_image": bits * n}


def judge(experiment: Experiment, test: dict[str, np.ndarray], other: int = 0):
    """The classifier of the real data in whose features and labels samples are judged; `other` is
    added to the seed for another one.

    It learns from the first and last frames of videos, and judges by all of them.
    """
    cfg, seed = experiment.data, experiment.config.seed + other
    size, part = (48, np.s_[:, :: cfg.frames - 1]) if cfg.frames > 1 else (128, np.s_[:])
    batches = make_loader(cfg, "train", size, seed + 1)
    try:
        return train_classifier(
            ({**batch, "image": batch["image"][part]} for batch in batches),
            test["image"], test["label"], cfg.num_classes, experiment.eval.classifier_steps, seed,
        )  # fmt: skip
    finally:
        batches.close()


def train_images(experiment: Experiment, limit: int) -> np.ndarray:
    """The first `limit` training images, not augmented."""
    source = load_source(experiment.data, "train", experiment.config.seed)
    return np.stack([source[i]["image"] for i in range(min(limit, len(source)))])


def balanced(count: int, classes: int) -> np.ndarray:
    """`count` labels, every class in turn."""
    return (np.arange(count) % classes).astype(np.int32)


def openings(models: Models, test: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The tokens that samples of these labels start from, [B, N, ...].

    They are those of held-out examples of the classes where the plan gives steps, else blank.

    Raises:
      ConfigError: no held-out example of some class, where one is needed.
    """
    exp = models.experiment
    if not exp.generator.plan.given:
        return np.asarray(sampling.blank(exp, len(labels)))
    lacking = sorted(set(labels.tolist()) - set(test["label"].tolist()))
    allowed = f"enough held-out examples to have one of each class, {lacking[:4]} included"
    check(not lacking, "eval.images", len(test["label"]), allowed)
    turns = {c: itertools.cycle(np.flatnonzero(test["label"] == c)) for c in set(labels.tolist())}
    rows = [next(turns[c]) for c in labels.tolist()]
    used, at = np.unique(rows, return_inverse=True)
    size = min(exp.eval.batch_size, len(used))
    tokens = batched(lambda x: array_of(models.encode(x)), size, test["image"][used])
    return tokens[at]


def samples(models: Models, test: dict[str, np.ndarray], classifier, key) -> tuple[dict, dict]:
    """Draws class-balanced samples and measures them at every prefix length.

    Returns:
      Results (class agreement and Frechet distance by length, memorization at full length), and
      the first images (or videos) of the first classes by length, with their labels and, where it
      is known, the step that drew every token.
    """
    exp = models.experiment
    count, size = exp.eval.samples, min(exp.eval.batch_size, exp.eval.samples)
    labels, classes = balanced(count, exp.data.num_classes), exp.data.num_classes
    shown = (labels < SHOWN_CLASSES) & (np.arange(count) < exp.sample.per_class * classes)
    given = openings(models, test, labels)
    ids, stats = drawn(models, labels, given, size, stream(key, "ids"))
    made = ids.shape[1]
    real = classifier.features(test["image"])
    table, images, first = [], {}, []
    for length in [n for n in models.lengths if n < made] + [made]:
        features, guesses, kept = [], [], []
        for i, rows, (part,) in padded(size, ids):
            out = np.asarray(models.decode(part, length, stream(stream(key, length), i)))
            out = out[: rows.stop - rows.start]
            kept.append(out[shown[rows]])
            features.append(classifier.features(out))
            guesses.append(classifier.predict(out))
            if length == made and rows.start < COMPARED:
                first.append(out)
        images[length] = np.concatenate(kept)
        distance = frechet.frechet_distance(np.concatenate(features), real)
        row = {"tokens": length, "frechet_distance": float(distance)}
        if classes > 1:
            row["class_agreement"] = float((np.concatenate(guesses) == labels).mean())
        table.append(row)
    results = {
        "count": count,
        "prefixes": table,
        "memorization": memorization(np.concatenate(first), train_images(exp, COMPARED)),
        "classifier_accuracy": float(classifier.accuracy),
        **{name: value for name, value in stats.items() if name not in ("steps", "order")},
    }
    steps = film.steps_of(stats["order"][shown], exp.plan.sizes) if "order" in stats else None
    return results, {"labels": labels[shown], "images": images, "steps": steps}


def speed(models: Models, test: dict[str, np.ndarray], key) -> dict:
    """Images a second of one batch, tokens and pixels, compiled before."""
    exp = models.experiment
    size = min(exp.eval.batch_size, exp.eval.samples)
    labels = balanced(size, exp.data.num_classes)
    given = openings(models, test, labels)
    start = time.perf_counter()
    tokens, _ = models.sample_from(labels, given, key)
    jax.block_until_ready(models.decode(tokens, tokens.shape[1], key))
    seconds = time.perf_counter() - start
    return {
        "images_per_second": size / seconds,
        "batch_size": size,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
    }
