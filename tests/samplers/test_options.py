"""`config.sampler`: what it refuses, and samplers of a whole experiment against the executor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flextok, llamagen, mar, maskgit, nbp
from nexttok import sampling
from nexttok.config import ConfigError
from nexttok.experiment import resolve
from tests.generators import redrawn

LABEL, KEY = jnp.arange(4, dtype=jnp.int32), jax.random.key(0)


@functools.cache
def drawn(temperature=1.0, guidance=2.0, **sampler):
    """Tokens and stats of LlamaGen's tiny variant, parameters redrawn."""
    config = llamagen.get_config("tiny")
    config.sampler.update(sampler)
    config.sample.update(temperature=temperature, guidance=guidance)
    config.generator.backbone.update(width=16, head_dim=8, mlp_hidden=24)
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator, 1)}
    tokens, stats = sampling.sampler(exp)(params, LABEL, KEY, sampling.blank(exp, len(LABEL)))
    return np.asarray(tokens), {k: np.asarray(v) for k, v in stats.items()}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_zipar_of_a_whole_row_is_raster(guidance):
    tokens, stats = drawn(guidance=guidance, name="zipar", window=4)
    np.testing.assert_array_equal(tokens, drawn(guidance=guidance)[0])
    assert stats["network_calls"] == 16


def test_zipar_takes_a_call_for_every_front():
    tokens, stats = drawn(name="zipar")
    assert stats["network_calls"] == 7
    assert tokens.shape == (4, 16)
    assert (tokens != drawn()[0]).any()


@pytest.mark.parametrize("init", ["random", "repeat_left", "sample_above"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_greedy_jacobi_is_greedy_raster(init, guidance):
    tokens, stats = drawn(0.0, guidance, name="jacobi", window=5, init=init)
    np.testing.assert_array_equal(tokens, drawn(0.0, guidance)[0])
    assert stats["rounds"].max() == stats["network_calls"] <= 16


BAD = {
    "unknown": (llamagen, dict(name="magic"), "plan | jacobi | zipar | disa | recap"),
    "unread": (llamagen, dict(init="random"), "sampler.init = 'random': expected '', as sampl"),
    "window": (llamagen, dict(name="jacobi", window=-1), "at least 0"),
    "wide": (llamagen, dict(name="zipar", window=5), "sampler.window = 5: expected 1 .. 4 columns"),
    "init": (llamagen, dict(name="jacobi", init="left"), "repeat_left | repeat_above"),
    "line": (flextok, dict(name="zipar"), "another, as these tokens have no rows"),
    "above": (flextok, dict(name="jacobi", init="repeat_above"), "as these tokens have no rows"),
    "solver": (llamagen, dict(name="disa"), "another, as the head draws in a single step"),
    "shape": (mar, dict(name="disa", anneal="sudden"), "linear | cosine | two_stage"),
    "numbers": (mar, dict(name="disa", solver_steps=(50,)), "two numbers of 2 .. 1000"),
    "context": (llamagen, dict(name="recap"), "another, as the context is not mask"),
    "steps": (mar, dict(name="recap", whole=9), "sampler.whole = 9: expected 0 .. 8 steps"),
    "mask": (maskgit, dict(name="jacobi"), "another, as context mask does not draw one"),
    "block": (nbp, dict(name="zipar"), "another, as context block does not draw one token after"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_does_not_fit(name):
    paper, sampler, words = BAD[name]
    config = paper.get_config("tiny")
    config.sampler.update(sampler)
    with pytest.raises(ConfigError) as error:
        resolve(config)
    assert words in str(error.value)


def test_editing_follows_the_plan():
    config = llamagen.get_config("tiny")
    config.sampler.name = "jacobi"
    with pytest.raises(ConfigError, match="plan to edit an image"):
        sampling.sampler(resolve(config), np.zeros(16, bool))
