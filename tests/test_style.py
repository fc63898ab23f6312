"""Formatting, import rules, and a lean import."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def call(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [("check", "."), ("format", "--check", ".")])
def test_ruff(command):
    call(sys.executable, "-m", "ruff", *command)


def test_import_rules():
    call(str(pathlib.Path(sys.executable).parent / "lint-imports"))


def test_import_is_quick_and_pulls_in_neither_tensorflow_nor_torch():
    code = (
        "import time; t = time.perf_counter(); import nexttok, nexttok.main; "
        "quick = time.perf_counter() - t; import nexttok.run, sys; "
        "heavy = {'tensorflow', 'torch'} & set(sys.modules); print(quick, heavy); "
        "assert quick < 3 and not heavy"
    )
    call(sys.executable, "-c", code)


def test_files_stay_short():
    long = {
        str(p.relative_to(ROOT)): n
        for p in ROOT.glob("nexttok/**/*.py")
        if (n := p.read_text().count("\n")) > 450
    }
    assert not long
