"""Where the parameters of finished stages come from: workdirs, and files that an export wrote."""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nexttok import experiment
from nexttok.checkpoint import restore_params
from nexttok.config import ConfigError, check, read_json, tuples
from nexttok.distributed import on_this_host
from nexttok.experiment import TRAINING_ONLY, Experiment
from nexttok.interop import export
from nexttok.mesh import make_mesh, path_name
from nexttok.stages import abstract_params

log = logging.getLogger("nexttok")

# Keys of sections that keep the meaning of the steps already done: these may change.
FREE_KEYS = (
    "learning_rate", "final_learning_rate", "clip", "log_every", "save_every", "keep", "workers",
    "prefetch", "remat", "unroll", "zero",
)  # fmt: skip
RUN = "the workdir of a finished run, or a file that python -m nexttok.interop --export wrote"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The workdir of a run, trained or converted; `field` is the config key that errors name."""

    path: pathlib.Path
    field: str

    @property
    def config(self) -> dict:
        """The run's config."""
        return read_json(self.path / "config.json", self.field, RUN)

    def holds(self, stage: str) -> bool:
        """Whether the stage was begun here."""
        return (self.path / "checkpoints" / stage).is_dir()

    def load(self, exp: Experiment, stage: str, mesh) -> Any:
        """Its moving average, if it has one, without what only training reads."""
        which = "ema" if exp.train[stage].ema else "params"
        directory = os.path.join(self.path, "checkpoints", stage)
        shapes, steps = abstract_params(exp, stage, mesh), exp.train[stage].steps
        return restore_params(directory, shapes, which, TRAINING_ONLY, steps)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that `export_run` wrote; `field` is the config key that errors name."""

    path: pathlib.Path
    field: str

    @property
    def config(self) -> dict:
        """The config of the run that was exported."""
        return export.header(self.path, self.field)[0]

    def holds(self, stage: str) -> bool:
        """Whether the stage is in the file."""
        return stage in export.header(self.path, self.field)[1]

    def load(self, exp: Experiment, stage: str, mesh) -> Any:
        """The stage's parameters, laid out over the mesh."""
        shapes = abstract_params(exp, stage, mesh)
        shapes = {k: v for k, v in shapes.items() if k not in TRAINING_ONLY}
        arrays = export.arrays(self.path, stage, self.field)
        where = f"config.{self.field} = {str(self.path)!r}: {stage}"
        fits(arrays, named(shapes), where)
        return jax.tree_util.tree_map_with_path(
            lambda path, a: _placed(arrays[path_name(path)], a.sharding), shapes
        )


