"""DetailFlow's own claims, at toy size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import detailflow as config
from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.vit import FeatureEncoder, ViTConfig
from nexttok.tokenizers import detail, detailflow
from nexttok.tokens import Tokens

SHAPE, COUNT, GROUP = (8, 8, 1), 8, 2


def make(shape=SHAPE, features=None, decoder=None, registers=COUNT, group=GROUP, **changes):
    sizes = config.network((2, 2), 16, 2, registers, head_dim=8, mlp_hidden=32)
    section = config.tokenizer(sizes, tokenizers.codes(channels=4, size=16), group, decoder)
    section.update(neighbours=5, align_hidden=8)
    section.update(changes)
    return detailflow.make(section, shape, features=features)


def varied(params, seed=0):
    """No entry zero, no two codes alike."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


MODEL = make()
IMAGES = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1.0)
ENCODE, DECODE = jax.jit(MODEL.encode), jax.jit(MODEL.decode)
LATENTS, LOSS = jax.jit(MODEL.latents), jax.jit(MODEL.loss)


@functools.cache
def params():
    return varied(jax.jit(MODEL.init)(jax.random.key(0)))


def test_resolutions_are_the_papers():
    found = detail.resolutions(128, 256, 1.5)
    table = {1: 1, 8: 21, 16: 44, 32: 88, 64: 164, 96: 223, 128: 256}
    assert {t: int(found[t - 1]) for t in table} == table
    for count, side, power in ((128, 256, 1.5), (512, 256, 1.5), (8, 8, 1.0), (16, 16, 2.0)):
        r = detail.resolutions(count, side, power)
        assert (r[0], r[-1]) == (1, side)
        assert (np.diff(r) >= 0).all()
    np.testing.assert_array_equal(detail.resolutions(8, 8, 1.0), np.arange(1, 9))
    np.testing.assert_array_equal(detail.drawn_sides(np.asarray([1, 16, 17, 255]), 16),
                                  [16, 16, 32, 256])  # fmt: skip


def test_targets_are_shrunk_by_areas():
    """Each pixel of r(t) is a mean of its area; where r(t) is the side nothing changes."""
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    half = detail.multiscale.resample(x, detail.degraded(8, 4, 4))
    np.testing.assert_allclose(half, x.reshape(1, 4, 2, 4, 2, 1).mean((2, 4)), rtol=1e-5)
    np.testing.assert_array_equal(detail.degraded(8, 8, 8), np.eye(8))
    flat = detail.multiscale.resample(x, detail.degraded(8, 1, 4))
    np.testing.assert_allclose(flat, np.full((1, 4, 4, 1), x.mean()), rtol=1e-5)


def test_lengths_and_windows_are_drawn_as_they_should():
    keys = jax.random.split(jax.random.key(0), 8000)
    lengths = np.asarray(jax.vmap(lambda k: detail.sample_length(k, 8, 2, 0.5))(keys))
    share = np.bincount(lengths, minlength=9) / len(keys)
    expected = [0, 1 / 12, 1 / 12, 0, 1 / 6, 0, 1 / 6, 0, 1 / 2]
    np.testing.assert_allclose(share, expected, atol=0.02)
    wanted = {1: [(8, 8)], 2: [(0, 1), (1, 2)], 4: [(0, 1), (1, 2)],
              8: [(0, 1), (1, 2), (2, 4), (4, 6)]}  # fmt: skip
    for t, windows in wanted.items():
        draw = jax.vmap(lambda k, t=t: jnp.stack(detail.sample_window(k, 8, 2, t)))
        assert sorted({tuple(w) for w in np.asarray(draw(keys[:200])).tolist()}) == windows


@pytest.mark.parametrize("end", [1, 4, 8])
def test_shares_of_the_losses_sum_to_one(end):
    clean, again = detail.shares(8, end)
    assert float(clean + again) == pytest.approx(1.0)
    assert float(again) == pytest.approx((8 - end) / (16 - end))


