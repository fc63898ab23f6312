"""Several processes on this machine: the same losses as one, and the same after faults."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nexttok.checkpoint import good_steps
from nexttok.config import ConfigError
from nexttok.distributed import start
from nexttok.progress import RATES

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "configs/flextok.py:tiny"
STEPS = 12
OPTIONS = [
    "--config.stages=tokenizer", "--config.eval.images=8", "--config.eval.classifier_steps=1",
    "--config.eval.batch_size=8",
    *(f"--config.train.tokenizer.{name}={value}" for name, value in dict(
        steps=STEPS, batch_size=16, warmup=2, log_every=2, save_every=2).items()),
]  # fmt: skip


def environment(devices, **changes):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | changes


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def together(workdir, **changes):
    """launch/local.sh with two processes of four devices."""
    settings = dict(PROCESSES="2", FOREGROUND="1", PORT=str(free_port()), WORKDIR=str(workdir))
    return subprocess.Popen(
        [ROOT / "launch" / "local.sh", CONFIG, *OPTIONS],
        env=environment(4, PYTHON=sys.executable, **settings, **changes),
    )  # fmt: skip


def rows(workdir):
    """The metrics, without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in row.items() if k not in RATES} for row in found]


def same(workdir, expected, after=0):
    found, expected = ([r for r in x if r["step"] > after] for x in (rows(workdir), expected))
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for got, row in zip(found, expected, strict=True):
        for name in ("loss", "gradient_norm"):
            assert got[name] == pytest.approx(row[name], rel=2e-5), (row["step"], name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Metrics of one process of eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "nexttok.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    subprocess.run([*command, *OPTIONS], env=environment(8), cwd=ROOT, check=True, timeout=400)
    return rows(workdir)


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one(alone, tmp_path):
    assert together(tmp_path).wait(timeout=400) == 0, (tmp_path / "log.1").read_text()[-2000:]
    same(tmp_path, alone)
    assert good_steps(tmp_path / "checkpoints" / "tokenizer")[0] == STEPS
    assert json.loads((tmp_path / "results.json").read_text())["reconstruction"]


def child(process):
    """Process number `process` of those that a shell started; None before it runs."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for pid in found.stdout.split():
        line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "--process=1" in line:
            return int(pid)
    return None


def reach(process, workdir, step):
    """Waits until the run has logged a step."""
    until = time.monotonic() + 300
    while not any(r["step"] >= step for r in rows(workdir)):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_of_one_process_changes_nothing(alone, tmp_path):
    process = together(tmp_path)
    reach(process, tmp_path, random.randrange(2, STEPS - 2, 2))
    os.kill(child(process), signal.SIGKILL)
    assert process.wait(timeout=400) == 0
    same(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_of_one_process_saves_and_stops_all_at_one_step(alone, tmp_path):
    process = together(tmp_path)
    reach(process, tmp_path, 2)
    os.kill(child(process), signal.SIGTERM)
    assert process.wait(timeout=400) == 143
    saved = good_steps(tmp_path / "checkpoints" / "tokenizer")[0]
    assert 2 <= saved < STEPS
    assert together(tmp_path).wait(timeout=400) == 0
    same(tmp_path, alone, after=saved + 2)  # behind the window that the stop cut in two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(processes=2), r"distributed\.coordinator = ''"),
        (dict(coordinator="host", processes=2, process=0), r"distributed\.coordinator = 'host'"),
        (dict(coordinator="host:1", process=0), r"distributed\.processes = 0"),
        (dict(coordinator="host:1", processes=2, process=2), r"distributed\.process = 2"),
    ],
)
def test_half_a_description_of_the_processes_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        start(**words)


def test_alone_nothing_is_joined():
    start()
    assert jax.process_count() == 1
    assert np.asarray(jax.devices()).size == jax.local_device_count()
