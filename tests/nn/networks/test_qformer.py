"""Convolutions around a transformer, from a map to a sequence and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import gigatok
from nexttok.config import ConfigError
from nexttok.nn.networks import qformer

SHAPE = (16, 16, 3)


def sizes(**changes):
    keys = dict(pixel_width=8, groups=4, z_channels=8, width=16, depth=1, head_dim=8, tokens=8)
    section = ConfigDict(gigatok.network(**(keys | changes)))
    return qformer.make(section, "float32", "tokenizer.encoder")


@functools.cache
def encoded(queries="levels"):
    module = sizes(queries=queries).encoder(SHAPE, 4)
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE), minval=-1)
    variables = module.init(jax.random.key(0), x)
    draw = lambda v: v + 0.3 * jax.random.normal(jax.random.key(v.size), v.shape)
    variables = jax.tree.map(draw, variables)  # or little reaches the latents
    return module, variables, x, module.apply(variables, x)


def test_level_means_are_those_of_ever_smaller_cells():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    found = qformer.level_means(x, sizes().levels((4, 4)))[0, :, 0]

    assert found.shape == (8,)
    np.testing.assert_allclose(found[:2], 7.5)
    np.testing.assert_allclose(found[2:4], [6.5, 8.5])
    np.testing.assert_allclose(found[4:], [2.5, 4.5, 10.5, 12.5])


def test_levels_halve_columns_first_and_sum_to_the_tokens():
    levels = sizes(tokens=256).levels((16, 16))
    assert levels[:4] == [(16, 16), (16, 16), (16, 8), (8, 8)]
    assert levels[-1] == (2, 1)
    assert sum((16 // h) * (16 // w) for h, w in levels) == 256


SOME = [pytest.param(q, marks=pytest.mark.slow if q == "levels" else ()) for q in qformer.QUERIES]


@pytest.mark.parametrize("queries", SOME)
def test_every_kind_of_query_sees_the_picture(queries):
    _, variables, _, z = encoded(queries)
    assert z.shape == (2, 8, 4)
    assert float(jnp.abs(z[0] - z[1]).max()) > 1e-4
    vectors = {"levels": 1, "mean": 1, "learned": 0}[queries]
    assert ("from_means" in variables["params"]["sequence"]) == vectors


def test_positions_reach_queries_and_keys_but_not_values():
    """Queries that begin alike and keys without positions give latents that are all alike."""
    module, variables, x, z = encoded("mean")
    assert float(jnp.abs(z[:, 0] - z[:, 1]).max()) > 1e-5
    params = jax.tree.map(lambda v: v, variables["params"])
    sequence = params["sequence"] | {"positions": jnp.zeros_like(params["sequence"]["positions"])}
    same = module.apply({"params": params | {"sequence": sequence}}, x)
    np.testing.assert_allclose(same, jnp.broadcast_to(same[:, :1], same.shape), atol=1e-5)
    values = params["sequence"] | {
        "context_positions": params["sequence"]["context_positions"] + 100.0
    }
    shifted = module.apply({"params": params | {"sequence": values}}, x)
    assert float(jnp.abs(shifted - z).max()) < 10.0


@pytest.mark.slow
def test_the_decoder_begins_with_the_first_latent_and_reads_them_all():
    module = sizes().decoder(SHAPE)
    z = jax.random.normal(jax.random.key(0), (2, 8, 4))
    variables = module.init(jax.random.key(1), z)
    pictures, tapped = module.apply(variables, z, tap=0)
    assert pictures.shape == (2, *SHAPE)
    assert tapped.shape == (2, 4, 4, 16)
    np.testing.assert_array_equal(pictures, module.apply(variables, z))
    reads = jax.grad(lambda z: jnp.square(module.apply(variables, z)).sum())(z)
    assert float(jnp.abs(reads).max(-1).min()) > 0


def test_without_tokens_latents_are_the_map():
    found = sizes(tokens=0)
    assert found.grid(SHAPE) == (4, 4)
    module = found.encoder(SHAPE, 4)
    x = jnp.zeros((1, *SHAPE))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert "cross" not in variables["params"]["sequence"]["trunk"]["blocks"]
    assert jax.eval_shape(module.apply, variables, x).shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tokens=6), r"tokenizer\.encoder\.tokens = 6: expected a power of two, for levels"),
        (dict(queries="none"), r"encoder\.queries = 'none': expected levels \| learned \| mean"),
        (dict(head_dim=5), r"encoder\.head_dim = 5: expected a divisor of the width 16"),
        (dict(groups=3), r"encoder\.groups = 3: expected a divisor of 8 channels"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        sizes(**changes)


def test_tokens_that_no_map_gives_are_named():
    with pytest.raises(ConfigError, match=r"encoder\.tokens = 64: expected fewer, for a map"):
        sizes(tokens=64).grid(SHAPE)