def test_codes_of_a_group_ignore_the_groups_after_it():
    few, own = make(registers=4), params()
    short = own | {"registers": own["registers"] | {
        name: table[:4] for name, table in own["registers"].items() if name != "from_latents"
    }}  # fmt: skip
    z, fewer = LATENTS(own, IMAGES), jax.jit(few.latents)(short, IMAGES)
    np.testing.assert_allclose(z[:, :4], fewer, atol=1e-5)
    assert float(jnp.abs(z[0, 0] - z[1, 0]).max()) > 1e-3


def test_the_first_group_is_causal_and_the_others_see_themselves():
    own = params()

    def latents(change):
        moved = own["registers"] | {"registers": own["registers"]["registers"] + change}
        return MODEL.latents(own | {"registers": moved}, IMAGES).sum((0, 2))

    read = jnp.abs(jax.jit(jax.jacobian(latents))(jnp.zeros((COUNT, 16)))).max(-1) > 1e-9
    step = np.asarray([0, 1, 2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(read, step[None] <= step[:, None])


def test_patches_do_not_read_registers():
    steps = np.asarray(MODEL.encoder_sizes.steps(16))
    assert steps[:16].max() < steps[16:].min()


@pytest.mark.parametrize("keep", [1, 3, 4, 8])
def test_decoding_t_tokens_ignores_later_ones(keep):
    a = jax.random.randint(jax.random.key(3), (3, COUNT), 0, 16, jnp.int32)
    b = jnp.where(jnp.arange(COUNT)[None] < keep, a, (a + 5) % 16)
    kept = jnp.full((3,), keep, jnp.int32)
    one, two = (DECODE(params(), Tokens(ids=ids), None, kept) for ids in (a, b))
    np.testing.assert_array_equal(one, two)
    first = a.at[:, 0].set((a[:, 0] + 5) % 16)
    assert float(jnp.abs(DECODE(params(), Tokens(ids=first), None, kept) - one).max()) > 1e-4
    values = MODEL.bottleneck.ids_to_values(params()["quantizer"], a)
    given = DECODE(params(), Tokens(values=values), None, kept)
    np.testing.assert_allclose(given, one, atol=1e-5)


def test_dropped_latents_are_as_if_they_were_not_there():
    """The decoder with 4 registers on the first 4 latents is the one with 8 that keeps 4."""
    few, own = make(registers=4), params()
    places = own["decoder"]["latent_positions"][:4]
    short = own["decoder"] | {"latent_positions": places}
    values = jax.random.normal(jax.random.key(4), (3, COUNT, 4))
    for side in (4, 8):
        cut = jax.jit(few.render_at, static_argnums=3)({"decoder": short}, values[:, :4], 4, side)
        kept = jax.jit(MODEL.render_at, static_argnums=3)(own, values, 4, side)
        assert kept.shape == (3, side, side, 1)
        np.testing.assert_allclose(kept, cut, atol=1e-5)


def test_examples_keep_their_own_lengths():
    tokens = ENCODE(params(), IMAGES)
    mixed = DECODE(params(), tokens, None, jnp.asarray([1, 8, 3], jnp.int32))
    for i, keep in enumerate((1, 8, 3)):
        alone = DECODE(params(), tokens, None, jnp.full((3,), keep, jnp.int32))
        np.testing.assert_allclose(mixed[i], alone[i], atol=1e-5)
    np.testing.assert_allclose(mixed[1], DECODE(params(), tokens)[1], atol=1e-5)
    cut = MODEL.decode(params(), Tokens(ids=tokens.ids[:, :3]))
    np.testing.assert_allclose(cut[2], mixed[2], atol=1e-5)


def test_corrected_sequences():
    clean = ENCODE(params(), IMAGES).ids
    corrected = jax.jit(MODEL.corrected)
    disturbed = set()
    for seed in range(12):
        inputs, labels = corrected(params(), IMAGES, jax.random.key(seed))
        apart = np.flatnonzero(np.asarray(inputs != labels).any(0))
        if not len(apart):
            continue
        start, end = apart[0], apart[-1] + 1
        disturbed.add(int(start))
        assert (start < GROUP and end == start + 1) or start // GROUP == (end - 1) // GROUP
        np.testing.assert_array_equal(labels[:, :end], clean[:, :end])
        np.testing.assert_array_equal(inputs[:, :start], clean[:, :start])
    assert len(disturbed) >= 3


def test_nothing_disturbed_gives_labels_as_inputs_and_tokens_anew():
    same = dataclasses.replace(MODEL, neighbours=1)
    inputs, labels = jax.jit(same.corrected)(params(), IMAGES, jax.random.key(0))
    np.testing.assert_array_equal(inputs, labels)
    z = LATENTS(params(), IMAGES)
    values = MODEL.bottleneck.quantize(params()["quantizer"], z, None, False).values
    again = LATENTS(params(), IMAGES, values, 4)
    assert float(jnp.abs(again[:, 4:] - z[:, 4:]).max()) > 1e-3  # other vectors ask for them
    other = values.at[:, 5:].add(1.0)
    np.testing.assert_array_equal(LATENTS(params(), IMAGES, other, 4), again)


def test_disturbed_codes_are_among_the_nearest():
    z, own = LATENTS(params(), IMAGES), params()["quantizer"]
    ids = ENCODE(params(), IMAGES).ids
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
    near = np.argsort(-unit(np.asarray(z)) @ unit(np.asarray(own["embedding"])).T, axis=-1)[..., :5]
    seen = set()
    for seed in range(40):
        noisy = np.asarray(MODEL.disturb(params(), z, ids, (2, 4), jax.random.key(seed)))
        np.testing.assert_array_equal(noisy[:, :2], ids[:, :2])
        np.testing.assert_array_equal(noisy[:, 4:], ids[:, 4:])
        assert (noisy[:, 2:4, None] == near[:, 2:4]).any(-1).all()
        seen.add(int(noisy[0, 2]))
    assert seen == set(near[0, 2].tolist())


@functools.cache
def grads():
    """Of a training step's loss."""
    loss = lambda p, key: MODEL.loss(p, {"image": IMAGES}, key)[0].mean()
    return jax.jit(jax.grad(loss))


@pytest.mark.slow
def test_the_loss_is_finite_at_every_length_and_reaches_every_part():
    keys = jax.random.split(jax.random.key(0), 200)
    lengths = jax.vmap(lambda k: detail.sample_length(k, COUNT, GROUP, 0.2))(keys).tolist()
    assert set(lengths) == {1, 2, 4, 6, 8}
    found = {t: keys[lengths.index(t)] for t in set(lengths)}
    for t, key in found.items():
        loss, metrics = LOSS(params(), {"image": IMAGES}, key)
        assert loss.shape == (3,)
        assert bool(jnp.isfinite(loss).all())
        assert int(metrics["length"]) == t
    full = grads()(params(), found[8])
    for path, g in jax.tree_util.tree_leaves_with_path(full):
        key_bias = "wk" in str(path) and "bias" in str(path)  # softmax does not see it
        assert key_bias or float(jnp.abs(g).max()) > 0, path
    # with one token nothing is encoded anew, and the loss is that of the clean codes alone
    one = grads()(params(), found[1])
    for name in ("refined_registers", "from_latents"):
        assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(one["registers"][name]))
    drawn = jax.jit(MODEL.render_at, static_argnums=3)(
        params(), ENCODE(params(), IMAGES).values, 1, 2
    )
    target = np.broadcast_to(IMAGES.mean((1, 2, 3), keepdims=True), drawn.shape)
    z = LATENTS(params(), IMAGES)
    codes = MODEL.bottleneck.quantize(params()["quantizer"], z, None).loss
    loss, _ = LOSS(params(), {"image": IMAGES}, found[1])
    error = np.square(drawn - target).mean((1, 2, 3))
    np.testing.assert_allclose(loss, error + codes, rtol=1e-4)


@pytest.mark.slow
def test_without_correction_and_with_a_discriminator():
    section = dict(adversarial_weight=0.5, discriminator_width=4, discriminator_layers=1,
                   discriminator_norm="group", lecam_weight=0.1)  # fmt: skip
    model = make(correct=False, degrade=1.0)
    losses = dataclasses.replace(model.losses, **section)
    model = dataclasses.replace(model, losses=losses)
    own = jax.jit(model.init)(jax.random.key(0))
    assert set(own["registers"]) == {"registers", "latent_positions"}
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), own | {"more": params()["registers"]})
    batch = {"image": IMAGES, "step": jnp.asarray(3, jnp.int32)}
    loss, metrics = jax.jit(model.loss)(own, batch, jax.random.key(1))
    assert float(metrics["length"]) < COUNT
    assert bool(jnp.isfinite(loss).all())
    assert set(metrics["moves"]["lecam"]) == {"real", "fake"}
    with pytest.raises(ConfigError, match=r"tokenizer\.correct = False: expected True"):
        model.corrected(own, IMAGES, jax.random.key(0))


