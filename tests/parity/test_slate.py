"""SLATE against its official code, from a state dict of its names.

Fixture: singhgautam/slate slate.py in evaluation mode (no dropout) with pictures of 16 x 16, 32
codes, 3 slots of 24 channels with two heads, a transformer of width 32 with two layers of four
heads; every parameter was overwritten by `official.seeded` times its gain, and its noise by draws
that the fixture holds. Two pictures of bytes; latents; of the soft and of the hard relaxation at
temperature 0.5 the pictures, the sum of squares and the cross-entropy (sums per picture); slots,
their attention and the logits of the hard one; slots of the likeliest codes, the codes generated
from them, and their pictures.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import slate as config
from nexttok.bottlenecks import gumbel
from nexttok.config import ConfigError
from nexttok.interop import slate as interop
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import slate
from nexttok.tokens import Tokens
from tests.parity import official

SHAPE = (16, 16, 3)


def model():
    section = config.slate(config.dvae(size=32), 3, width=32, depth=2, head_dim=8, dropout=0.1)
    section.slots.update(width=24, heads=2, mlp_hidden=40)
    return slate.make(section, SHAPE)


@functools.cache
def loaded():
    """Model, converted parameters, fixture, pictures in [-1, 1]."""
    found, made = official.load("slate"), model()
    params = jax.tree.map(jnp.asarray, interop.convert(official.state_dict(found), made))
    return made, params, found, jnp.asarray(found["image"].astype(np.float32) / 127.5 - 1.0)


def test_parameters_have_the_structure_of_init_and_a_place():
    made, params, _, _ = loaded()
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), shapes)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_relaxed_pictures_and_their_error(kind):
    made, params, found, x = loaded()
    z = jax.jit(made.dvae.latents)(params, x)
    official.close(z, found["latents"])
    weights, _ = gumbel.mixture(z, jnp.asarray(found[f"{kind}/noise"]), 0.5, kind == "hard")
    rows = params["quantizer"]["embedding"]
    pictures = jax.jit(made.dvae.render)(params, weights @ rows)
    official.close(jnp.clip(0.5 * pictures + 0.5, 0.0, 1.0), found[f"{kind}/recon"])
    error = 0.25 * jnp.square(pictures - x).sum() / len(x)  # of pixels in [0, 1]
    np.testing.assert_allclose(error, found[f"{kind}/mse"], rtol=1e-4)


def test_slots_attention_and_cross_entropy_of_drawn_codes():
    made, params, found, _ = loaded()
    noise, z = jnp.asarray(found["slot_noise"]), jnp.asarray(found["latents"])
    surprise = jax.jit(made.surprise)
    for kind in ("soft", "hard"):
        _, ids = gumbel.mixture(z, jnp.asarray(found[f"{kind}/drawn"]), 0.5)
        ids = ids.reshape(2, -1)
        total = surprise(params, ids, noise).sum(-1).mean()
        np.testing.assert_allclose(total, found[f"{kind}/cross_entropy"], rtol=1e-4)
    embedded = jax.jit(made.embed)(params, ids)
    slots, attention = jax.jit(made.attend)(params, embedded, noise)
    official.close(slots, found["slots"])
    official.close(attention, found["attention"])
    official.close(jax.jit(made.logits)(params, embedded[:, :-1], slots), found["logits"])


def test_slots_of_pictures_and_greedy_pictures_of_slots():
    made, params, found, x = loaded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slate.SLATE, "noise", lambda *_: jnp.asarray(found["slot_noise"]))
        slots = jax.jit(made.encode)(params, x).values
    official.close(slots, found["encoded"])
    ids = jax.jit(made.generate)(params, slots)
    np.testing.assert_array_equal(ids, found["generated"])
    assert len(np.unique(found["generated"])) >= 5
    pictures = jax.jit(made.decode)(params, Tokens(values=slots))
    official.close(jnp.clip(0.5 * pictures + 0.5, 0.0, 1.0), found["pictures"])


def test_wrong_entries_and_other_tokenizers_are_named():
    made, _, found, _ = loaded()
    state = official.state_dict(found)
    del state["slot_attn.slot_mu"]
    state["tf_dec.blocks.0.self_attn_mask"] = np.zeros((16, 16), bool)
    state["tf_dec.extra"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError) as error:
        interop.convert(state, made)
    assert "missing slot_attn.slot_mu" in str(error.value)
    assert "unknown tf_dec.extra" in str(error.value)
    assert "mask" not in str(error.value)
    with pytest.raises(ConfigError, match=r"config\.tokenizer = .*as in configs/slate"):
        interop.convert(state, made.dvae)
