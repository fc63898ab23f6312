"""Layers of MaskGIT's encoder and decoder, against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.nn.networks.conv import ConvConfig
from nexttok.nn.networks.pooled_conv import Decoder, Encoder, ResBlock, halve
from tests.nn.networks.test_conv import conv3, group_norm, random, randomized, silu

TINY = ConvConfig(4, (1, 2, 2), 1, groups=2)


@pytest.mark.parametrize("features", [4, 6])
def test_the_shortcut_of_a_residual_block_reads_the_branch(features):
    x = random(2, 3, 4, 4)
    block = ResBlock(features, TINY)
    p = randomized(block, x)
    convs = [{"kernel": p[name]["kernel"], "bias": 0.0} for name in ("conv1", "conv2")]
    h = conv3(silu(group_norm(x, p["norm1"], 2)), convs[0])
    h = conv3(silu(group_norm(h, p["norm2"], 2)), convs[1])
    skip = h @ p["out"]["kernel"] if features != 4 else np.asarray(x)
    np.testing.assert_allclose(block.apply({"params": p}, x), skip + h, rtol=1e-4, atol=1e-4)


def test_halving_takes_means_of_four_pixels():
    x = random(2, 4, 6, 3)
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4.0
    np.testing.assert_allclose(halve(x), expected, rtol=1e-5, atol=1e-6)


def test_strides_levels_and_biases():
    x, z = random(1, 8, 12, 3), random(1, 2, 3, 5)
    encoder, decoder = Encoder(TINY, 10), Decoder(TINY, 3)
    code = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    picture = jax.eval_shape(decoder.init_with_output, jax.random.key(0), z)
    assert code[0].shape == (1, 2, 3, 10)
    assert picture[0].shape == (1, 8, 12, 3)
    down, up = code[1]["params"], picture[1]["params"]
    levels = {"level0", "level1", "level2", "middle", "norm"}
    assert set(down) == levels | {"conv_in", "out"}
    assert set(up) == levels | {"conv_in", "conv_up1", "conv_up2", "conv_out"}
    biased = {k for tree in (down, up) for k, v in tree.items() if "bias" in v}
    assert biased == {"norm", "out", "conv_in", "conv_up1", "conv_up2", "conv_out"}
    assert "bias" not in down["conv_in"]


@pytest.mark.parametrize(("network", "shape"), [(Encoder, (1, 8, 8, 3)), (Decoder, (1, 2, 2, 4))])
def test_convolutions_run_in_the_compute_dtype_and_results_are_float32(network, shape):
    module = network(dataclasses.replace(TINY, dtype="bfloat16"), 4)
    jaxpr = jax.make_jaxpr(module.init_with_output)(jax.random.key(0), jnp.zeros(shape)).jaxpr
    convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert len(convs) >= 9
    assert {v.aval.dtype.name for e in convs for v in e.invars} == {"bfloat16"}
    assert jaxpr.outvars[0].aval.dtype == jnp.float32
