"""Sweeps: their members, what runs and what is skipped, and the table of all."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from nexttok import main as cli
from nexttok import sweep
from nexttok.config import ConfigError
from nexttok.config_files import load_config, override
from nexttok.evals import sweeps
from nexttok.evals.results import write_results
from nexttok.sweep import Request
from tests.evals.test_pages import workdir as finished_run

ROOT = pathlib.Path(__file__).parent.parent
SPEC = f"{ROOT}/configs/vqvae.py:tiny"
SIZES = ["size=64", "size=256", "size=1024"]


def test_a_config_has_its_own_sweep_and_values_have_products():
    assert list(sweep.members(Request(SPEC, ("seed=3",)))) == SIZES
    rates = f"{ROOT}/configs/llamagen.py"
    assert len(sweep.members(Request(rates))) == 3
    values = ("train.tokenizer.learning_rate=1e-3;3e-3", "config.data.source=digits;shapes")
    found = sweep.members(Request(SPEC, values=(*values, "stages=tokenizer")))
    assert list(found)[1] == "learning_rate=1e-3,source=shapes,stages=tokenizer"
    changes, exp = found["learning_rate=3e-3,source=digits,stages=tokenizer"]
    assert exp.train["tokenizer"].learning_rate == 3e-3
    assert changes[1] == "data.source=digits"
    assert sweep.name_of(["data.source=folder:/a b/c"]) == "source=folder_a_b_c"


def test_shares_part_the_members():
    shares = [list(sweep.shared_out(5, f"{i}/2")) for i in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
    assert list(sweep.shared_out(2, "")) == [0, 1]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(f"{ROOT}/configs/var.py"), r"expected KEY=A;B, as .* has no get_sweep"),
        (Request(SPEC, values=("seed",)), "--sweep = 'seed': expected KEY=A;B"),
        (Request(SPEC, values=("seed=0;0",)), "two members are named seed=0"),
        (Request(SPEC, values=("seed=0;x",)), "config.seed = 'x': expected a value of type int"),
        (Request(SPEC, values=("data.resolution=16;17",)), "config.data.resolution = 17"),
        (Request(SPEC, share="2/2"), r"--share = '2/2': expected I/N with I of 0 \.\. N - 1"),
    ],
)
def test_mistakes_end_it_before_anything_runs(request_, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a member ran"))
    with pytest.raises(ConfigError, match=message):
        sweep.run(request_, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(name="trained")
def _trained(monkeypatch):
    """Members that train at once; those of size 256 fail the first time."""
    ran = []

    def train(request, changes, folder):
        failed = changes[0].endswith("=256") and folder.name not in ran
        ran.append(folder.name)
        if failed:
            return 1
        finished_run(folder, "vqvae")
        config = load_config(request.spec)
        for change in changes:
            override(config, change)
        write_results(folder / "config.json", json.loads(config.to_json()))
        return 0

    monkeypatch.setattr(sweep, "train", train)
    return ran


def test_finished_members_are_skipped_and_failed_ones_tried_again(trained, tmp_path, capsys):
    words = ["--mode=sweep", f"--config={SPEC}", f"--workdir={tmp_path}"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "error: 1 of 3 members failed: size=256"
    assert trained == SIZES
    assert said.out.count("\n") == 4  # a head and two members
    cli.main(words)
    assert trained == [*SIZES, "size=256"]
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| tokenizer.bottleneck.size | bits | PSNR | SSIM | agreement |")
    assert [row.split()[1] for row in rows[2:]] == ["64", "256", "1024"]
    cli.main(words)
    assert len(trained) == 4
    assert sweeps.main([str(tmp_path / "size=64"), str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):  # results of another config are not taken for its own
        cli.main([*words, "--config.seed=1"])
    assert "config.seed = 1: expected 0" in capsys.readouterr().err


def test_a_share_trains_its_own_members(trained, tmp_path):
    cli.main(["--mode=sweep", f"--config={SPEC}", f"--workdir={tmp_path}", "--share=0/2"])
    assert trained == ["size=64", "size=1024"]


def test_a_stopped_member_stops_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: sweep.STOPPED)
    with pytest.raises(SystemExit) as stopped:
        sweep.run(Request(SPEC), str(tmp_path))
    assert stopped.value.code == 143


def test_sigterm_is_handed_on(tmp_path, monkeypatch):
    code = (
        "import os, signal, sys, time; time.sleep(0.5); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        "os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    )
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _: start([sys.executable, "-c", code]))
    before = signal.getsignal(signal.SIGTERM)
    assert sweep.train(Request(SPEC), (), tmp_path) == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_sweep_trains_for_real_without_taking_the_devices_itself(tmp_path):
    code = (
        "import sys; from nexttok import main; main.main(sys.argv[1:]); "
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    words = [
        "--mode=sweep", f"--config={SPEC}", f"--workdir={tmp_path}", "--sweep", "seed=0;1",
        "--config.train.tokenizer.steps=20", "--config.eval.classifier_steps=5",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[1] for row in rows[-4:]] == ["seed", "---", "0", "1"]