def test_alignment_pulls_the_first_token_to_the_provider():
    provider = FeatureEncoder(ViTConfig(16, 1, 8, patch=4, side=8, stored_grid=2))
    model = make(features=provider, align_weight=2.0, degrade=0.0, correct=False)
    frozen = {"features": jax.jit(provider.init)(jax.random.key(9))}
    own = varied(jax.jit(model.init)(jax.random.key(0)))

    @jax.jit
    def align(p, registers):
        moved = p | {"registers": p["registers"] | {"registers": registers}}
        loss, metrics = model.loss(moved | frozen, {"image": IMAGES}, jax.random.key(1))
        return metrics["align"], (loss, metrics)

    (value, (loss, metrics)), slope = jax.value_and_grad(align, 1, has_aux=True)(
        own, own["registers"]["registers"]
    )
    assert 0.0 <= float(value) <= 2.0
    rest = metrics["fidelity"] + metrics["codebook"] + metrics["commitment"]
    assert float(loss.mean()) == pytest.approx(float(rest + 2.0 * value), rel=1e-5)
    reached = np.asarray(jnp.abs(slope).max(-1)) > 0
    assert reached[0]
    assert not reached[1:].any()  # the first token sees no other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=(4, 8, 8, 1)), r"data\.frames = 4: expected 0"),
        (dict(shape=(8, 4, 1)), r"data = \(8, 4, 1\): expected square"),
        (dict(registers=2), r"encoder\.registers = 2: expected at least two groups of 2"),
        (dict(group=3), r"encoder\.group = 3: expected 1, or under visible = 'causal' a divisor"),
        (dict(decoder=dict(visible="causal")), r"decoder\.visible = 'causal': expected all"),
        (dict(degrade=1.5), r"tokenizer\.degrade = 1\.5: expected 0 \.\. 1"),
        (dict(power=0.0), r"tokenizer\.power = 0\.0: expected above 0"),
        (dict(neighbours=17), r"tokenizer\.neighbours = 17: expected 1 \.\. 16"),
        (dict(align_weight=1.0), r"tokenizer\.align_weight = 1\.0: expected 0, or above 0 with"),
        (dict(corect=True), r"corect = True: unknown key \(did you mean 'correct'\?\)"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make(**change)


def test_other_parts_are_refused():
    section = config.tokenizer(config.network((2, 2), 16, 1, 4, head_dim=8), tokenizers.codes(), 2)
    section.bottleneck = dict(name="fsq", levels=(5, 5), printed=False)
    with pytest.raises(ConfigError, match=r"bottleneck\.name = 'FSQ': expected vq"):
        detailflow.make(section, SHAPE)
    with pytest.raises(ConfigError, match=r"latent\.name"):
        detailflow.make(section, SHAPE, latent=object())
