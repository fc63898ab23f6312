"""`--mode=cluster`: coarse labels of a trained tokenizer's codes."""

import json

import jax
import numpy as np
import pytest

from nexttok import clustering, evaluate, experiment
from nexttok.config import ConfigError
from nexttok.main import load_config
from tests.test_configs import ROOT


def models(name):
    config = load_config(f"{ROOT}/configs/{name}.py:tiny")
    config.eval.images = 40
    exp = experiment.resolve(config)
    params = jax.jit(exp.tokenizer.init)(jax.random.key(0))
    rows = params["quantizer"]["embedding"]
    params["quantizer"] |= {"embedding": jax.random.normal(jax.random.key(1), rows.shape)}
    return evaluate.Models(exp, {"tokenizer": params})


def test_labels_and_what_pictures_lose_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "COUNTED", 100)
    made = models("llamagen")
    results = clustering.run(made, 4, str(tmp_path))
    assert json.loads((tmp_path / "clusters.json").read_text()) == results
    with np.load(tmp_path / "clusters.npz") as found:
        codes = results["codes"]
        assert found["labels"].shape == (codes,)
        assert found["counts"].sum() == 100 * 16
        assert set(found["labels"]) == {0, 1, 2, 3}
        masses = np.bincount(found["labels"], weights=found["counts"])
        assert (np.diff(masses) <= 0).all()
    assert (tmp_path / "pictures" / "clusters.png").stat().st_size > 0
    assert set(results["psnr"]) == {"codes", "nearest to centre", "same cluster", "any code"}
    text = clustering.table(results)
    assert f"4 clusters of {codes} codes" in text
    assert not list(tmp_path.glob("*.partial*"))


def test_as_many_clusters_as_codes_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "COUNTED", 20)
    made = models("llamagen")
    found = clustering.run(made, made.experiment.tokenizer.spec.vocab, str(tmp_path))["psnr"]
    assert found["same cluster"] == found["nearest to centre"] == found["codes"]
    assert found["any code"] != found["codes"]


def test_other_tokens_are_refused(tmp_path):
    config = load_config(f"{ROOT}/configs/flextok.py:tiny")
    exp = experiment.resolve(config)
    with pytest.raises(ConfigError, match=r"tokenizer\.bottleneck\.name = .*: expected vq"):
        clustering.run(evaluate.Models(exp, {"tokenizer": {}}), 4, str(tmp_path))
    assert not list(tmp_path.iterdir())
