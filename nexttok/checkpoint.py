"""Atomic, asynchronous checkpoints (Orbax), each verified by a manifest before it is trusted.

A step is a directory with the items params, ema, opt, rng, data and meta. When its asynchronous
save is known to be complete, a manifest with the size and SHA-256 of every file is written beside
it; a step that no longer agrees with its manifest is refused by name and the one before is used.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from nexttok.config import ConfigError
from nexttok.distributed import barrier
from nexttok.mesh import path_name

log = logging.getLogger("nexttok")


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it stay."""


STATE_ITEMS = ("params", "ema", "opt", "rng")


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(step_dir: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in step_dir.rglob("*") if p.is_file())


def manifest_path(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where a step's manifest lies: beside the step's directory."""
    return directory / f"manifest-{step}.json"


def write_manifest(directory: pathlib.Path, step: int) -> None:
    """Records size and SHA-256 of every file of a committed step."""
    step_dir = directory / str(step)
    rows = {str(p.relative_to(step_dir)): [p.stat().st_size, _digest(p)] for p in _files(step_dir)}
    partial = manifest_path(directory, step).with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1))
    os.replace(partial, manifest_path(directory, step))


def damage(directory: pathlib.Path, step: int) -> str:
    """What is wrong with a step by its manifest: "" when all is well, else the first bad file."""
    path = manifest_path(directory, step)
    if not path.is_file():
        return "it has no manifest: the process ended before the save was known to be complete"
    try:
        rows = [
            (name, size, digest) for name, (size, digest) in json.loads(path.read_text()).items()
        ]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{path} is no manifest"
    for name, size, digest in rows:
        file = directory / str(step) / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file) != digest:
            return f"{file} has changed"
    return ""


def good_steps(directory: str | os.PathLike) -> list[int]:
    """Verified steps, newest first; damaged ones are reported by name."""
    root = pathlib.Path(directory)
    steps = sorted((int(p.name) for p in root.glob("*") if p.name.isdigit()), reverse=True)
    good = []
    for step in steps:
        problem = damage(root, step)
        if problem:
            log.warning("checkpoint %s refused: %s", root / str(step), problem)
        else:
            good.append(step)
    return good


class Checkpoints:
    """The checkpoints of one stage; use as a context manager."""

    def __init__(self, directory: str | os.PathLike, keep: int):
        """Opens (or makes) `directory`; at most `keep` steps stay."""
        self.root = pathlib.Path(directory).absolute()
        self.keep = keep
        self.pending: int | None = None
        self.failed = False
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None, create=True, enable_async_checkpointing=True
        )
        self.manager = ocp.CheckpointManager(self.root, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()
        if not self.failed:  # else closing would raise the same again
            self.manager.close()

    def save(
        self, step: int, items: dict[str, Any], data: dict, meta: dict, wait: bool = False
    ) -> None:
        """Saves in the background; returns once the arrays are copied from the devices.

        Args:
          step: number of finished steps.
          items: {params, ema, opt, rng}, pytrees of arrays.
          data: JSON state of the data iterator.
          meta: JSON facts about the run.
          wait: return only when the step is complete and verified.
        """
        self.wait()
        present = {k: v for k, v in items.items() if jax.tree.leaves(v)}
        with self._saving(step):
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    **{k: ocp.args.StandardSave(v) for k, v in present.items()},
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        self.pending = step
        if wait:
            self.wait()

    def poll(self) -> None:
        """Writes the manifest of a background save that has come to its end; never waits."""
        if self.pending is not None and not self.manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the pending save, writes its manifest, drops steps beyond `keep`."""
        step, self.pending = self.pending, None
        if step is None:
            return
        with self._saving(step):
            self.manager.wait_until_finished()
            if jax.process_index() != 0:
                return
            write_manifest(self.root, step)
        steps = sorted(int(p.name) for p in self.root.glob("*") if p.name.isdigit())
        for step in steps[: -self.keep]:
            manifest_path(self.root, step).unlink(missing_ok=True)
            shutil.rmtree(self.root / str(step))

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turns what goes wrong inside into a SaveError, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:  # of the file system, through any of the layers in between
            self.failed = True
            for path in (*self.root.glob(f"{step}"), *self.root.glob(f"{step}.*"),
                         *self.root.glob(f"manifest-{step}.*")):  # fmt: skip
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            steps = good_steps(self.root)
            kept = f"step {steps[0]} is kept" if steps else "none before it can be read"
            reason = next((line for line in str(error).splitlines() if line), repr(error))
            raise SaveError(
                f"checkpoint {self.root / str(step)} could not be written: {reason}; {kept}. "
                "Make room, or the folder writable, and run the same command again"
            ) from error

    def restore_latest(self, abstract: dict[str, Any]) -> tuple[dict, dict, dict, int] | None:
        """Restores the newest good step, or returns None without one.

        Damaged steps are set aside as <step>.refused, so that the run can save them again.

        Args:
          abstract: {params, ema, opt, rng} of ShapeDtypeStructs with the shardings to restore to,
            which may differ from those saved.

        Returns:
          Items, data state, meta, step.

        Raises:
          ConfigError: the saved arrays are not those of this config.
        """
        barrier("checkpoints are read")  # none is set aside before all have judged it
        steps = good_steps(self.root)
        barrier("checkpoints are judged")
        for path in self.root.glob("*") if jax.process_index() == 0 else ():
            if path.name.isdigit() and int(path.name) not in steps:
                manifest_path(self.root, int(path.name)).unlink(missing_ok=True)
                aside = path.with_suffix(".refused")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        barrier("checkpoints are set aside")
        self.manager.reload()
        if not steps:
            return None
        items, data, meta = _restore(self.root / str(steps[0]), abstract, facts=True)
        return items, data, meta, steps[0]


def _restore(step_dir: pathlib.Path, abstract: dict[str, Any], facts: bool):
    present = {k: v for k, v in abstract.items() if jax.tree.leaves(v)}
    for name, tree in present.items():
        _compare(step_dir, name, tree)
    args = {k: ocp.args.StandardRestore(v) for k, v in present.items()}
    if facts:
        args |= {"data": ocp.args.JsonRestore(), "meta": ocp.args.JsonRestore()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(step_dir, args=ocp.args.Composite(**args))
    items = {k: found[k] if k in present else v for k, v in abstract.items()}
    return items, found.get("data") if facts else None, found.get("meta") if facts else None


def _saved(step_dir: pathlib.Path, item: str) -> Any:
    """Shapes of a saved item; raises ConfigError without one."""
    if not (step_dir / item).is_dir():
        raise ConfigError(f"{step_dir} has no {item}: it belongs to another config")
    with ocp.StandardCheckpointer() as reader:
        return reader.metadata(step_dir / item).item_metadata.tree


def _compare(step_dir: pathlib.Path, item: str, abstract: Any) -> None:
    """Raises ConfigError listing the leaves that differ between a saved item and `abstract`."""
    saved = _saved(step_dir, item)
    have = {path_name(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(saved)}
    want = {path_name(p): tuple(a.shape) for p, a in jax.tree_util.tree_leaves_with_path(abstract)}
    if any(jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) for a in jax.tree.leaves(abstract)):
        return
    problems = [f"missing {n}" for n in sorted(set(want) - set(have))]
    problems += [f"unexpected {n}" for n in sorted(set(have) - set(want))]
    problems += [
        f"{n} is {have[n]} instead of {want[n]}"
        for n in sorted(set(have) & set(want))
        if have[n] != want[n]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; {len(problems) - 8} more" * (len(problems) > 8))
        raise ConfigError(f"{step_dir / item} belongs to another config: {shown}")


def restore_params(
    directory: str | os.PathLike,
    abstract: Any,
    which: str = "ema",
    unused: tuple[str, ...] = (),
    steps_expected: int = 0,
) -> Any:
    """Weights only, from the newest good step of a stage.

    Args:
      directory: <workdir>/checkpoints/<stage>.
      abstract: ShapeDtypeStructs, with shardings.
      which: ema | params.
      steps_expected: of a finished stage; fewer are warned of (imported weights are at step 0).
      unused: top-level names of `abstract` that may be missing and are not returned.

    Raises:
      ConfigError: no good checkpoint, or one of another config.
    """
    steps = good_steps(directory) if pathlib.Path(directory).is_dir() else []
    if not steps:
        raise ConfigError(f"{directory}: expected a finished checkpoint; train this stage first")
    if 0 < steps[0] < steps_expected:
        log.warning("%s is at step %d of %d", directory, steps[0], steps_expected)
    step_dir = pathlib.Path(directory).absolute() / str(steps[0])
    try:
        if unused:
            saved = _saved(step_dir, which)
            abstract = {k: v for k, v in abstract.items() if k in saved or k not in unused}
        found = _restore(step_dir, {which: abstract}, facts=False)[0][which]
    except ConfigError:
        raise
    except Exception as error:  # of a folder that agrees with its manifest and is no checkpoint
        reason = next((line for line in str(error).splitlines() if line), repr(error))
        raise ConfigError(f"{step_dir} cannot be read: {reason[:300]}") from error
    return {k: v for k, v in found.items() if k not in unused}
