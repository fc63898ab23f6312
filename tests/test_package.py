"""The library as others see it: its public names, and what is installed."""

import inspect
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest

import nexttok
from nexttok import main

ROOT = pathlib.Path(__file__).parent.parent


def call(code, **options):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_documented_and_load_late():
    held = [name for names in nexttok._WHERE.values() for name in names]
    assert sorted(held) == sorted(nexttok.__all__)
    assert all(inspect.getdoc(getattr(nexttok, name)) for name in nexttok.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nexttok.nothing
    config = "nexttok.load_config('configs/var.py:tiny').name"
    loaded = call(f"import nexttok, sys; print({config}, 'jax' in sys.modules)", cwd=ROOT)
    assert loaded.split() == ["var", "False"]


def test_the_readme_ends_in_the_changes_of_this_version():
    last = (ROOT / "README.md").read_text().split("\n## ")[-1]
    assert last.startswith("Changelog")
    versions = re.findall(r"^- \*\*(\d+)\.(\d+)\.(\d+)\*\*", last, re.MULTILINE)
    assert ".".join(versions[0]) == nexttok.__version__
    numbers = [tuple(map(int, v)) for v in versions]
    assert numbers == sorted(numbers, reverse=True)


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    paths = re.findall(r"\b((?:nexttok|configs|tests|launch|notebooks)/[\w/]+\.\w+)", text)
    assert len(set(paths)) > 50
    assert [p for p in set(paths) if not (ROOT / p).exists()] == []


def test_commands_of_the_readme_are_understood():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    python -m nexttok\.main (.*)$", text, re.MULTILINE)
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command.partition("#")[0])
        if words[0] in ("--help", "--list"):
            continue
        args, overrides = main.parse_arguments(words)
        if not args.config:  # that of weights which are not here
            continue
        config = nexttok.load_config(args.config)
        for assignment in overrides:
            nexttok.override(config, assignment)
        if not any("=runs/" in assignment for assignment in overrides):  # which is not here
            nexttok.resolve(config)


@pytest.mark.slow
def test_a_wheel_works_from_anywhere(tmp_path):
    source, site, elsewhere = (tmp_path / name for name in ("source", "site", "elsewhere"))
    for folder in ("nexttok", "configs"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}"]
    subprocess.run([*pip, str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
        assert "nexttok/py.typed" in wheel.namelist()
        (needs,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
        text = wheel.read(needs).decode()
    assert "Requires-Dist: jax==" in text
    assert "pytest" not in re.findall(r"Requires-Dist: (\w+)", text)
    assert {p.name for p in site.iterdir()} == {
        "nexttok", f"nexttok-{nexttok.__version__}.dist-info"
    }  # fmt: skip
    elsewhere.mkdir()
    code = (
        "import nexttok; exp = nexttok.resolve(nexttok.load_config('configs/var.py')); "
        "import configs; print(exp.config.name, nexttok.__file__, configs.__file__)"
    )
    found = call(code, cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}).split()
    assert found[0] == "var"
    assert all(str(site) in path for path in found[1:])
