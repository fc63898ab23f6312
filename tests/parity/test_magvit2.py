"""Next Block Prediction's video tokenizer against its official code.

Fixture: RenShuhuai-Andy/NBP nbp/magvit2.py and nbp/quantizers/fsq.py, a quarter as wide (32, 64,
64, 128 channels) and with one residual block where it has four, every parameter overwritten by
`official.seeded`; two clips of 5 x 16 x 16 bytes, and what its encoder, quantizer and decoder made
of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizers
from nexttok.bottlenecks import fsq
from nexttok.config import ConfigError
from nexttok.interop.magvit2 import convert
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.parity import official
from tests.tokenizers import sections


def make(shape=(5, 16, 16, 3), **changes):
    section = sections.changed(tokenizers.magvit2(), **changes)
    return autoencoder.make(section, shape)


@functools.cache
def model():
    """Tokenizer, its converted parameters, the fixture, and its clips in [-1, 1], channels last."""
    tokenizer, fixture = make(width=32, blocks=1), official.load("nbp_tokenizer")
    clips = fixture["video"].transpose(0, 2, 3, 4, 1).astype(np.float32) / 127.5 - 1.0
    params = convert(official.state_dict(fixture), tokenizer)
    return tokenizer, params, fixture, jnp.asarray(clips)


@functools.cache
def forward():
    """Clips -> latents, tokens and decoded videos, compiled once."""
    tokenizer, params, _, _ = model()

    @jax.jit
    def run(params, clips):
        z = tokenizer.encoder.apply({"params": params["encoder"]}, clips)
        tokens = tokenizer.encode(params, clips)
        return z, tokens, tokenizer.decode(params, Tokens(ids=tokens.ids))

    return lambda clips: run(params, clips)


def test_codes_and_videos():
    tokenizer, params, fixture, clips = model()
    expected = jax.eval_shape(tokenizer.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), expected)
    z, tokens, decoded = forward()(clips)
    official.close(z, fixture["latents"].transpose(0, 2, 3, 4, 1))
    official.close(fsq.bound(z, tokenizer.bottleneck.levels, printed=True), fixture["bounded"])
    np.testing.assert_array_equal(tokens.ids, fixture["ids"].reshape(2, -1))
    np.testing.assert_array_equal(
        fsq.values_to_ids(tokens.values, tokenizer.bottleneck.levels), tokens.ids
    )
    official.close(decoded, 2.0 * fixture["decoded"].transpose(0, 2, 3, 4, 1) - 1.0)


def test_the_past_does_not_see_the_future():
    clips = model()[-1]
    moved = forward()(clips.at[:, 1:].set(0.0))[0] - forward()(clips)[0]
    assert np.abs(moved[:, 0]).max() == 0
    assert np.abs(moved[:, 1]).max() > 0.1


@pytest.mark.slow
def test_the_loss_is_the_reconstruction_and_reaches_every_parameter():
    tokenizer = make((3, 4, 4, 3), width=8, multipliers=(1, 2), blocks=1, time_levels=1, groups=4)
    clips = jax.random.uniform(jax.random.key(1), (4, 3, 4, 4, 3), minval=-1.0)

    @functools.partial(jax.grad, has_aux=True)
    def grad(params):
        each, metrics = tokenizer.loss(params, {"image": clips}, jax.random.key(0))
        decoded = tokenizer.decode(params, tokenizer.encode(params, clips))
        return each.mean(), (each, metrics, jnp.abs(decoded - clips).mean((1, 2, 3, 4)))

    params = jax.jit(tokenizer.init)(jax.random.key(0))
    grads, (each, metrics, error) = jax.jit(grad)(params)
    np.testing.assert_allclose(each, error, rtol=1e-4)
    np.testing.assert_allclose(metrics["fidelity"], error.mean(), rtol=1e-4)
    assert 1.0 < float(metrics["perplexity"]) <= 4 * 8
    named = jax.tree_util.tree_leaves_with_path(grads)
    assert not [k for k, g in named if not float(jnp.abs(g).max()) > 0]


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((16, 16, 3), {}, r"data\.frames = 0: expected at least 1"),
        ((4, 16, 16, 3), {}, r"data\.frames = 4: expected 1 and a multiple of 4"),
        ((5, 12, 12, 3), {}, r"data\.resolution = 12: expected a multiple of 8, the stride"),
        (
            (5, 16, 16, 3),
            {"time_levels": 4},
            r"tokenizer\.encoder\.time_levels = 4: expected 0 \.\. 3",
        ),
        (
            (5, 16, 16, 3),
            {"groups": 48},
            r"tokenizer\.encoder\.groups = 48: expected a divisor of 128",
        ),
        ((5, 16, 16, 3), {"blocks": 0}, r"tokenizer\.encoder\.blocks = 0"),
        ((5, 16, 16, 3), {"multipliers": ()}, r"tokenizer\.encoder\.multipliers = \(\)"),
        ((5, 16, 16, 3), {"levels": (8, 1)}, r"tokenizer\.bottleneck\.levels = \(8, 1\)"),
        (
            (5, 16, 16, 3),
            {"reconstruction": "lpips"},
            r"tokenizer\.losses\.reconstruction = 'lpips'",
        ),
        ((5, 16, 16, 3), {"reconstruction_weight": -1.0}, r"reconstruction_weight = -1\.0"),
    ],
)
def test_bad_sections_are_refused(shape, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(shape, **changes)
