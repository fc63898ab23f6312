"""Every converter is listed with its files, and every file with a command that is one."""

import ast
import importlib
import pathlib
import shlex

import pytest

from nexttok import importing, interop
from nexttok.config_files import load_config, variants_of
from nexttok.interop import releases
from nexttok.interop.__main__ import main, parse
from nexttok.score import __main__ as score
from tests.test_configs import ROOT

SHARED = ("__init__", "__main__", "blocks", "checkpoints", "export", "pickles", "releases",
          "tensors", "ucf101")  # fmt: skip
RELEASES = [(n, r) for n, s in importing.SYSTEMS.items() for r in s.releases]


def test_every_converter_is_listed():
    """A file of the folder that is no shared part has a table, which the listing prints."""
    folder = pathlib.Path(interop.__file__).parent
    text = releases.listing(importing.SYSTEMS, importing.NETWORKS)
    listed = [s.releases for s in importing.SYSTEMS.values()] + list(importing.NETWORKS.values())
    for name in sorted({p.stem for p in folder.glob("*.py")} - set(SHARED)):
        module = importlib.import_module(f"nexttok.interop.{name}")
        tables = [t for t in vars(module).values()
                  if isinstance(t, tuple) and t and isinstance(t[0], releases.Release)]  # fmt: skip
        assert tables, f"interop/{name}.py: what its authors publish (see releases.py)"
        assert all(table in listed for table in tables), name
        for release in (r for table in tables for r in table):
            assert release.file in text
            assert release.source in text
    assert all(callable(system.convert) for system in importing.SYSTEMS.values())
    assert all(system.releases for system in importing.SYSTEMS.values())


@pytest.mark.parametrize("system", importing.SYSTEMS)
def test_listed_configs_exist_and_commands_parse(system, monkeypatch):
    monkeypatch.chdir(ROOT)
    known = importing.SYSTEMS[system]
    assert pathlib.Path(f"configs/{known.config}.py").is_file()
    for release, command in releases.conversions(importing.SYSTEMS, system):
        for config in release.configs:
            paper, _, variant = config.partition(":")
            assert variant in variants_of(f"configs/{paper}.py")
        assert release.source.startswith("https://")
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "nexttok.interop"]
        args = parse(words[3:])
        assert args.systems[0] == system
        assert args.checkpoints[0] == release.file
        stages = [importing.SYSTEMS[s].stage for s in args.systems]
        if known.stage == "generator":
            assert set(stages) == set(load_config(args.config).stages)


def test_every_released_size_of_a_config_is_listed_or_known_not_to_be(monkeypatch):
    """Paper-scale variants that have no file: their authors have not published it by name."""
    monkeypatch.chdir(ROOT)
    listed = {c for _, release in RELEASES for c in release.configs}
    papers = {system.config for system in importing.SYSTEMS.values()}
    sizes = {f"{paper}:{v}" for paper in papers for v in variants_of(f"configs/{paper}.py")
             if v.startswith(importing.PAPER_SCALE)}  # fmt: skip
    assert sizes - listed == {
        "nbp:imagenet256_base", "nbp:imagenet256_xl", "nbp:imagenet256_3b",
        "gigatok:imagenet256_ss_2d", "gigatok:imagenet256_sb_2d", "gigatok:imagenet256_bl_2d",
        "slate:clevr128",
    }  # fmt: skip


def test_the_list_on_the_command_line(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "--system=var,var_vqvae --checkpoint=var_d16.pth,vae_ch160v4096z32.pth" in said
    assert "python -m nexttok.main --mode=sample --config.params=runs/var_imagenet256_d16" in said
    assert "https://huggingface.co/FoundationVision/var" in said
    for words in ([], ["--system=var"], ["--export=runs/a"],
                  ["--system=var,var_vqvae", "--checkpoint=a.pth", "--out=b"]):  # fmt: skip
        with pytest.raises(SystemExit):
            main(words)


def test_flags_of_frozen_networks_are_keys_of_a_config_or_flags_of_scores(monkeypatch):
    monkeypatch.chdir(ROOT)
    source = "".join(p.read_text() for p in pathlib.Path("configs").glob("*.py"))
    keys = {k.arg for node in ast.walk(ast.parse(pathlib.Path("configs/common.py").read_text()))
            if isinstance(node, ast.Call) for k in node.keywords}  # fmt: skip
    for flags in (r.configs for table in importing.NETWORKS.values() for r in table):
        if not flags[0].startswith("--config."):
            assert score.parse(["real", "fake", *flags]).metrics
            continue
        for flag in flags:
            name = flag.partition("=")[0].rpartition(".")[2]
            assert name in keys or f"{name}=" in source
