"""Where the parameters of what guesses for a sampler come from.

<workdir>/drafters/<name>/{config.json, checkpoints, metrics.jsonl}   written by --mode=draft
<config.sampler.draft>/checkpoints/generator                          of another run
"""

import json
import os
import pathlib
from typing import Any

import jax

from nexttok import token_files
from nexttok.config import check, read_json
from nexttok.distributed import on_this_host
from nexttok.evals import results
from nexttok.experiment import DRAFTER, Experiment
from nexttok.mesh import make_mesh
from nexttok.samplers.options import TRAINED
from nexttok.weights import Workdir, load_models, same


def folder_of(exp: Experiment, workdir: str) -> str:
    """Of the trained drafter of a run."""
    return os.path.join(workdir, "drafters", exp.config.drafter.name)


def check_drafter(exp: Experiment, workdir: str, there: bool = True) -> dict:
    """Raises ConfigError unless the drafter of a run belongs to this config.

    Args:
      there: it has to be there, however it was trained; else it may be trained further.

    Returns:
      What of the config decides.
    """
    folder, config = folder_of(exp, workdir), json.loads(exp.config.to_json())
    path = pathlib.Path(folder) / "config.json"
    mine = {name: config[name] for name in ("latent", "tokenizer", "generator", "drafter")}
    mine["train"] = {DRAFTER: config["train"][DRAFTER]}
    if path.is_file():
        saved = read_json(path, "drafter", "a folder that --mode=draft wrote")
        for section in sorted({*saved, *mine} - ({"train"} if there else set())):
            why = f"as {folder} was started with; delete it to start anew"
            same(saved.get(section), mine.get(section), section, why)
    made = path.is_file() or not there
    check(made, "sampler.name", exp.sampler.name, f"--mode=draft on {workdir} before")
    return mine


def open_drafter(exp: Experiment, workdir: str) -> None:
    """Makes the folder of a run's drafter, or checks that it belongs to this config."""
    mine, path = check_drafter(exp, workdir, False), pathlib.Path(folder_of(exp, workdir))
    if jax.process_index() == 0:
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(mine, indent=2, sort_keys=True) + "\n"
        results.write_text(path / "config.json", text)


def load_drafter(exp: Experiment, done: dict[str, Any], workdir: str) -> dict[str, Any]:
    """{"drafter": parameters of what guesses for `config.sampler`}, {} where nothing else does.

    Args:
      exp, done, workdir: of a run: its config, its finished stages on this host, and where it is.

    Raises:
      ConfigError: it is not there, or of another config or tokenizer than the finished stages.
    """
    if exp.sampler.name in TRAINED:
        check_drafter(exp, workdir)
        mesh, found = make_mesh(exp.mesh), pathlib.Path(folder_of(exp, workdir))
        params = Workdir(found, "drafter").load(exp.drafting_only, DRAFTER, mesh)
        return {DRAFTER: on_this_host(params, mesh)}
    if exp.draft is None:
        return {}
    theirs = load_models(exp.draft, exp.sampler.draft)
    latent = lambda held: {"latent": held["latent"]} if "latent" in held else {}
    hashes = {token_files.digest(held["tokenizer"] | latent(held)) for held in (theirs, done)}
    allowed = "a run of the same tokenizer, such as config.tokenizer_checkpoint gives"
    check(len(hashes) == 1, "sampler.draft", exp.sampler.draft, allowed)
    return {DRAFTER: theirs["generator"]}
