"""Transformers over patches: places of patches, what registers see, what a decoder reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, tokenizers
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.networks import vit
from nexttok.nn.patches import patchify, unpatchify

SHAPES = {"picture": ((8, 12, 3), (4, 4)), "video": ((4, 8, 8, 3), (2, 4, 4))}


def sizes(patch=(4, 4), **changes):
    keys = dict(head_dim=8, mlp_hidden=32) | changes
    section = common.section(**tokenizers.transformer(patch, 24, 2, **keys))
    return vit.make(section, "float32", "tokenizer.encoder")


@functools.cache
def networks(kind, **changes):
    """Sizes, encoder, decoder, their parameters (no entry zero) and two examples."""
    shape, patch = SHAPES[kind]
    own = sizes(patch, **changes)
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    encoder, decoder = own.encoder(shape, 5), own.decoder(shape)
    params = encoder.init(jax.random.key(1), x)["params"]
    z = encoder.apply({"params": params}, x)
    more = decoder.init(jax.random.key(2), z)["params"]
    shift = lambda tree: jax.tree.map(lambda p: p + 0.01, tree)
    return own, encoder, decoder, shift(params), shift(more), x


@pytest.mark.parametrize("kind", SHAPES)
def test_patches_go_back_to_their_places(kind):
    shape, patch = SHAPES[kind]
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    grid = sizes(patch).patches(shape)
    rows = patchify(x, patch)
    assert rows.shape == (2, np.prod(grid), 3 * np.prod(patch))
    np.testing.assert_array_equal(unpatchify(rows, grid, patch), x)
    first = x[(slice(None), *(slice(0, p) for p in patch))]
    np.testing.assert_array_equal(rows[:, 0], first.reshape(2, -1))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [{}, dict(registers=3), dict(registers=3, positions="learned", class_token=True, pre_norm=True,
                                 norm_affine=True, bias=True)],
    ids=["grid", "registers", "clip"],
)  # fmt: skip
def test_shapes_and_places(kind, changes):
    own, encoder, decoder, params, more, x = networks(kind, **changes)
    z = encoder.apply({"params": params}, x)
    grid = own.grid(x.shape[1:])
    assert grid == ((3,) if "registers" in changes else own.patches(x.shape[1:]))
    assert z.shape == (2, *grid, 5)
    assert decoder.apply({"params": more}, z).shape == x.shape
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 1))
    param_shardings(mesh, {"encoder": params, "decoder": more})
    assert own.last[0] in more


def test_every_latent_sees_the_whole_picture_and_every_pixel_every_latent():
    _, encoder, decoder, params, more, x = networks("picture", registers=3)
    encode = lambda x: encoder.apply({"params": params}, x)
    seen = jax.jacobian(lambda x: encode(x).sum((0, 2)))(x)
    assert bool((jnp.abs(seen).max((1, 4)) > 0).all())
    draw = lambda z: decoder.apply({"params": more}, z).sum((0, 3))
    read = jax.jacobian(draw)(encode(x))
    assert bool((jnp.abs(read).max((2, 4)) > 0).all())


def test_causal_registers_do_not_see_later_ones():
    own, encoder, _, params, _, x = networks("picture", registers=4, visible="causal")
    fewer = sizes(registers=2, visible="causal").encoder(x.shape[1:], 5)
    short = params | {"registers": params["registers"][:2]}
    z = encoder.apply({"params": params}, x)
    np.testing.assert_allclose(z[:, :2], fewer.apply({"params": short}, x), atol=1e-5)
    free = sizes(registers=4).encoder(x.shape[1:], 5).apply({"params": params}, x)
    assert float(jnp.abs(free[:, 0] - z[:, 0]).max()) > 1e-4
    assert own.grid(x.shape[1:]) == (4,)


def test_registers_that_change_places_take_their_latents_along():
    _, encoder, _, params, _, x = networks("picture", registers=3)
    turned = params | {"registers": params["registers"][::-1]}
    z = encoder.apply({"params": turned}, x)
    np.testing.assert_allclose(z, encoder.apply({"params": params}, x)[:, ::-1], atol=1e-5)


def test_places_of_clips_are_a_table_of_frames_plus_one_of_rows_and_columns():
    places = vit.fixed_positions("sincos_sum", (3, 2, 5), 24).reshape(3, 2, 5, 24)
    t, r, c = 2, 1, 3
    omega = 1e4 ** (-np.arange(12) / 12)
    frame = np.concatenate([np.sin(t * omega), np.cos(t * omega)])
    omega = 1e4 ** (-np.arange(6) / 6)
    place = np.concatenate([f(at * omega) for at in (c, r) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(places[t, r, c], frame + place, atol=1e-5)
    row = vit.fixed_positions("sincos_sum", (4,), 24)
    np.testing.assert_array_equal(row, vit.fixed_positions("sincos", (4,), 24))


def test_biases_norms_and_last_layers_that_are_left_out():
    changes = dict(bias=True, qkv_bias=False, final_norm=False, zero_output=True, norm_affine=True)
    own = sizes((2, 4, 4), registers=3, positions="sincos_sum", **changes)
    shape = SHAPES["video"][0]
    x = jnp.ones((1, *shape))
    params = own.encoder(shape, 5).init(jax.random.key(0), x)["params"]
    block = params["trunk"]["blocks"]
    has = {name: "bias" in layer for name, layer in block["attn"].items()}
    assert has == dict(wq=False, wk=False, wv=False, proj=True)
    assert "bias" in block["mlp"]["fc1"]
    assert "norm_out" not in params
    video, more = own.decoder(shape).init_with_output(jax.random.key(1), jnp.ones((1, 3, 5)))
    assert "norm_out" not in more["params"]
    assert float(jnp.abs(video).max()) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(patch=(4,)), r"tokenizer\.encoder\.patch = \(4,\)"),
        (dict(head_dim=7), r"head_dim = 7: expected a divisor of the width 24"),
        (dict(positions="rope"), r"positions = 'rope': expected learned \| sincos \| sincos_sum"),
        (dict(positions="sincos_sum"), r"positions = 'sincos_sum': expected learned \| sincos, of"),
        (dict(qkv_bias=False), r"qkv_bias = False: expected True, without bias"),
        (dict(visible="causal"), r"visible = 'causal': expected all, without registers"),
        (dict(patch=(4, 4, 4, 4)), r"patch"),
        (dict(activation="tanh"), r"activation = 'tanh'"),
    ],
)
def test_bad_sizes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sizes(**changes)


def test_pictures_must_fit():
    with pytest.raises(ConfigError, match=r"data\.frames = 4: expected 0"):
        sizes().grid((4, 8, 8, 3))
    with pytest.raises(ConfigError, match=r"data\.resolution = 10: expected a multiple of 4"):
        sizes().grid((10, 8, 3))
    with pytest.raises(ConfigError, match=r"data\.frames = 3: expected a multiple of 2"):
        sizes((2, 4, 4)).grid((3, 8, 8, 3))
