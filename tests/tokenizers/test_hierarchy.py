"""Pictures and videos as codes of several levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import hitvideo, tokenizers, vqvae2
from nexttok import experiment
from nexttok.bottlenecks.hierarchy import split
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.tokenizers import sections

CODES = tokenizers.codes(channels=4, size=16)


def pictures():
    """VQ-VAE-2's parts, and those of the levels narrow."""
    network = vqvae2.network(1) | dict(width=8, blocks=1, residual=4)
    bottleneck = tokenizers.hierarchy(8, [network], CODES, dropout=0.5)
    return autoencoder.make(sections.autoencoder(bottleneck, network), (8, 8, 3))


def videos():
    """HiTVideo's: latents of 2 x 2 x 2 pixels, then of 4 x 4 x 4."""
    network = hitvideo.network(8, (1, 1), 1, 1, groups=4)
    bottleneck = tokenizers.hierarchy(8, [network], CODES, "residual", 0.5)
    return autoencoder.make(sections.autoencoder(bottleneck, network), (9, 8, 8, 3))


MODELS = {"pictures": pictures, "videos": videos}
MEMBERS = pytest.mark.parametrize("name", MODELS)


@functools.cache
def example(name):
    """The tokenizer, its parameters with codes that differ, and data."""
    model = MODELS[name]()
    params = jax.jit(model.init)(jax.random.key(0))
    spread = lambda path, x: (
        jax.random.normal(jax.random.key(1), x.shape) if path[-1].key == "embedding" else x
    )
    params = jax.tree_util.tree_map_with_path(spread, params)
    x = jax.random.uniform(jax.random.key(2), (8, *model.image_shape), minval=-1.0)
    return model, params, x


@functools.cache
def jitted(name):
    """encode(x) -> ids and decode(ids, keep) -> data."""
    model, params, _ = example(name)
    decode = jax.jit(lambda ids, keep: model.decode(params, Tokens(ids=ids), None, keep))
    return jax.jit(lambda x: model.encode(params, x).ids), decode


@MEMBERS
def test_prefixes_of_levels_decode(name):
    model, _, x = example(name)
    encode, decode = jitted(name)
    ids, (first, length) = encode(x), model.spec.prefixes
    assert ids.shape == (8, length)
    keep = lambda n: jnp.full(8, n, jnp.int32)
    coarse, whole = decode(ids, keep(first)), decode(ids, keep(length))
    assert whole.shape == x.shape
    np.testing.assert_allclose(decode(ids.at[:, first:].set(0), keep(first)), coarse, atol=1e-5)
    assert float(jnp.abs(whole - coarse).max()) > 1e-3


@MEMBERS
def test_every_parameter_learns_and_has_a_place(name):
    model, params, x = example(name)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), params)

    @jax.jit
    def gradients(params):
        loss = lambda p: model.loss(p, {"image": x}, jax.random.key(3))[0].mean()
        return jax.grad(loss)(params)

    found = jax.tree_util.tree_leaves_with_path(gradients(params))
    dead = [jax.tree_util.keystr(path) for path, g in found if not float(jnp.abs(g).max()) > 0]
    assert not dead


def test_a_frame_does_not_see_later_ones():
    """A code of the coarse level covers 4 frames: 0 | 1 .. 4 | 5 .. 8."""
    encode, decode = jitted("videos")
    x = example("videos")[2]
    ids, others = encode(x), encode(x.at[:, 5:].multiply(-1.0))
    counts = example("videos")[0].spec.levels
    assert counts == (3 * 2 * 2, 5 * 4 * 4)
    for known, old, new in zip((2, 3), *(split(i, counts) for i in (ids, others)), strict=True):
        cut = known * (4 if old.shape[1] == 12 else 16)
        np.testing.assert_array_equal(old[:, :cut], new[:, :cut])
        assert (old[:, cut:] != new[:, cut:]).any()
    old, new = (decode(i, jnp.full(8, sum(counts), jnp.int32)) for i in (ids, others))
    np.testing.assert_allclose(old[:, :5], new[:, :5], atol=1e-5)
    assert float(jnp.abs(old[:, 5:] - new[:, 5:]).max()) > 1e-3


@pytest.mark.parametrize(
    ("module", "variant", "shape", "levels", "size"),
    [
        (vqvae2, "imagenet256", (256, 256, 3), (32**2, 64**2), (512, 64)),
        (vqvae2, "ffhq1024", (1024, 1024, 3), (32**2, 64**2, 128**2), (512, 64)),
        (hitvideo, "video256", (65, 256, 256, 3), (9 * 8**2, 17 * 16**2, 17 * 32**2), (8192, 8)),
    ],
)
def test_sizes_of_the_papers(module, variant, shape, levels, size):
    spec = autoencoder.make(module.get_config(variant).tokenizer, shape).spec
    assert (spec.levels, (spec.vocab, spec.channels)) == (levels, size)


def test_a_generator_draws_the_levels_one_after_the_other():
    config = vqvae2.get_config("tiny")
    config.stages = ("tokenizer", "generator")
    assert experiment.resolve(config).plan.sizes == (1,) * 20
    config.sample.tokens = 4
    assert experiment.resolve(config).plan.sizes == (1,) * 4
    config.sample.tokens = 5
    with pytest.raises(ConfigError, match=r"sample\.tokens = 5: expected 0 \| 4 \| 20, as only"):
        experiment.resolve(config)
