"""The samplers of one trained model against each other: `--mode=samplers`."""

import logging
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from nexttok import drafters, evaluate
from nexttok.config import ConfigError, check
from nexttok.evals import results
from nexttok.experiment import Experiment, resolve
from nexttok.rng import stream
from nexttok.samplers.options import OFF, READS, TRAINED

log = logging.getLogger("nexttok")

BATCH, REPEATS = 8, 5  # of the timing
COUNTED = ("rounds", "accepted", "rows", "judged", "revoked")  # beside calls: means of a sample


def variant(exp: Experiment, text: str) -> Experiment:
    """The experiment with a sampler such as "zipar" or "zipar,window=2".

    Raises:
      ConfigError: no such sampler or option, or one that does not fit.
    """
    name, *options = (part.strip() for part in text.split(","))
    config = exp.config.copy_and_resolve_references()
    config.sampler.update(OFF)
    config.sampler.name = name
    if name in TRAINED and config.drafter.name != name:  # with own options
        config.drafter.update(drafters.OFF, name=name)
    for option in options:
        key, _, value = option.partition("=")
        fits = key in READS.get(name, ())
        check(fits, "sampler", option, " | ".join(READS.get(name, ())) or "no option")
        try:
            found = _parse(value, OFF[key])
        except (KeyError, ValueError):
            check(False, f"sampler.{key}", value, "a number, two as 50-5, true, false or a word")
        config.sampler[key] = found
    return resolve(config)


def _parse(text, like):
    if isinstance(like, bool):
        return {"true": True, "false": False}[text]
    return tuple(map(int, text.split("-"))) if like == () else type(like)(text)


def fitting(exp: Experiment) -> list[str]:
    """The samplers that can draw from an experiment's generator, with options of their own; of
    those that need training, the one that `config.drafter` names."""

    def fits(name):
        if name in TRAINED and name != exp.config.drafter.name:
            return False
        try:
            variant(exp, name)
        except ConfigError:
            return False
        return True

    return [name for name in READS if fits(name)]


def variants(exp: Experiment, choices: list[str]) -> dict[str, Experiment]:
    """The experiment with every sampler, the executor's first.

    Args:
      choices: as `variant` takes them; [] for all that fit.
    """
    choices = choices or fitting(exp)
    return {c: variant(exp, c) for c in ("plan", *choices)}


def seconds(models: evaluate.Models, test: dict, key: Any) -> float:
    """Median time of drawing a batch of tokens, compiled before."""
    labels = evaluate.balanced(BATCH, models.experiment.data.num_classes)
    given = evaluate.openings(models, test, labels)
    times = []
    for i in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(models.sample_from(labels, given, stream(key, i)))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def compare(models: dict[str, evaluate.Models], workdir: str) -> list[dict]:
    """Draws and measures samples by every sampler; writes samplers.json.

    Args:
      models: of one trained generator with every one of its `variants`.

    Returns:
      A row per sampler: {sampler, what it counts, class_agreement, frechet_distance,
      images_per_second, speedup}.
    """
    exp = models["plan"].experiment
    test = evaluate.held_out(exp, exp.eval.images)
    classifier = evaluate.judge(exp, test)
    rows, key = [], stream(jax.random.key(exp.config.seed), "samplers")
    for choice, own in models.items():
        log.info("sampler %s", choice)
        found, _ = evaluate.samples(own, test, classifier, stream(key, "samples"))
        counted = {k: v for k, v in found.items() if k.endswith("_calls") or k in COUNTED}
        last = found["prefixes"][-1]
        scores = {k: last[k] for k in ("class_agreement", "frechet_distance") if k in last}
        speed = BATCH / seconds(own, test, stream(key, "speed"))
        row = {"sampler": choice, **counted, **scores, "images_per_second": speed}
        rows.append(row | {"speedup": speed / (rows[0] if rows else row)["images_per_second"]})
    found = {"name": exp.config.name, "count": exp.eval.samples, "batch_size": BATCH, "rows": rows}
    found |= {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    results.write_results(os.path.join(workdir, "samplers.json"), found)
    return rows


def table(rows: list[dict]) -> str:
    """The rows in a few lines."""
    head = f"{'sampler':24s} {'calls':>7s} {'agreement':>10s} {'distance':>9s} {'images/s':>9s}"
    lines = [f"{head} {'speedup':>8s}"]
    for row in rows:
        agreement = row.get("class_agreement", np.nan)
        lines.append(
            f"{row['sampler']:24s} {row['network_calls']:7.1f} {agreement:10.3f} "
            f"{row['frechet_distance']:9.2f} {row['images_per_second']:9.1f} {row['speedup']:8.2f}"
        )
    return "\n".join(lines)
