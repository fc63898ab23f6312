"""Drafters of runs: trained, loaded again, refused; and the same on the command line."""

import json

import jax
import numpy as np
import pytest

from configs import llamagen, maskgit
from nexttok import drafting, run
from nexttok.config import ConfigError
from nexttok.experiment import DRAFTER, resolve
from nexttok.main import main
from nexttok.mesh import MeshConfig, make_mesh
from nexttok.samplers.options import TRAINED
from nexttok.stages import abstract_params
from tests.generators import redrawn
from tests.test_configs import ROOT
from tests.test_runs import SMALL

CONFIG = [f"--config={ROOT}/configs/llamagen.py:tiny", *SMALL]
DRAFT = [f"--config.train.drafter.{k}={v}" for k, v in
         dict(steps=2, warmup=1, log_every=1, save_every=2, batch_size=8).items()]  # fmt: skip
EESD = [*CONFIG, *DRAFT, "--config.drafter.name=eesd", "--config.drafter.layers=1"]
SAMPLE = ["--mode=sample", "--config.sample.per_class=1"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_has_a_place(name):
    config = (maskgit if name == "tcts" else llamagen).get_config("tiny")
    config.drafter.name = name
    exp = resolve(config)
    abstract_params(exp.drafting_only, DRAFTER, make_mesh(MeshConfig(2, 2, 2, 1, 1)))


def test_a_trained_drafter_is_found_again_by_its_config_alone(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.int32)
    batch = {"ids": ids, "label": np.zeros(8, np.int32)}
    monkeypatch.setattr(run, "stage_loader", lambda exp, stage: lambda start: iter([batch] * 2))
    config = llamagen.get_config("tiny")
    config.drafter.update(name="eesd", layers=1)
    config.sampler.name, config.cached_passes = "eesd", 0
    config.train.drafter.update(steps=2, warmup=1, log_every=1, save_every=1, batch_size=8)
    exp = resolve(config)
    mesh, folder = make_mesh(exp.mesh), drafting.folder_of(exp, str(tmp_path))
    done = {"tokenizer": {}, "generator": redrawn(exp.generator)}
    with pytest.raises(ConfigError, match=r"sampler\.name = 'eesd': expected --mode=draft"):
        drafting.load_drafter(exp, done, str(tmp_path))
    drafting.open_drafter(exp, str(tmp_path))
    made = run.fit_stages(exp.drafting_only, done, mesh, str(tmp_path), folder)
    assert sorted(made) == ["drafter", "generator", "tokenizer"]
    found = drafting.load_drafter(exp, done, str(tmp_path))["drafter"]
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, made["drafter"]))
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(found)) > 0
    config.drafter.layers = 0
    with pytest.raises(ConfigError, match=r"drafter\.layers = 0: expected 1, as .*eesd was st"):
        drafting.load_drafter(resolve(config), done, str(tmp_path))


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    main([*CONFIG, f"--workdir={folder}/large"])
    main([*CONFIG, f"--workdir={folder}/small", f"--config.tokenizer_checkpoint={folder}/large",
          "--config.generator.backbone.width=16"])  # fmt: skip
    return folder


def refused(capsys, *words):
    with pytest.raises(SystemExit) as error:
        main(list(words))
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_drafter_is_trained_on_a_finished_run_and_draws(runs, capsys):
    large = f"--workdir={runs}/large"
    said = refused(capsys, *EESD, large, *SAMPLE, "--config.sampler.name=eesd")
    assert "config.sampler.name = 'eesd': expected --mode=draft" in said
    said = refused(capsys, *CONFIG, large, "--mode=draft")
    assert "config.drafter.name = '': expected pass | eesd | eagle" in said
    said = refused(capsys, *CONFIG, large, *SAMPLE, "--config.sampler.name=pass")
    assert "another, as config.drafter.name is ''" in said
    said = refused(capsys, *CONFIG, large, "--mode=samplers", "--samplers=pass")
    assert "config.sampler.name = 'pass': expected --mode=draft" in said
    assert not (runs / "large" / "drafters").exists()
    before = {p: p.read_bytes() for p in (runs / "large" / "checkpoints").rglob("*") if p.is_file()}
    main([*EESD, large, "--mode=draft"])
    folder = runs / "large" / "drafters" / "eesd"
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in lines] == [("drafter", 1), ("drafter", 2)]
    assert all(0 < r["kept"] <= 1.0 + 1e-5 for r in lines)
    main([*EESD, large, "--mode=draft", "--config.train.drafter.steps=2"])  # nothing is left to do
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "checkpoints" / "drafter" / "2").is_dir()
    for path, held in before.items():
        assert path.read_bytes() == held  # the generator and its tokenizer stay
    said = refused(capsys, *EESD, large, "--mode=draft", "--config.train.drafter.b1=0.5")
    assert "config.train.drafter.b1 = 0.5: expected 0.9, as" in said
    draft = f"draft,draft={runs}/small,window=2"
    main([*EESD, large, "--mode=samplers", f"--samplers=eesd,relax=0.1;{draft}"])
    rows = json.loads((runs / "large" / "samplers.json").read_text())["rows"]
    assert [r["sampler"] for r in rows] == ["plan", "eesd,relax=0.1", draft]
    for row in rows[1:]:
        assert row["network_calls"] <= 16
        assert row["accepted"] > 0


@pytest.mark.slow
def test_drafts_of_another_run_need_its_tokenizer(runs, capsys, monkeypatch):
    words = [*CONFIG, f"--workdir={runs}/large", *SAMPLE, "--config.sampler.name=draft"]
    found = drafting.load_models

    def changed(exp, workdir):
        done = found(exp, workdir)
        return done | {"tokenizer": jax.tree.map(lambda x: x + 1, done["tokenizer"])}

    monkeypatch.setattr(drafting, "load_models", changed)
    said = refused(capsys, *words, f"--config.sampler.draft={runs}/small")
    assert "expected a run of the same tokenizer" in said
