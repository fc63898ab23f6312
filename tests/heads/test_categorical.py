"""How certain a position is."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import llamagen, maskgit
from nexttok.config import ConfigError
from nexttok.experiment import resolve
from nexttok.heads.categorical import certainty

PROBS = np.asarray([[0.5, 0.49, 0.01], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
IDS = jnp.asarray([1, 2, 0])


def found(kind):
    return np.asarray(certainty(jnp.log(jnp.asarray(PROBS, jnp.float32)), IDS, kind))


def test_certainties():
    np.testing.assert_allclose(np.exp(found("")), [0.49, 0.3, 1.0], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found("top")), [0.5, 0.4, 1.0], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found("margin")), [0.01, 0.1, 1.0], rtol=1e-4)
    logs = np.log(np.maximum(PROBS, 1e-30))
    np.testing.assert_allclose(found("entropy"), (PROBS * logs).sum(-1), rtol=1e-4, atol=1e-6)


def test_of_two_tokens_top_margin_and_entropy_give_one_order():
    p = np.linspace(0.02, 0.98, 17)
    rows = jnp.log(jnp.asarray(np.stack([p, 1 - p], 1), jnp.float32))
    ids = jnp.zeros(17, jnp.int32)
    steps = [np.diff(np.asarray(certainty(rows, ids, k))[8:]) for k in ("top", "margin", "entropy")]
    assert all((s > 0).all() for s in steps)


def test_only_plans_by_confidence_read_it():
    config = maskgit.get_config("tiny")
    config.sample.certainty = "margin"
    assert resolve(config).sample.draw.certainty == "margin"
    config.sample.certainty = "most"
    with pytest.raises(ConfigError, match=r"sample.certainty = 'most': expected '' \\| top"):
        resolve(config)
    config = llamagen.get_config("tiny")
    config.sample.certainty = "margin"
    with pytest.raises(ConfigError, match="as plan raster does not read it"):
        resolve(config)
