"""Many runs of one config, one after the other: `--mode=sweep`.

A member is the config with some values changed; it runs as a process of its own, as the same
command without the sweep would, in a folder of the sweep's workdir that its values name. Members
that are finished are skipped, so that the same command goes on where a sweep stopped.
"""

import dataclasses
import itertools
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from nexttok.config import ConfigError
from nexttok.config_files import load_config, load_module, override
from nexttok.evals.sweeps import table
from nexttok.experiment import Experiment, resolve
from nexttok.run import check_owner

log = logging.getLogger("nexttok")

STOPPED = 143  # status of a run that SIGTERM ended, its state saved


class SweepError(RuntimeError):
    """Some members failed; told in one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
      spec: "path.py[:variant]".
      overrides: "a.b=value" of every member.
      values: "a.b=1;2;3", of whose products the members are; () for the config's own sweep.
      share: "i/n": only every n-th member, from the i-th on; "" for all.
      flags: handed on to every run.
    """

    spec: str
    overrides: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    share: str = ""
    flags: tuple[str, ...] = ()


def assignments(request: Request) -> list[tuple[str, ...]]:
    """What every member changes, as "a.b=value".

    Raises:
      ConfigError: nothing to sweep over, or a mistake in it.
    """
    if not request.values:
        module, variant = load_module(request.spec)
        if not hasattr(module, "get_sweep"):
            raise ConfigError(f"--sweep: expected KEY=A;B, as {request.spec} has no get_sweep")
        found = module.get_sweep(variant) if variant else module.get_sweep()
        return [tuple(f"{key}={value}" for key, value in one.items()) for one in found]
    choices = []
    for text in request.values:
        key, equals, values = text.removeprefix("config.").partition("=")
        if not equals or not values:
            raise ConfigError(f"--sweep = {text!r}: expected KEY=A;B")
        choices.append([f"{key}={value.strip()}" for value in values.split(";")])
    return list(itertools.product(*choices))


def name_of(changes: Sequence[str]) -> str:
    """A folder's name: the last words of the keys, with their values."""
    words = []
    for change in changes:
        key, _, value = change.partition("=")
        words.append(f"{key.split('.')[-1]}={value}")
    return re.sub(r"[^\w.=,+-]+", "_", ",".join(words))


def shared_out(count: int, share: str) -> range:
    """The numbers of a share "i/n" of `count` members; all for "".

    Raises:
      ConfigError: anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", share or "0/1")
    first, ways = map(int, match.groups()) if match else (0, 0)
    if not first < ways:
        raise ConfigError(f"--share = {share!r}: expected I/N with I of 0 .. N - 1")
    return range(first, count, ways)


def members(request: Request) -> dict[str, tuple[tuple[str, ...], Experiment]]:
    """The members by name, each with what it changes, checked as its own run would be.

    Raises:
      ConfigError: a member that is no valid config, or two of one name.
    """
    found = {}
    for changes in assignments(request):
        config: ConfigDict = load_config(request.spec)
        for assignment in (*request.overrides, *changes):
            override(config, assignment)
        name = name_of(changes)
        if name in found:
            raise ConfigError(f"--sweep: two members are named {name}; expected different values")
        found[name] = (changes, resolve(config))
    return found


def finished(exp: Experiment, folder: pathlib.Path) -> bool:
    """Whether a member has its results.

    Raises:
      ConfigError: the folder belongs to another config.
    """
    check_owner(exp, str(folder))
    return (folder / "results.json").is_file()


def train(request: Request, changes: Sequence[str], folder: pathlib.Path) -> int:
    """Runs a member; returns the exit status. SIGTERM is handed on, so that it saves."""
    words = [f"--config.{text}" for text in (*request.overrides, *changes)]
    command = [sys.executable, "-m", "nexttok.main", f"--config={request.spec}"]
    child = subprocess.Popen([*command, f"--workdir={folder}", *request.flags, *words])
    before = signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def run(request: Request, workdir: str) -> None:
    """Trains the members of a share that are not finished, and prints the table of all that are.

    Raises:
      ConfigError: a member that is no valid config; nothing runs then.
      SweepError: some failed, after the others have run.
      SystemExit: a member was stopped by SIGTERM, and the sweep with it.
    """
    found, root = members(request), pathlib.Path(workdir)
    names, failed = list(found), []
    mine = [names[i] for i in shared_out(len(names), request.share)]
    todo = [name for name in mine if not finished(found[name][1], root / name)]
    log.info("sweep of %d: %d to train here, %d finished", len(names), len(todo),
             len(mine) - len(todo))  # fmt: skip
    for i, name in enumerate(todo):
        log.info("member %d of %d: %s", i + 1, len(todo), name)
        status = train(request, found[name][0], root / name)
        if status in (STOPPED, -signal.SIGTERM):
            raise SystemExit(STOPPED)
        if status:
            log.error("%s ended with status %d", name, status)
            failed.append(name)
    done = [os.path.join(workdir, n) for n in names if (root / n / "results.json").is_file()]
    if done:
        print(table(done))
    if failed:
        raise SweepError(f"{len(failed)} of {len(todo)} members failed: {', '.join(failed)}")