def _placed(array: np.ndarray, sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def named(tree: Any) -> dict[str, Any]:
    """Leaves by the path of their names."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fits(arrays: dict[str, np.ndarray], shapes: dict[str, Any], where: str) -> None:
    """Raises ConfigError unless the arrays are those wanted, by name, shape and dtype."""
    problems = [f"missing {n}" for n in sorted(shapes.keys() - arrays.keys())]
    problems += [f"unexpected {n[:200]}" for n in sorted(arrays.keys() - shapes.keys())]
    for name in sorted(arrays.keys() & shapes.keys()):
        have, want = arrays[name], shapes[name]
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            problems.append(
                f"{name} is {have.dtype}{have.shape} instead of {want.dtype}{want.shape}"
            )
    if problems:
        more = f"; {len(problems) - 8} more" * (len(problems) > 8)
        raise ConfigError(f"{where} does not fit the config: {'; '.join(problems[:8])}{more}")


def origin(path: str, field: str) -> Workdir | Exported:
    """The workdir or the exported file at `path`.

    Raises:
      ConfigError: neither.
    """
    found = pathlib.Path(path)
    if found.suffix == ".safetensors":
        check(found.is_file(), field, path, RUN)
        return Exported(found, field)
    check((found / "config.json").is_file(), field, path, RUN)
    return Workdir(found, field)


def origins(params: str) -> list[Workdir | Exported]:
    """What `config.params` names: one or several, joined by commas."""
    return [origin(path.strip(), "params") for path in params.split(",") if path.strip()]


def same(saved: Any, mine: Any, where: str, why: str) -> None:
    """Raises ConfigError at the first key in which two config sections differ."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        for key in sorted(set(saved) | set(mine)):
            same(saved.get(key), mine.get(key), f"{where}.{key}" if where else key, why)
    elif saved != mine and where.split(".")[-1] in FREE_KEYS:
        log.warning("config.%s = %r from here on; it was %r", where, mine, saved)
    elif saved != mine:
        raise ConfigError(f"config.{where} = {mine!r}: expected {saved!r}, {why}")


def _check_sections(exp: Experiment, found: Workdir | Exported, sections: list[str], why: str):
    saved, mine = found.config, json.loads(exp.config.to_json())
    for section in sections:
        same(saved.get(section), mine[section], section, why)


def given_stages(exp: Experiment, mesh) -> dict[str, Any]:
    """Parameters of the stages that `config.params` holds; the first that has a stage gives it."""
    done = {}
    for found in origins(exp.config.params):
        held = [s for s in exp.train if s not in done and found.holds(s)]
        _check_sections(exp, found, held, f"as in {found.path}")
        done |= {s: found.load(exp, s, mesh) for s in held}
    return done


def reused_stages(exp: Experiment, mesh) -> dict[str, Any]:
    """Parameters of the stages that `config.tokenizer_checkpoint` replaces."""
    path = exp.config.tokenizer_checkpoint
    if not path:
        return {}
    found = origin(path, "tokenizer_checkpoint")
    _check_sections(exp, found, ["latent", "tokenizer"], f"as in {path}")
    return {s: found.load(exp, s, mesh) for s in exp.train if s != "generator"}


def load_models(exp: Experiment, workdir: str, stages: tuple[str, ...] = ()) -> dict[str, Any]:
    """As `placed_models`, on this host."""
    mesh = make_mesh(exp.mesh)
    return on_this_host(placed_models(exp, workdir, mesh, stages), mesh)


def placed_models(
    exp: Experiment, workdir: str, mesh, stages: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Parameters of finished stages, where the mesh places them.

    They are those of `config.params`; of what it lacks, those of `config.tokenizer_checkpoint`;
    without `config.params`, the others are the workdir's.

    Args:
      exp: of the same config.
      workdir: of a run.
      mesh: see above.
      stages: those wanted, () for all.

    Raises:
      ConfigError: there is no such run, or one of another config.
    """
    wanted = stages or tuple(exp.train)
    done = given_stages(exp, mesh)
    if set(wanted) - set(done):
        done = reused_stages(exp, mesh) | done
    lacking = [s for s in wanted if s not in done]
    if lacking and exp.config.params:
        check(False, "params", exp.config.params,
              f"weights of the {' and the '.join(lacking)}, too: of another folder or file, joined "
              "by a comma")  # fmt: skip
    if lacking:
        if not (pathlib.Path(workdir) / "config.json").is_file():
            raise ConfigError(f"--workdir = {workdir!r}: expected the workdir of a trained run")
        found = Workdir(pathlib.Path(workdir), "workdir")
        reused = found.config.get("tokenizer_checkpoint", "")
        own = not reused or {"latent", "tokenizer"}.isdisjoint(lacking)
        given = exp.config.tokenizer_checkpoint
        check(own, "tokenizer_checkpoint", given, f"{reused!r}, as {workdir} was trained with")
        sections = ["latent", "tokenizer", "generator"]
        _check_sections(exp, found, sections, f"as {workdir} was trained with")
        done |= {s: found.load(exp, s, mesh) for s in lacking}
    return done


def config_of(params: str) -> ConfigDict:
    """The config of what `config.params` names: of that which holds the generator, else the first.

    Raises:
      ConfigError: none, or one that does not resolve.
    """
    found = origins(params)
    check(bool(found), "params", params, RUN)
    first = next((f for f in found if f.holds("generator")), found[0])
    try:
        config = ConfigDict(tuples({"params": ""} | first.config))
        experiment.resolve(config)
    except ConfigError:
        raise
    except Exception as error:  # written by whomever, it may break any part
        raise ConfigError(f"config.params = {str(first.path)!r}: its config: {error}") from error
    return config


def export_run(path: str, out: str) -> int:
    """Writes all stages of a finished run, a reused tokenizer included, into one file.

    Args:
      path: its workdir, or another export.
      out: *.safetensors to write, whole or not at all.

    Returns:
      The number of parameters.

    Raises:
      ConfigError: no finished run, values that are not finite, or a file that cannot be written.
    """
    check(pathlib.Path(out).suffix == ".safetensors", "out", out, "a file ending in .safetensors")
    config = config_of(path)
    config.params = path
    done = load_models(experiment.resolve(config), path)
    config.params = config.tokenizer_checkpoint = ""
    arrays = {
        f"{stage}/{n}": np.asarray(a) for stage in done for n, a in named(done[stage]).items()
    }
    export.write(pathlib.Path(out), arrays, config.to_json())
    return sum(a.size for a in arrays.values())
