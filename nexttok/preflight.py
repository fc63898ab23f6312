"""What is found out before a run writes anything: data, files, sizes, optimizers, the mesh."""

import pathlib

from nexttok.config import check
from nexttok.data.loader import load_source
from nexttok.experiment import Experiment
from nexttok.stages import check_batches, checkpoints, make_task
from nexttok.train import abstract_state


def check_run(exp: Experiment, mesh) -> None:
    """Opens both splits, looks for the files of frozen networks, and builds every stage's state.

    States are abstract: nothing is computed. Stages that `tokenizer_checkpoint` replaces need none.

    Raises:
      ConfigError: the first of these that is missing or does not fit.
    """
    check_batches(exp, mesh)
    for split in ("train", "test"):
        load_source(exp.data, split, exp.config.seed)
    for stage, cfg in exp.train.items():
        if exp.config.tokenizer_checkpoint and stage in ("latent", "tokenizer"):
            continue
        check_files(exp, stage)
        abstract_state(make_task(exp, stage), cfg, mesh)


def check_files(exp: Experiment, stage: str) -> None:
    """Raises ConfigError unless the files of the networks that a stage reads frozen are there."""
    named = {"perceptual": "perceptual_checkpoint", "judge": "discriminator_checkpoint"}
    where = f"{stage}.losses" if "losses" in exp.config.get(stage, ()) else stage
    files = {f"{where}.{named[k]}": v for k, v in checkpoints(exp, stage).items()}
    if exp.config.features.name == "dinov2" and stage == "tokenizer":
        files["features.checkpoint"] = exp.config.features.checkpoint
    for field, names in files.items():
        for name in filter(None, map(str.strip, names.split(","))):
            check(pathlib.Path(name).is_file(), field, names, f"files that exist, not {name!r}")
