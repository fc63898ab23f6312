"""VQGAN's own claims: codes, gradient routing, and when the discriminator counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import train
from nexttok.bottlenecks import vq
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.dino import DinoConfig
from nexttok.tokenizers import autoencoder, criteria, objective
from nexttok.tokens import Tokens
from tests.tokenizers import sections

SHAPE = (16, 16, 3)


def make(shape=SHAPE, bottleneck=sections.VQ, **changes):
    return autoencoder.make(sections.autoencoder(bottleneck, **changes), shape)


ADVERSARIAL = dict(
    adversarial_weight=0.5, perceptual_weight=1.0, discriminator_start=10, adaptive_weight=True,
    lecam_weight=0.1,
)  # fmt: skip
IMAGES = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1.0)


@functools.cache
def initial():
    """Parameters of every part, which the tests' weights do not change."""
    return jax.jit(make(**ADVERSARIAL).init)(jax.random.key(0))


@functools.cache
def stepped(**changes):
    """step -> (loss [B], metrics, gradients of the mean)."""
    model = make(**changes)

    @jax.jit
    def run(params, step):
        def total(p):
            loss, metrics = model.loss(p, {"image": IMAGES, "step": step}, jax.random.key(2))
            return loss.mean(), (loss, metrics)

        grads, (loss, metrics) = jax.grad(total, has_aux=True)(params)
        return loss, metrics, grads

    return lambda step: run(initial(), jnp.asarray(step, jnp.int32))


def largest(tree):
    return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))


@pytest.mark.parametrize("normalize", [True, False])
def test_ids_give_the_values_and_the_pictures(normalize):
    model, params = make(normalize=normalize), initial()
    decode = jax.jit(model.decode)
    tokens = jax.jit(model.encode)(params, IMAGES)
    assert tokens.ids.shape == (3, 64)
    assert tokens.ids.dtype == jnp.int32
    assert model.spec.grid == (8, 8)
    assert (model.spec.vocab, model.spec.channels) == (16, 4)
    rows = params["quantizer"]["embedding"]
    np.testing.assert_array_equal(tokens.values, vq.ids_to_values(tokens.ids, rows, normalize))
    if normalize:
        np.testing.assert_allclose(jnp.linalg.norm(tokens.values, axis=-1), 1.0, rtol=1e-5)
    pictures = decode(params, Tokens(ids=tokens.ids))
    assert pictures.shape == IMAGES.shape
    np.testing.assert_allclose(pictures, decode(params, Tokens(values=tokens.values)), atol=1e-5)


def test_gradients_pass_straight_through_the_codes():
    model, params = make(normalize=False), initial()
    weights = jax.random.normal(jax.random.key(3), (3, 8, 8, 4))
    encoded = lambda p: model.encoder.apply({"params": p}, IMAGES)

    def quantized(p):
        z = model.latents(params | {"encoder": p}, IMAGES)
        return model.bottleneck.quantize(params["quantizer"], z, None).values

    got, expected = (
        jax.grad(lambda p, f=f: (weights * f(p)).sum())(params["encoder"])
        for f in (quantized, encoded)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
    assert largest(got) > 1e-3


@pytest.mark.slow
def test_before_its_start_the_discriminator_changes_nothing():
    loss, metrics, grads = stepped(**ADVERSARIAL)(9)
    plain, _, expected = stepped(**(ADVERSARIAL | dict(adversarial_weight=0.0)))(9)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    for part in ("encoder", "decoder", "quantizer"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
            grads[part], expected[part],
        )  # fmt: skip
    assert largest(grads["discriminator"]) == 0.0
    assert float(metrics["discriminator"]) > 0.0


def test_from_its_start_both_losses_count():
    run = stepped(**ADVERSARIAL)
    before, _, quiet = run(9)
    loss, metrics, grads = run(10)
    balance = float(metrics["adaptive_weight"])
    assert 0.0 <= balance <= 1e4
    added = 0.5 * (balance * float(metrics["generator"]) + float(metrics["discriminator"]))
    assert float(loss.mean() - before.mean()) == pytest.approx(added, rel=1e-4)
    assert largest(grads["discriminator"]) > 1e-6
    change = jax.tree.map(jnp.subtract, grads["decoder"], quiet["decoder"])
    assert largest(change) > 1e-6


def test_each_term_reaches_its_own_side_only():
    model, params = make(**(ADVERSARIAL | dict(adaptive_weight=False))), initial()
    z = model.bottleneck.quantize(params["quantizer"], model.latents(params, IMAGES), None).values

    def terms(params):
        kernel = params["decoder"]["conv_out"]["kernel"]
        found = model.losses._adversarial(
            params, IMAGES, lambda _: (model.render(params, z), None), kernel, jnp.asarray(10), None
        )
        return found[2].mean(), found[3]

    both = jax.grad(lambda p: terms(p)[0])(params)
    generator = jax.grad(lambda p: terms(p)[1]["generator"])(params)
    judge = jax.grad(lambda p: terms(p)[1]["discriminator"])(params)
    assert largest(generator["discriminator"]) == 0.0
    assert largest(generator["decoder"]) > 0.0
    assert largest(judge["decoder"]) == 0.0
    assert largest(judge["discriminator"]) > 0.0
    for part, own in (("decoder", generator), ("discriminator", judge)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, 0.5 * b, rtol=1e-4, atol=1e-9),
            both[part], own[part],
        )  # fmt: skip


