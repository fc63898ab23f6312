"""Parts of one's own join those of the library."""

import numpy as np
import pytest

import nexttok
from nexttok import bottlenecks, heads, plans
from nexttok.config import ConfigError, names
from nexttok.config_files import load_config
from nexttok.experiment import resolve

HEAD = """
import dataclasses
from nexttok.config import build
from nexttok.heads.categorical import Categorical

class Halved(Categorical):
    def loss(self, params, hidden, target, rng, train):
        nats, metrics = super().loss(params, hidden, target, rng, train)
        return nats / 2, metrics

def make(section, spec, width):
    return build(Halved, section, "generator.head", named=True, vocab=spec.vocab, width=width)
"""


@pytest.fixture(name="mine")
def _mine(tmp_path, monkeypatch):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "halved.py").write_text(HEAD)
    monkeypatch.setattr(heads, "__path__", list(heads.__path__))
    for table in ("READS", "PLANS"):
        monkeypatch.setattr(plans, table, dict(getattr(plans, table)))
    return tmp_path


def backwards(config, spec):
    """The last token first."""
    return plans.Plan(np.arange(spec.length, dtype=np.int32)[::-1], (1,) * spec.length)


def test_a_head_and_a_plan_of_ones_own_are_chosen_by_name(mine):
    assert nexttok.extend(str(mine)) == nexttok.extend(str(mine)) == ["heads"]
    assert "halved" in names(heads)
    assert "halved" not in names(bottlenecks)
    nexttok.add_plan(backwards)
    config = load_config("configs/llamagen.py:tiny")
    config.generator.head.name, config.generator.plan.name = "halved", "backwards"
    exp = resolve(config)
    assert type(exp.generator.head).__name__ == "Halved"
    np.testing.assert_array_equal(exp.plan.order[:2], [15, 14])
    config.generator.plan.block = 2
    with pytest.raises(ConfigError, match="expected 0, as plan backwards does not read it"):
        resolve(config)


def test_what_is_no_extension_is_refused(mine):
    with pytest.raises(ConfigError, match=r"expected a folder with some of tokenizers \| bott"):
        nexttok.extend(str(mine / "heads"))
    with pytest.raises(ConfigError, match="the library has this plan"):
        nexttok.add_plan(plans.raster)
