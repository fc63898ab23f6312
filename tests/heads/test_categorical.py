"""How certain a position is; contrast in place of guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import llamagen, mar, maskgit
from nexttok.config import ConfigError
from nexttok.experiment import resolve
from nexttok.heads.categorical import Categorical, certainty

FEW = Categorical(4, 3, False, "normal02", False, 0.0, 0)
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


def test_contrast_draws_what_the_class_makes_likelier():
    config = llamagen.get_config("tiny")
    config.sample.update(guidance=1.0, contrast=0.3, contrast_k=2)
    sample, key = resolve(config).sample, jax.random.key(0)
    assert not sample.strength.off
    params = {"logits": {"kernel": jax.random.normal(key, (3, 4))}}
    cond, other = jax.random.normal(key, (2, 1, 5, 3))
    ids, sure = FEW.sample(params, cond, other, key, jnp.ones(()), sample.draw)
    p, q = (
        np.asarray(jax.nn.softmax(FEW.outputs(params, h))[0], np.float64) for h in (cond, other)
    )
    kept = p >= 0.3 * np.sort(p, -1)[:, -2:-1]
    ratio = np.where(kept, p / q, 0.0)
    ratio /= ratio.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(sure[0]), ratio[np.arange(5), ids[0]], rtol=1e-4)
    assert (~kept).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(contrast=0.1), r"sample.guidance = 2.0: expected 1, as sample.contrast takes"),
        (dict(contrast=1.5, guidance=1.0), r"sample.contrast = 1.5: expected 0 .. 1"),
        (dict(contrast_k=2), r"sample.contrast_k = 2: expected at least 1 with sample.contrast"),
        (dict(contrast=0.1, contrast_k=300, guidance=1.0), r"sample.contrast_k = 300: expected 0"),
    ],
)
def test_contrast_refuses(changes, words):
    config = llamagen.get_config("tiny")
    config.sample.update(changes)
    with pytest.raises(ConfigError, match=words):
        resolve(config)


def test_contrast_is_for_logits_of_models_that_know_no_class():
    config = maskgit.get_config("tiny")
    config.sample.contrast = 0.1
    with pytest.raises(ConfigError, match=r"sample.contrast = 0.1: expected 0, as nothing is tra"):
        resolve(config)
    config = mar.get_config("tiny")
    config.sample.update(contrast=0.1, guidance=1.0)
    with pytest.raises(ConfigError, match=r"sample.contrast = 0.1: expected 0.0, as plan random"):
        resolve(config)