@pytest.mark.parametrize(("slope", "expected"), [(0.0, 0.0), (1e9, 1e4), (3.0, 1.5)])
def test_adaptive_weight_is_a_clipped_ratio_of_gradients(slope, expected):
    decode = lambda kernel: (jnp.ones((1, 2, 2, 1)) * kernel, "other")
    pictures, other, weight = criteria.adaptive_weight(
        decode, jnp.full((1, 1, 1, 1), 7.0), lambda r: slope * r.sum(), lambda r: 2.0 * r.sum()
    )
    assert other == "other"
    np.testing.assert_array_equal(pictures, jnp.full((1, 2, 2, 1), 7.0))
    assert float(weight) == pytest.approx(expected, rel=1e-3)


def test_adaptive_weight_has_no_gradient_and_keeps_that_of_the_pictures():
    def total(kernel):
        pictures, _, weight = criteria.adaptive_weight(
            lambda k: (jnp.full((1, 2, 2, 1), 3.0) * k, None), kernel,
            lambda r: jnp.square(r).sum(), lambda r: r.sum(),
        )  # fmt: skip
        return weight * pictures.sum(), weight

    grad, weight = jax.grad(total, has_aux=True)(jnp.ones((1, 1, 1, 1)))
    assert float(grad[0, 0, 0, 0]) == pytest.approx(12.0 * float(weight), rel=1e-5)


def test_lecam_is_its_definition():
    real, fake = jnp.asarray([[1.0, 3.0]]), jnp.asarray([[0.0, -1.0]])
    found = criteria.lecam(real, fake, jnp.asarray(2.0), jnp.asarray(-0.5))
    assert float(found[0]) == pytest.approx(((1.5**2 + 3.5**2) + (2.0**2 + 3.0**2)) / 2)
    hinge = float(criteria.hinge_discriminator(real, fake)[0])
    assert hinge == pytest.approx(0.5 * (0 + 0 + 1 + 0) / 2)


def test_lecam_keeps_means_of_logits_from_the_start_on():
    run = stepped(**ADVERSARIAL)
    before, after = (run(step)[1] for step in (9, 10))
    for name in ("real", "fake"):
        assert float(before["moves"]["lecam"][name]) == 0.0
        moved = float(after["moves"]["lecam"][name])
        assert moved == pytest.approx(1e-3 * float(after[f"logits_{name}"]), rel=1e-3)


def test_pyramid_is_blind_to_brightness_and_sees_edges_of_every_size():
    flat = jnp.zeros((1, 16, 16, 1))
    assert float(criteria.pyramid(flat, flat + 0.5)[0]) == 0.0
    line = jnp.arange(16)
    for period in (2, 4, 8):
        wave = jnp.where(line % period < period // 2, 1.0, -1.0).reshape(1, 1, 16, 1)
        wave = jnp.broadcast_to(wave, flat.shape)
        assert float(criteria.pyramid(flat, wave)[0]) == pytest.approx(1.0)
    coarse = jnp.where(line < 8, 1.0, -1.0).reshape(1, 1, 16, 1)
    assert float(criteria.pyramid(flat, jnp.broadcast_to(coarse, flat.shape))[0]) == 0.0
    odd = jnp.ones((1, 5, 5, 1))
    assert float(criteria.pyramid(odd, 2 * odd)[0]) == 0.0


def test_loss_without_adversary_is_its_definition():
    settings = dict(reconstruction="l1", reconstruction_weight=2.0, perceptual_weight=0.3)
    loss, metrics, _ = stepped(**settings, entropy_weight=0.2)(0)
    model, params = make(**settings), initial()
    recon = model.decode(params, model.encode(params, IMAGES))
    z = model.encoder.apply({"params": params["encoder"]}, IMAGES)
    rows = params["quantizer"]["embedding"]
    expected = 2.0 * jnp.abs(recon - IMAGES).mean((1, 2, 3))
    expected += 0.3 * criteria.pyramid(IMAGES, recon)
    unit = np.asarray(vq.unit(z))
    code = np.asarray(vq.ids_to_values(model.encode(params, IMAGES).ids, rows, True))
    expected += 1.25 * np.square(unit - code.reshape(unit.shape)).mean()
    expected += 0.2 * float(vq.entropy(z, rows, True))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert 1.0 <= float(metrics["perplexity"]) <= 16.0


def test_kl_latents_scale_and_sample():
    model = make(bottleneck=sections.KL, scaling_factor=0.5)
    params, encode = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.encode)
    assert set(params) == {"encoder", "decoder"}
    mode = encode(params, IMAGES)
    assert mode.ids is None
    moments = model.encoder.apply({"params": params["encoder"]}, IMAGES)
    mean = moments[..., :4].reshape(3, -1, 4)
    np.testing.assert_allclose(mode.values, 0.5 * mean, rtol=1e-5, atol=1e-6)
    drawn = encode(params, IMAGES, jax.random.key(1)).values
    assert float(jnp.abs(drawn - mode.values).max()) > 1e-3
    assert model.decode(params, mode).shape == IMAGES.shape


