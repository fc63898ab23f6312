"""Codebooks at several resolutions: what their levels owe each other."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, tokenizers
from nexttok.bottlenecks import hierarchy, vq
from nexttok.config import ConfigError
from nexttok.tokens import Tokens

CODES = tokenizers.UNIT_CODES | dict(channels=4, size=16, normalize=False)
FLAT = dict(name="strided", width=8, halvings=1, blocks=0, residual=4)
CAUSAL = dict(
    name="magvit2", width=8, multipliers=(1, 1), blocks=1, time_levels=1, groups=4
)  # fmt: skip
SECTIONS = {
    "concat": tokenizers.hierarchy(6, [FLAT] * 2, CODES | dict(update="ema"), dropout=1.0),
    "residual": tokenizers.hierarchy(6, [FLAT] * 2, CODES, "residual", 1.0),
    "plain": tokenizers.hierarchy(6, [FLAT], CODES),
    "causal": tokenizers.hierarchy(6, [CAUSAL], CODES, "residual"),
}
GRIDS = {"concat": (8, 4), "residual": (8, 4), "plain": (4, 4), "causal": (5, 2, 2)}


@functools.cache
def example(name):
    """The bottleneck, parameters with codes and masks that differ, and latents."""
    model = hierarchy.make(common.section(**SECTIONS[name]), "t")
    params = jax.jit(model.init)(jax.random.key(0))

    def spread(path, x):
        far = path[-1].key in ("embedding", "mask_token")
        return jax.random.normal(jax.random.key(len(str(path))), x.shape) if far else x

    params = jax.tree_util.tree_map_with_path(spread, params)
    for k in range(model.levels):  # no two levels have one codebook
        params[f"level{k}"]["codes"]["embedding"] += 0.3 * k
    return model, params, jax.random.normal(jax.random.key(2), (6, *GRIDS[name], 6))


@functools.cache
def jitted(name):
    """decode(ids, keep) -> what the decoder takes."""
    model, params, _ = example(name)
    return jax.jit(lambda ids, keep: model.decode(params, Tokens(ids=ids), GRIDS[name], keep))


@functools.cache
def tokens(name):
    model, params, z = example(name)
    return jax.jit(model.encode)(params, z)


class Fixed(vq.VQ):
    """Stands for the codes of every level: latents plus what the first call added to them."""

    errors: ClassVar[dict] = {}

    def quantize(self, params, z, rng, train=True):
        coded = super().quantize(params, z, rng, train)
        return coded._replace(values=z + self.errors.setdefault(z.shape, coded.values - z))


class Seen(vq.VQ):
    """Keeps the latents of every level."""

    latents: ClassVar[list] = []

    def quantize(self, params, z, rng, train=True):
        self.latents.append(z)
        return super().quantize(params, z, rng, train)


def spied(model, kind):
    """The model with codes of another class."""
    return dataclasses.replace(model, codes=kind(**vars(model.codes)))


def test_levels_follow_each_other_coarse_first():
    model, params, _ = example("concat")
    spec, found = model.spec((8, 4)), tokens("concat")
    assert (spec.grid, spec.levels, spec.prefixes) == ((42,), (2, 8, 32), (2, 10, 42))
    assert (spec.vocab, spec.channels, spec.nested) == (16, 4, True)
    assert (model.channels, example("residual")[0].channels) == (12, 6)
    for k, part in enumerate(hierarchy.split(found.ids, spec.levels)):
        rows = params[f"level{k}"]["codes"]["embedding"]
        values = hierarchy.split(found.values, spec.levels)[k]
        np.testing.assert_array_equal(values, rows[part])
    assert example("causal")[0].spec((5, 2, 2)).levels == (3, 20)


@pytest.mark.parametrize("name", ["concat", "residual", "causal"])
def test_ids_decode_to_what_training_sees(name):
    model, params, z = example(name)
    coded = jax.jit(lambda z: model.quantize(params, z, None, False))(z)
    np.testing.assert_array_equal(coded.ids, tokens(name).ids)
    decoded = jitted(name)(coded.ids, None)
    np.testing.assert_allclose(decoded, coded.values, atol=1e-4)
    assert decoded.shape == (*z.shape[:-1], model.channels)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_gradients_pass_every_level_straight_through(name):
    model, params, z = example(name)
    model = dataclasses.replace(model, dropout=0.0)
    weights = jax.random.normal(jax.random.key(3), (*z.shape[:-1], model.channels))
    total = lambda model, z: (weights * model.quantize(params, z, None, True).values).sum()
    gradient = jax.jit(jax.grad(functools.partial(total, model)))(z)
    smooth = spied(model, Fixed)
    Fixed.errors.clear()
    total(smooth, z)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    slope = (total(smooth, z + step) - total(smooth, z - step)) / 2e-2
    np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=1e-2)


def test_every_codebook_moves_by_its_own_averages():
    model, params, z = example("concat")
    Seen.latents.clear()
    coded = spied(model, Seen).quantize(params, z, jax.random.key(4), True)
    assert set(coded.moves) == {"level0", "level1", "level2"}
    for k, ids in enumerate(hierarchy.split(coded.ids, (2, 8, 32))):
        own = {n: np.asarray(x) for n, x in params[f"level{k}"]["codes"].items()}
        latents, ids = np.asarray(Seen.latents[k]).reshape(-1, 4), np.asarray(ids).ravel()
        near = np.square(latents[:, None] - own["embedding"][None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(ids, near)
        hot = np.eye(16)[ids]
        counts = 0.99 * own["counts"] + 0.01 * hot.sum(0)
        sums = 0.99 * own["sums"] + 0.01 * hot.T @ latents
        smooth = (counts + 1e-5) / (counts.sum() + 16e-5) * counts.sum()
        for key, new in dict(counts=counts, sums=sums, embedding=sums / smooth[:, None]).items():
            moved = own[key] + coded.moves[f"level{k}"]["codes"][key]
            np.testing.assert_allclose(moved, new, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["concat", "residual"])
def test_prefixes_decode_by_whole_levels(name):
    model, params, _ = example(name)
    ids, decode = tokens(name).ids, jitted(name)
    keep = lambda n: jnp.full(6, n, jnp.int32)
    ten = decode(ids, keep(10))
    np.testing.assert_allclose(decode(ids.at[:, 10:].set(3), keep(10)), ten, atol=1e-5)
    np.testing.assert_allclose(decode(ids, keep(41)), ten, atol=1e-5)
    np.testing.assert_allclose(decode(ids[:, :13], None), ten, atol=1e-5)
    assert float(jnp.abs(decode(ids, None) - ten).max()) > 1e-2
    mixed = decode(ids, jnp.asarray([2, 10, 42, 2, 10, 42]))
    np.testing.assert_allclose(mixed[1], ten[1], atol=1e-5)
    np.testing.assert_allclose(mixed[2], decode(ids, None)[2], atol=1e-5)
    # what is dropped is the level's own mask vector
    codes = [
        params[f"level{k}"]["codes"]["embedding"][part].reshape(6, *grid, 4)
        for k, (part, grid) in enumerate(
            zip(hierarchy.split(ids, (2, 8, 32)), model.grids((8, 4)), strict=True)
        )
    ]
    mask = params["level2"]["mask_token"]
    codes[2] = jnp.broadcast_to(mask[0].reshape(1, 1, 1, 4), codes[2].shape)
    parts = model.contributions(params, codes)
    whole = sum(parts) if name == "residual" else jnp.concatenate(parts, -1)
    np.testing.assert_allclose(whole, ten, atol=1e-5)


def test_a_level_without_a_mask_vector_leaves_zeros():
    _, params, _ = example("plain")
    ids = tokens("plain").ids
    first = jitted("plain")(ids, jnp.full(6, 4, jnp.int32))
    np.testing.assert_array_equal(first[..., 4:], 0.0)
    np.testing.assert_allclose(first[..., :4], jitted("plain")(ids, None)[..., :4], atol=1e-5)
    assert "mask_token" not in params["level1"]


def test_contributions_sum_and_do_not_see_each_other():
    model, params, _ = example("residual")
    ids, counts, grids = tokens("residual").ids, (2, 8, 32), model.grids((8, 4))
    rows = [params[f"level{k}"]["codes"]["embedding"] for k in range(3)]
    looked = lambda ids: [
        table[part].reshape(6, *grid, 4)
        for table, part, grid in zip(rows, hierarchy.split(ids, counts), grids, strict=True)
    ]
    said = jax.jit(lambda ids: model.contributions(params, looked(ids)))
    parts = said(ids)
    np.testing.assert_allclose(sum(parts), jitted("residual")(ids, None), atol=1e-4)
    others = said(ids.at[:, 2:10].set((ids[:, 2:10] + 5) % 16))
    np.testing.assert_allclose(others[0], parts[0], atol=1e-6)
    np.testing.assert_allclose(others[2], parts[2], atol=1e-6)
    assert float(jnp.abs(others[1] - parts[1]).max()) > 1e-2


def test_training_drops_the_finest_levels():
    model, params, z = example("residual")
    many = jnp.repeat(z, 8, 0)
    coded = jax.jit(lambda z, key: model.quantize(params, z, key, True))(many, jax.random.key(5))
    levels = [jitted("residual")(coded.ids, jnp.full(48, n, jnp.int32)) for n in (2, 10, 42)]
    gaps = np.stack([np.abs(coded.values - x).max((1, 2, 3)) for x in levels])
    seen = gaps.argmin(0)
    np.testing.assert_allclose(gaps.min(0), 0, atol=1e-4)
    assert 0.25 < (seen == 0).mean() < 0.75
    whole_model = dataclasses.replace(model, dropout=0.0)
    assert set(seen) == {0, 1}  # with dropout 1 none is seen whole
    whole = jax.jit(lambda z: whole_model.quantize(params, z, None, True))(z)
    np.testing.assert_allclose(whole.values, jitted("residual")(whole.ids, None), atol=1e-4)


def conv(x, layer, stride, pad, dilate=1):
    """A convolution, in float64."""
    kernel, side = np.asarray(layer["kernel"], np.float64), layer["kernel"].shape[0]
    if dilate > 1:
        wide = np.zeros((len(x), *[dilate * n - 1 for n in x.shape[1:3]], x.shape[3]))
        wide[:, ::dilate, ::dilate] = x
        x = wide
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("bijcpq,pqcd->bijd", windows, kernel) + np.asarray(layer["bias"])


def test_losses_and_codes_are_their_definition():
    """VQ-VAE-2 of two levels, with nothing of the library but the parameters."""
    model, params, z = example("plain")
    coded = jax.jit(lambda z: model.quantize(params, z, None, True))(z)
    linear = lambda x, p: x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"])
    relu = lambda x: np.maximum(x, 0)
    top, fine, z = params["level0"], params["level1"], np.asarray(z, np.float64)

    def code(x, rows):
        rows = np.asarray(rows, np.float64)
        ids = np.square(x[..., None, :] - rows).sum(-1).argmin(-1)
        return rows[ids], ids.reshape(len(x), -1), np.square(x - rows[ids]).mean()

    down, up = fine["encoder"], fine["decoder"]
    h = relu(conv(relu(conv(z, down["conv_down0"], 2, 1)), down["stack"]["conv_in"], 1, 1))
    first, ids0, error0 = code(
        linear(linear(h, down["out"]), top["to_latents"]), top["codes"]["embedding"]
    )
    raised = conv(relu(conv(first, up["stack"]["conv_in"], 1, 1)), up["up0"], 1, 2, dilate=2)
    both = np.concatenate([raised, z], -1)
    second, ids1, error1 = code(linear(both, fine["to_latents"]), fine["codes"]["embedding"])
    np.testing.assert_array_equal(coded.ids, np.concatenate([ids0, ids1], 1))
    np.testing.assert_allclose(coded.loss, 1.25 * (error0 + error1), rtol=1e-4)
    np.testing.assert_allclose(coded.values, np.concatenate([raised, second], -1), atol=1e-4)


def test_a_level_of_a_video_does_not_see_later_frames():
    model, params, z = example("causal")
    later = z.at[:, 3:].multiply(-2.0)  # latents 3 and 4 are the coarse level's last
    encode = jax.jit(model.encode)
    old, new = tokens("causal").ids, encode(params, later).ids
    for before, after in zip(*(hierarchy.split(x, (3, 20)) for x in (old, new)), strict=True):
        frames = before.shape[1] // (1 if before.shape[1] == 3 else 4)
        before, after = (x.reshape(6, frames, -1) for x in (before, after))
        cut = 2 if frames == 3 else 3
        np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
        assert (before[:, cut:] != after[:, cut:]).any()
    decode = jitted("causal")
    np.testing.assert_allclose(decode(old, None)[:, :3], decode(new, None)[:, :3], atol=1e-5)


def test_networks_that_see_all_frames_join_levels_too():
    network = dict(
        name="video", width=8, stride=(2, 2, 2), blocks=1, heads=2, groups=4, causal=False
    )
    model = hierarchy.make(common.section(**tokenizers.hierarchy(6, [network], CODES)), "t")
    params = jax.eval_shape(model.init, jax.random.key(0))
    z = jax.ShapeDtypeStruct((2, 4, 4, 4, 6), jnp.float32)
    ids = jax.eval_shape(lambda p, z: model.encode(p, z).ids, params, z)
    decoded = jax.eval_shape(lambda p, i: model.decode(p, Tokens(ids=i), (4, 4, 4)), params, ids)
    assert (ids.shape, decoded.shape) == ((2, 8 + 64), (2, 4, 4, 4, 8))


def test_sections_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"t\.networks\.level2 = .*: expected one for latents"):
        example("concat")[0].spec((9, 4))
    with pytest.raises(ConfigError, match=r"t\.networks\.level1 = .*: expected one for latents"):
        example("causal")[0].spec((4, 2, 2))
    section = common.section(**tokenizers.hierarchy(6, [tokenizers.DIGITS], CODES))
    with pytest.raises(ConfigError, match=r"t\.networks\.level1\.name = 'conv': expected strided"):
        hierarchy.make(section, "t")
