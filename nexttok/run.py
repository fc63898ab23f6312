"""The modes of the command line: train, draft, eval, sample, tokenize."""

import importlib.metadata
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nexttok import (
    clustering,
    comparison,
    drafting,
    editing,
    evaluate,
    image_files,
    token_files,
    train,
)
from nexttok.config import check, read_json
from nexttok.data.loader import class_names, make_loader
from nexttok.distributed import alone, barrier, on_this_host
from nexttok.evals import film, pictures, report, results
from nexttok.evals.plan_pictures import save_plan
from nexttok.evals.videos import save_animation, strip
from nexttok.experiment import DRAFTER, Experiment
from nexttok.mesh import make_mesh, use_mesh
from nexttok.preflight import check_run
from nexttok.profiling import Tracer
from nexttok.rng import stream
from nexttok.samplers.options import TRAINED
from nexttok.stages import (
    frozen_for,
    load_features,
    make_task,
    parameter_counts,
    reads_features,
)
from nexttok.weights import load_models, placed_models, reused_stages, same
from nexttok.writers import JsonlWriter, MultiWriter, TensorBoardWriter

log = logging.getLogger("nexttok")

# What may change between a run and its continuation: sections that do not touch what was trained
# (weights.FREE_KEYS are the keys of the others that may).
FREE = ("eval", "sample", "sampler", "mesh", "token_dataset", "profile", "params", "drafter")
FILMED = 4  # samples shown step by step


def check_owner(exp: Experiment, workdir: str) -> None:
    """Raises ConfigError where the workdir belongs to another config."""
    path = pathlib.Path(workdir) / "config.json"
    if path.is_file():
        saved = read_json(path, "workdir", "a new workdir, or that of a run")
        mine = json.loads(exp.config.to_json())
        for config in (saved, mine):  # a drafter is trained afterwards, in a folder of its own
            config["train"] = {k: v for k, v in config["train"].items() if k != DRAFTER}
        for section in sorted((set(saved) | set(mine)) - set(FREE)):
            same(saved.get(section), mine.get(section), section,
                  f"as {workdir} was started with; choose another --workdir")  # fmt: skip


def open_workdir(exp: Experiment, workdir: str) -> None:
    """Makes the workdir, or checks that it belongs to this config, then writes config.json."""
    check_owner(exp, workdir)
    path = pathlib.Path(workdir) / "config.json"
    mine = json.loads(exp.config.to_json())
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(path, json.dumps(mine, indent=2, sort_keys=True) + "\n")


