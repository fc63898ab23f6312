"""MaskGIT's and GIVT's tokenizers against their official code, from files as they were released.

Fixtures: google-research/maskgit nets/vqgan_tokenizer.py (VQVAE, train=True for the losses) and
google-research/big_vision models/proj/givt/cnn.py (Model, malib_ckpt=True), both with 32 filters,
multipliers (1, 1, 2), 2 residual blocks and pictures of 16 x 16; 32 codes of 8 channels, and 4
channels. Every parameter was overwritten by `official.seeded` times its gain. MaskGIT's code was
given the pictures in [0, 1].
"""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from nexttok import experiment, importing
from nexttok.bottlenecks import kl, vq
from nexttok.config import ConfigError
from nexttok.main import load_config
from nexttok.tokens import Tokens
from tests.parity import official
from tests.tokenizers import sections

SMALL = dict(width=32, multipliers=(1, 1, 2), discriminator_layers=1)
MASKGIT = SMALL | dict(channels=8, size=32)
GIVT = SMALL | dict(channels=4)


def small(spec, sizes):
    """The experiment of a released size with a tokenizer of the fixture's."""
    config = load_config(spec)
    config.dtype, config.data.resolution = "float32", 16
    sections.changed(config.tokenizer, **sizes)
    return experiment.resolve(config)


def state_of(name):
    return official.state_dict(official.load(name), "flax")


def imported(system, exp, released, directory):
    """The model, and its parameters out of a released file."""
    file = directory / "released_checkpoint"
    file.write_bytes(flax.serialization.msgpack_serialize(released))
    params = importing.SYSTEMS[system].convert(importing.state_of(str(file)), exp)
    return exp.tokenizer, jax.tree.map(jnp.asarray, params)


def nested(state):
    return unflatten_dict({tuple(name.split("/")): value for name, value in state.items()})


@pytest.fixture(name="maskgit", scope="module")
def _maskgit(tmp_path_factory):
    released = {"params": nested(state_of("maskgit_vq"))}
    exp = small("configs/maskgit.py:imagenet256", MASKGIT)
    found = imported("maskgit_vq", exp, released, tmp_path_factory.mktemp("maskgit"))
    return *found, official.load("maskgit_vq")


@pytest.fixture(name="givt", scope="module")
def _givt(tmp_path_factory):
    tree = nested(state_of("givt_vae"))
    released = {"ema_params": tree, "g_params": jax.tree.map(np.zeros_like, tree)}
    exp = small("configs/givt.py:imagenet256", GIVT)
    found = imported("givt_vae", exp, released, tmp_path_factory.mktemp("givt"))
    return *found, official.load("givt_vae")


@pytest.mark.parametrize("name", ["maskgit", "givt"])
def test_converted_parameters_have_the_structure_of_init(name, request):
    model, params, _ = request.getfixturevalue(name)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    del expected["discriminator"]  # not released
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


def test_maskgit_encodes_quantizes_and_decodes_alike(maskgit):
    model, params, found = maskgit

    @jax.jit
    def run(params, image):
        hidden = model.encoder.apply({"params": params["encoder"]}, image)
        tokens = model.encode(params, image)
        return hidden, tokens.ids, model.decode(params, Tokens(ids=tokens.ids))

    hidden, ids, pictures = run(params, jnp.asarray(found["image"]))
    official.close(hidden, found["hidden"])
    np.testing.assert_array_equal(ids, found["ids"].reshape(2, 16))
    assert len(np.unique(ids)) > 8
    official.close((pictures + 1.0) / 2.0, found["decoded"])


def test_maskgit_codebook_losses(maskgit):
    model, params, found = maskgit
    hidden, rows = jnp.asarray(found["hidden"]), params["quantizer"]["embedding"]
    codes = model.bottleneck
    _, _, aux = vq.quantize(hidden, rows, codes.normalize, codes.beta)
    entropy = codes.entropy_weight * vq.entropy(hidden, rows, codes.normalize)
    got = [aux["codebook"], aux["commitment"], entropy]
    np.testing.assert_allclose(got, found["losses"], rtol=1e-4)


def test_givt_moments_kl_and_pictures(givt):
    model, params, found = givt

    @jax.jit
    def run(params, image):
        moments = model.encoder.apply({"params": params["encoder"]}, image)
        mode = model.encode(params, image)
        return moments, mode.values, model.decode(params, mode)

    moments, mode, pictures = run(params, jnp.asarray(found["image"]))
    official.close(moments[..., :4].reshape(2, 16, 4), found["mean"])
    official.close(moments[..., 4:].reshape(2, 16, 4), found["log_variance"])
    official.close(mode, found["mean"])
    official.close(pictures, found["decoded"])
    official.close(jnp.clip(pictures, -1.0, 1.0), found["clipped"])  # as pictures are drawn
    mean = kl.quantize(moments, None)[2]["kl"]  # the official one sums
    np.testing.assert_allclose(mean * 64, found["kl"], rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("maskgit.py:imagenet256", dict(encoder=23_775_104, decoder=30_478_339, quantizer=262_144)),
        ("maskgit.py:imagenet512", dict(encoder=23_775_104, decoder=30_478_339, quantizer=262_144)),
        ("givt.py:imagenet256", dict(encoder=23_660_192, decoder=29_372_419)),
        ("givt.py:imagenet256_large", dict(encoder=23_660_192, decoder=29_372_419)),
    ],
)
def test_parameter_counts_of_the_released_tokenizers(spec, counts):
    """Those of the official modules' shapes; MaskGIT's 227 M are its tokenizer and transformer."""
    model = experiment.resolve(load_config(f"configs/{spec}")).tokenizer
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    del shapes["discriminator"]
    got = {k: sum(p.size for p in jax.tree.leaves(v)) for k, v in shapes.items()}
    assert got == counts
    assert model.encoder_sizes.stride == 16


def test_every_wrong_entry_is_named():
    exp = small("configs/givt.py:imagenet256", GIVT)
    state = state_of("givt_vae")
    del state["encoder/ResBlock_4/Conv_2/kernel"]
    state["decoder/extra"] = np.zeros(1, np.float32)
    state["decoder/Conv_3/bias"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError) as error:
        importing.SYSTEMS["givt_vae"].convert(state, exp)
    assert "missing encoder/ResBlock_4/Conv_2/kernel" in str(error.value)
    assert "unknown decoder/extra" in str(error.value)
    assert "decoder/Conv_3/bias is (1,) instead of (3,)" in str(error.value)


def test_a_config_of_another_network_is_refused():
    exp = experiment.resolve(load_config("configs/maskgit.py"))
    with pytest.raises(
        ConfigError, match=r"tokenizer\.encoder\.name = 'conv': expected 'pooled_conv'"
    ):
        importing.SYSTEMS["maskgit_vq"].convert(state_of("maskgit_vq"), exp)
