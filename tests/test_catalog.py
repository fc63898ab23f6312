"""What `--list` says of the configs."""

import pathlib
import sys

import pytest

from nexttok import config_files, main
from nexttok.catalog import brief, listing, row
from nexttok.experiment import resolve

ROOT = pathlib.Path(__file__).parent.parent
NAMES = {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "common", "tokenizers"}


def test_every_config_has_one_line_and_resolves():
    head, *lines = listing().splitlines()
    assert head.split()[:6] == ["config", "tokenizer", "plan", "context", "head", "sampler"]
    paths = [line.split()[0] for line in lines]
    assert paths == [f"configs/{name}.py" for name in sorted(NAMES)]
    for path in paths:
        exp = resolve(config_files.load_config(path))
        assert (row(path)[2] == "-") == (exp.generator is None)


def test_a_line_says_what_the_config_says():
    assert row("configs/var.py") == (
        "configs/var.py", "conv, multiscale", "scales", "upsample", "categorical", "plan",
        "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (VAR, "
        "Tian et al., 2024): digits tiny imagenet256_d16|d20|d24|d30 imagenet512_d36",
    )  # fmt: skip
    assert row("configs/vqvae.py")[1:6] == ("strided, vq", "-", "-", "-", "-")
    assert brief(("a", "b_x", "b_y", "c_x")) == "a b_x|y c_x"


def test_a_word_picks_lines(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--list=Upsample"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["configs/nfig.py", "configs/var.py"]


def test_a_library_config_is_found_from_anywhere_and_a_file_of_ones_own_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert config_files.load_config("configs/var.py:tiny").name == "var"
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "vqvae.py").read_text()
    for name in ("var", "mine"):
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    assert config_files.load_config("configs/var.py:tiny").name == "vqvae"
    assert "configs/mine.py" in config_files.papers()