def stage_loader(exp: Experiment, stage: str):
    """start step -> iterator over this process's share of the stage's batches."""

    def loader(start: int):
        return make_loader(
            exp.data, "train", exp.train[stage].batch_size, exp.config.seed, start_step=start,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip

    return loader


def run_train(exp: Experiment, workdir: str) -> dict:
    """Trains every stage (resuming), evaluates, writes results, pictures and the report."""
    check(not exp.config.params, "params", exp.config.params,
          "'' where stages are trained; tokenizer_checkpoint reuses a tokenizer")  # fmt: skip
    mesh = make_mesh(exp.mesh)
    check_run(exp, mesh)
    log_counts(exp)
    if exp.sampler.name in TRAINED:  # its samples are measured with it
        drafting.check_drafter(exp, workdir)
    done = reused_stages(exp, mesh)
    if exp.config.token_dataset and "tokenizer" in done:  # before anything is written
        params = on_this_host(models_of(exp, done).params["tokenizer"], mesh)
        token_files.loader(exp, params, exp.config.token_dataset)
    open_workdir(exp, workdir)
    done = on_this_host(fit_stages(exp, done, mesh, workdir, workdir), mesh)
    done |= drafting.load_drafter(exp, done, workdir)
    return by_the_first(lambda: measure(exp, done, workdir))


def run_draft(exp: Experiment, workdir: str) -> None:
    """Trains what `config.drafter` adds to the generator of a finished run (resuming); its
    checkpoints and metrics go to <workdir>/drafters/<name>."""
    name = exp.config.drafter.name
    check(exp.drafter is not None, "drafter.name", name, " | ".join(TRAINED))
    mesh, added = make_mesh(exp.mesh), exp.drafting_only
    check_run(added, mesh)
    log_counts(added)
    done = placed_models(exp, workdir, mesh)
    drafting.open_drafter(exp, workdir)
    fit_stages(added, done, mesh, workdir, drafting.folder_of(exp, workdir))
    log.info("trained: --config.drafter.name=%s --config.sampler.name=%s draws with it", name, name)


def log_counts(exp: Experiment) -> None:
    """Tells how many parameters each part has."""
    for name, count in parameter_counts(exp).items():
        log.info("%-24s %12s parameters", name, f"{count:,}")


def fit_stages(exp: Experiment, done: dict[str, Any], mesh, workdir: str, folder: str) -> dict:
    """Trains the stages that are not done, each on those before it, from its newest checkpoint.

    Args:
      exp, done, mesh: of what, with which parameters of other stages, and where.
      workdir: of the run, where tokens are cached.
      folder: where checkpoints and metrics go.

    Returns:
      `done` with the parameters of all stages.
    """
    meta, done = {"config": json.loads(exp.config.to_json()), "versions": versions()}, dict(done)
    writer = MultiWriter(
        [JsonlWriter(os.path.join(folder, "metrics.jsonl")),
         TensorBoardWriter(os.path.join(folder, "tensorboard"))]
    )  # fmt: skip
    try:
        with use_mesh(mesh):
            for stage in exp.train:
                if stage in done:
                    continue
                loader = stage_loader(exp, stage)
                frozen, tokens = frozen_for(exp, stage, done), exp.config.token_dataset
                cached = tokens or exp.config.cached_passes
                if stage in ("generator", DRAFTER) and cached:
                    params = on_this_host(frozen["tokenizer"], mesh)
                    if tokens:
                        loader = token_files.loader(exp, params, tokens, stage)
                    else:
                        loader = token_files.cached_loader(exp, params, workdir, stage)
                done[stage] = train.fit(
                    make_task(exp, stage), exp.train[stage], exp.config.seed, mesh, frozen, loader,
                    os.path.join(folder, "checkpoints", stage), writer, meta,
                    Tracer(exp.profile.window, os.path.join(folder, "profile", stage)),
                )  # fmt: skip
    finally:
        writer.close()
    return done


def by_the_first(fn: Callable[[], Any]) -> Any:
    """fn() in the first process, alone, while the others wait; they get None."""
    with alone():
        found = fn() if jax.process_index() == 0 else None
    barrier("the first process is done")
    return found


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {n: importlib.metadata.version(n) for n in ("jax", "flax", "optax", "grain", "numpy")}


def models_of(exp: Experiment, done: dict[str, Any]) -> evaluate.Models:
    """Jitted functions over finished stages."""
    params = {"tokenizer": {**done["tokenizer"]}}
    if "latent" in done:
        params["tokenizer"]["latent"] = done["latent"]
    if reads_features(exp):
        params["tokenizer"]["features"] = load_features(exp)
    params |= {name: done[name] for name in ("generator", DRAFTER) if name in done}
    return evaluate.Models(exp, params)


def trained(exp: Experiment, workdir: str) -> evaluate.Models:
    """Jitted functions over the stages of a finished run.

    Raises:
      ConfigError: the workdir holds no finished run of this config.
    """
    done = load_models(exp, workdir)
    return models_of(exp, done | drafting.load_drafter(exp, done, workdir))


def run_eval(exp: Experiment, workdir: str) -> dict:
    """Measures a finished run again and rewrites results, pictures and the report."""
    done = load_models(exp, workdir)
    done |= drafting.load_drafter(exp, done, workdir)
    return by_the_first(lambda: measure(exp, done, workdir))


def measure(exp: Experiment, done: dict[str, Any], workdir: str) -> dict:
    """Evaluates finished stages; writes results.json, pictures/ and report.html."""
    if "tokenizer" not in done:
        return {}
    models, key = models_of(exp, done), jax.random.key(exp.config.seed)
    test = evaluate.held_out(exp, exp.eval.images)
    log.info("evaluating on %d held-out images", len(test["image"]))
    found = {"name": exp.config.name, "parameters": parameter_counts(exp)}
    classifier = evaluate.judge(exp, test)
    found["reconstruction"], decoded = evaluate.reconstruction(
        models, test["image"], classifier, stream(key, "reconstruction")
    )
    draw_reconstructions(test["image"], decoded, workdir)
    if exp.generator is not None:
        likelihood = evaluate.likelihood(models, test["image"], test["label"])
        if likelihood:
            found["likelihood"] = likelihood
        found["samples"], drawn = evaluate.samples(models, test, classifier, stream(key, "samples"))
        draw_samples(exp, drawn, workdir)
        draw_generation(exp, drawn, workdir)
        speed = evaluate.speed(models, test, stream(key, "speed"))
        # beside the results, which are the same on every machine and at every time
        results.write_results(os.path.join(workdir, "speed.json"), speed)
    if exp.data.source.startswith("folder:"):
        splits = [evaluate.load_source(exp.data, s, exp.config.seed) for s in ("train", "test")]
        found["unreadable_files"] = sum(len(split.info.problems) for split in splits)
    results.write_results(os.path.join(workdir, "results.json"), found)
    report.write_report(workdir)
    log.info("%s", summary(found))
    return found


def draw_reconstructions(images: np.ndarray, decoded: dict, workdir: str) -> None:
    """pictures/reconstructions.png: originals beside their prefixes."""
    rows = min(10, *(len(x) for x in decoded.values()))
    grid = np.stack([strip(x[:rows]) for x in (images, *decoded.values())], axis=1)
    path = os.path.join(workdir, "pictures", "reconstructions.png")
    pictures.save_grid(
        path, grid, title="Held-out images and their first tokens",
        col_labels=["original", *(str(n) for n in decoded)],
    )  # fmt: skip


def draw_samples(exp: Experiment, drawn: dict, workdir: str) -> list[str]:
    """pictures/samples.png (per class) and pictures/growing.png (one sequence, growing prefix).

    Of videos these show the frames side by side, and pictures/samples.gif shows them moving.
    """
    labels, videos = drawn["labels"], drawn["images"]
    images = {n: strip(x) for n, x in videos.items()}
    names = class_names(exp.data, exp.config.seed)
    classes = list(dict.fromkeys(labels.tolist()))[: evaluate.SHOWN_CLASSES]
    final = images[max(images)]
    each = min(exp.sample.per_class, *(int((labels == c).sum()) for c in classes))
    per_class = np.stack([final[labels == c][:each] for c in classes])
    first = np.asarray([int(np.argmax(labels == c)) for c in classes])
    growing = np.stack([d[first] for d in images.values()], axis=1)
    rows = [names[c] for c in classes]
    samples_path = os.path.join(workdir, "pictures", "samples.png")
    growing_path = os.path.join(workdir, "pictures", "growing.png")
    pictures.save_grid(samples_path, per_class, row_labels=rows, title="Samples by class")
    paths = [samples_path]
    if len(images) > 1:
        pictures.save_grid(
            growing_path, growing, row_labels=rows, col_labels=[str(n) for n in images],
            title="The same tokens, decoded at growing length",
        )  # fmt: skip
        paths.append(growing_path)
    if exp.data.frames:
        moving = os.path.join(workdir, "pictures", "samples.gif")
        clips = videos[max(videos)]
        save_animation(moving, np.stack([clips[labels == c][:each] for c in classes]))
        paths.append(moving)
    return paths


def draw_generation(exp: Experiment, drawn: dict, workdir: str) -> None:
    """pictures/plan.png, and pictures/generation.png: the first sample of some classes, step by
    step, where the steps are known."""
    folder = os.path.join(workdir, "pictures")
    save_plan(os.path.join(folder, "plan.png"), exp.generator)
    if drawn["steps"] is None:
        return
    _, first = np.unique(drawn["labels"], return_index=True)
    first = first[: 1 if exp.data.frames else FILMED]
    film.save_film(
        folder, {n: x[first] for n, x in drawn["images"].items()}, drawn["steps"][first],
        exp.generator.spec, exp.plan.given,
    )  # fmt: skip


def summary(found: dict) -> str:
    """The final numbers in a few lines."""
    lines = ["tokens   bits    PSNR   SSIM"]
    for row in found["reconstruction"]["prefixes"]:
        bits = row.get("bits", math.nan)
        lines.append(f"{row['tokens']:6d} {bits:6.0f} {row['psnr']:7.2f} {row['ssim']:6.3f}")
    if "samples" in found:
        lines.append("tokens   class agreement   Frechet distance")
        for row in found["samples"]["prefixes"]:
            agreement = row.get("class_agreement", math.nan)
            lines.append(f"{row['tokens']:6d} {agreement:17.3f} {row['frechet_distance']:18.2f}")
    return "results\n" + "\n".join(lines)


def run_sample(exp: Experiment, workdir: str) -> None:
    """Draws `config.sample.per_class` images of every class of `config.sample.classes` (all, when
    empty): pictures/ and samples.npz.

    With `config.sample.source` a picture is edited instead (see editing.py).
    """
    check(exp.generator is not None, "stages", tuple(exp.config.stages), "stages with a generator")
    models = trained(exp, workdir)
    draw = editing.edit if exp.sample.source else draw_classes
    by_the_first(lambda: draw(models, workdir))
    if jax.process_index() == 0 and os.path.isfile(os.path.join(workdir, "results.json")):
        report.write_report(workdir)  # with the new pictures


def run_images(exp: Experiment, workdir: str) -> None:
    """Writes images/{originals,reconstructions,samples}.npz, which nexttok.score reads."""
    models = trained(exp, workdir)
    for path in image_files.write_images(models, workdir):
        log.info("wrote %s", path)


def run_samplers(exp: Experiment, workdir: str, choices: list[str]) -> None:
    """Measures the samplers of a finished run against each other; see comparison.py."""
    check(exp.generator is not None, "stages", tuple(exp.config.stages), "stages with a generator")
    variants = comparison.variants(exp, choices)  # all are checked before any is loaded or run
    done = load_models(exp, workdir)
    models = {
        choice: models_of(other, done | drafting.load_drafter(other, done, workdir))
        for choice, other in variants.items()
    }
    rows = by_the_first(lambda: comparison.compare(models, workdir))
    if rows:
        print(comparison.table(rows))
        log.info("wrote %s", os.path.join(workdir, "samplers.json"))


def draw_classes(models: evaluate.Models, workdir: str) -> None:
    """Draws images of the sampled classes: pictures/ and samples.npz."""
    exp = models.experiment
    labels = np.tile(np.asarray(exp.sampled_classes, np.int32), exp.sample.per_class)
    test = evaluate.held_out(exp, exp.eval.images) if exp.generator.plan.given else {}
    given = evaluate.openings(models, test, labels)
    key = stream(jax.random.key(exp.config.seed), "sample_mode")
    size = min(exp.eval.batch_size, len(labels))
    tokens, _ = evaluate.drawn(models, labels, given, size, stream(key, "ids"))
    made = tokens.shape[1]
    images = {
        n: evaluate.batched(
            lambda i, k, n=n: models.decode(i, n, k), size, tokens, key=stream(key, "decode")
        )
        for n in [n for n in models.lengths if n < made] + [made]
    }
    for path in draw_samples(exp, {"labels": labels, "images": images}, workdir):
        log.info("wrote %s", path)
    path = os.path.join(workdir, "samples.npz")
    np.savez_compressed(path, images=images[made], labels=labels, tokens=tokens)
    log.info("wrote %s", path)


def trained_tokenizer(exp: Experiment, workdir: str) -> evaluate.Models:
    """The finished stages but the generator."""
    stages = tuple(s for s in exp.train if s != "generator")
    return models_of(exp, load_models(exp, workdir, stages))


def run_cluster(exp: Experiment, workdir: str) -> None:
    """Coarse labels of the codes of a trained tokenizer; see clustering.py."""
    models = trained_tokenizer(exp, workdir)
    found = by_the_first(lambda: clustering.run(models, exp.eval.clusters, workdir))
    if found is None:
        return
    print(clustering.table(found))
    log.info("wrote %s", os.path.join(workdir, "clusters.npz"))


def run_tokenize(exp: Experiment, workdir: str) -> None:
    """Writes the tokens of the training data to `config.token_dataset`, or to workdir/tokens.

    The tokenizer is that of the finished stages of the workdir, or of `tokenizer_checkpoint`.
    """
    params = trained_tokenizer(exp, workdir).params["tokenizer"]
    folder = exp.config.token_dataset or os.path.join(workdir, "tokens")
    with alone():
        token_files.tokenize(exp, params, folder)
    barrier("tokens are written")
    log.info("wrote %s", folder)
