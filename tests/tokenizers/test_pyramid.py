"""Continuous latents as pyramids of maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.tokenizers import sections

SHAPE = (16, 16, 1)


def section(**changes) -> ConfigDict:
    """A tiny pyramid of sides 1, 2, 4."""
    return sections.changed(tokenizers.pyramid((1, 2, 4)), **(dict(width=8, groups=4) | changes))


@functools.cache
def model():
    return autoencoder.make(section(), SHAPE)


@functools.cache
def params():
    return jax.jit(model().init)(jax.random.key(0))


@functools.cache
def encoded():
    x = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1.0)
    return x, jax.jit(model().encode)(params(), x).values


def plain():
    """The autoencoder without a pyramid."""
    alone = sections.changed(tokenizers.kl(), width=8, groups=4)
    return autoencoder.make(alone, SHAPE)


def test_maps_are_area_means_of_the_latent():
    x, values = encoded()
    spec = model().spec
    assert (spec.length, spec.vocab, spec.scales, spec.prefixes) == (21, 0, (1, 2, 4), (1, 5, 21))
    latent = np.asarray(jax.jit(plain().encode)(params(), x).values).reshape(3, 4, 4, 4)
    quarters = latent.reshape(3, 2, 2, 2, 2, 4).mean((2, 4)).reshape(3, 4, 4)
    np.testing.assert_allclose(values[:, :1], latent.mean((1, 2))[:, None], atol=1e-5)
    np.testing.assert_allclose(values[:, 1:5], quarters, atol=1e-5)
    np.testing.assert_array_equal(values[:, 5:], latent.reshape(3, 16, 4))


def test_decodes_the_last_whole_map():
    _, values = encoded()
    decode = jax.jit(model().decode)
    whole = decode(params(), Tokens(values=values))
    alone = jax.jit(plain().decode)(params(), Tokens(values=values[:, 5:]))
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    keep = jnp.asarray([5, 20, 21], jnp.int32)
    kept = jax.jit(lambda v, k: model().decode(params(), Tokens(values=v), None, k))(values, keep)
    short = decode(params(), Tokens(values=values[:, :5]))
    np.testing.assert_allclose(kept[:2], short[:2], atol=1e-5)
    np.testing.assert_allclose(kept[2], whole[2], atol=1e-5)
    assert float(jnp.abs(short - whole).max()) > 1e-3


def test_bad_sections_are_refused():
    with pytest.raises(
        ConfigError, match=r"tokenizer\.bottleneck\.sides = \(1, 2\): expected growing sides"
    ):
        autoencoder.make(section(sides=(1, 2)), SHAPE)