def test_parameters_are_placed_on_a_mesh():
    shapes = jax.eval_shape(make(**ADVERSARIAL).init, jax.random.key(0))
    placed = param_shardings(make_mesh(MeshConfig(-1, 2, 2, 1, 1)), shapes)
    assert placed["quantizer"]["embedding"].spec[0] == "tensor"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size=0), r"tokenizer\.bottleneck\.size = 0: expected at least 2"),
        (dict(reconstruction="l3"), r"tokenizer\.losses\.reconstruction = 'l3': expected l1 \| l2"),
        (dict(beta=-1.0), r"tokenizer\.bottleneck\.beta = -1\.0: expected at least 0"),
        (dict(quant_kernel=2), r"tokenizer\.encoder\.quant_kernel = 2: expected 1 \| 3"),
        (dict(groups=3), r"tokenizer\.encoder\.groups = 3"),
        (dict(adversarial_weight=1.0, discriminator_norm="layer"), r"expected batch \| group"),
        (dict(adversarial_weight=1.0, discriminator_layers=3), r"fewer, for pictures this small"),
        (dict(discriminator="video"), r"losses\.discriminator = 'video': expected patch \| dino"),
        (
            dict(adversarial_weight=1.0, discriminator="dino"),
            r"discriminator_checkpoint = '': expected a file under discriminator = 'dino'",
        ),
        (dict(perceptual_checkpoint="vgg.pth"), r"perceptual_checkpoint = 'vgg\.pth'"),
        (
            dict(decoder_attention=(2,)),
            r"tokenizer\.decoder\.attention = \(2,\): expected levels 0 \.\. 1",
        ),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes).init(jax.random.key(0))


def test_providers_and_videos_are_refused():
    with pytest.raises(ConfigError, match=r"data\.frames = 4"):
        make((4, 16, 16, 3))
    with pytest.raises(ConfigError, match=r"data\.resolution = 15: expected a multiple of 2"):
        make((15, 15, 3))
    with pytest.raises(ConfigError, match=r"latent\.name"):
        autoencoder.make(sections.autoencoder(), SHAPE, latent=make())


def test_parts_must_exist_and_fit():
    section = sections.autoencoder()
    section.encoder.name = "fourier"
    with pytest.raises(
        ConfigError, match=r"tokenizer\.encoder\.name = 'fourier': expected bigr \| conv \|"
    ):
        autoencoder.make(section, SHAPE)
    with pytest.raises(ConfigError, match=r"tokenizer\.decoder = 'of \(16, 16\) latents'"):
        make(decoder_multipliers=(1,), decoder_attention=())
    section = sections.autoencoder()
    section.bottleneck.name = "nothing"
    with pytest.raises(
        ConfigError, match=r"tokenizer\.bottleneck\.name = 'nothing': expected binary"
    ):
        autoencoder.make(section, SHAPE)


@functools.cache
def dino_loss():
    """Loss and metrics of an autoencoder that a (random) DINO judges."""
    changes = dict(
        adversarial_weight=0.5, discriminator="dino", discriminator_checkpoint="dino.pth",
        lecam_weight=0.1,
    )  # fmt: skip
    model = make(**changes)
    judge = {"judge": objective.DINO.init(jax.random.key(7))}
    params = model.init(jax.random.key(0)) | judge

    def loss(p, step=0):
        batch = {"image": IMAGES[:2], "step": jnp.asarray(step)}
        total, metrics = model.loss(p, batch, jax.random.key(1))
        return total.mean(), metrics

    return params, jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.slow
def test_dino_judges_frozen_and_its_heads_learn(monkeypatch):
    monkeypatch.setattr(objective, "DINO", DinoConfig(8, 1, 8, 16, 32, (0,)))
    params, run = dino_loss()
    trained = {k: v for k, v in params.items() if k != "judge"}
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), trained)
    (_, metrics), grads = run(params)
    assert set(metrics["moves"]) == {"discriminator", "lecam"}
    moved = train.moved(params, metrics["moves"])
    for name, leaves in moved["discriminator"].items():
        if "norm" not in name:
            assert float(jnp.linalg.norm(leaves["u"])) == pytest.approx(1.0, rel=1e-4)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads["judge"]))
    kernel = grads["discriminator"]["head0_conv0"]["kernel"]
    assert float(jnp.abs(kernel).max()) > 0
