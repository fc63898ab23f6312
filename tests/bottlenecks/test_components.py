"""Law table of bottleneck components: what every one of them owes, whatever its maths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, tokenizers
from nexttok import bottlenecks
from nexttok.config import ConfigError, part
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokens import Tokens
from nexttok.train import moved

GRID = (4, 2)
CODES = tokenizers.UNIT_CODES | dict(channels=4, size=16)
BITS = dict(name="binary", kind="lfq", bits=6, channels=6, signed=False, entropy_weight=0.1,
            diversity=1.0, beta=0.25)  # fmt: skip
SEVERAL = dict(name="residual", kind="residual", channels=4, size=16, codes=3, shared=False,
               beta=0.25, dropout=0.5)  # fmt: skip
JOIN = dict(name="strided", width=8, halvings=1, blocks=1, residual=4)
SECTIONS = {
    "vq": CODES | dict(normalize=False),
    "vq_unit": CODES | dict(entropy_weight=0.1),
    "vq_rotation": CODES | dict(gradient="rotation"),
    "vq_ema": CODES | dict(normalize=False, update="ema", revive="random", revive_below=1.0),
    "vq_kmeans": CODES | dict(normalize=False, update="ema", init_codes="kmeans"),
    "vq_anchor": CODES | dict(revive="anchor"),
    "vq_random": CODES | dict(revive="random", revive_below=0.5, init_codes="normal"),
    "vq_drawn": CODES | dict(temperature=0.03),
    "fsq": dict(name="fsq", levels=(5, 3, 4), printed=False),
    "lfq": BITS,
    "bsq": BITS | dict(kind="bsq", beta=0.0),
    "bsq_wide": BITS | dict(kind="bsq", beta=0.0, bits=40, channels=40),
    "bernoulli": BITS | dict(kind="bernoulli", channels=9, entropy_weight=0.0, beta=0.0),
    "bernoulli_signed": BITS
    | dict(kind="bernoulli", signed=True, channels=9, entropy_weight=0.0, beta=0.0),
    "residual": SEVERAL,
    "residual_shared": SEVERAL | dict(shared=True, dropout=0.0),
    "product": SEVERAL | dict(kind="product", codes=2, dropout=0.0),
    "scalars": dict(name="scalars", channels=5, size=7, codebook_weight=0.01,
                    commitment_weight=0.01),
    "transport": dict(name="transport", channels=4, size=16, weight=1e-3, even_weight=1.0,
                      eps=0.05, rounds=20),
    "prior": dict(name="prior", codes=CODES | dict(temperature=0.03, init_codes="kaiming"),
                  length=8, width=8, depth=1, head_dim=4, dropout=0.1, weight=0.06, rounds=2,
                  replaced=0.5, ramp=4),
    "hierarchy": tokenizers.hierarchy(6, [JOIN], CODES, dropout=0.5),
    "hierarchy_ema": tokenizers.hierarchy(
        6, [JOIN], CODES | dict(normalize=False, update="ema", init_codes="kmeans")),
    "hierarchy_residual": tokenizers.hierarchy(6, [JOIN], CODES, "residual", 0.5),
    "gumbel": tokenizers.gumbel(channels=4, size=16, kl_weight=0.1),
    "gumbel_hard": tokenizers.gumbel(channels=4, size=16, hard=True),
}  # fmt: skip


def make(name="vq", **changes):
    section = common.section(**(SECTIONS[name] | changes))
    return part(bottlenecks, section, "tokenizer.bottleneck").make(section, "tokenizer.bottleneck")


@functools.cache
def example(name):
    """The bottleneck, its parameters with codes that differ, latents, and its jitted answer."""
    model = make(name)
    spread = lambda path, x: (
        jax.random.normal(jax.random.key(1), x.shape) if path[-1].key == "embedding" else x
    )
    params = jax.tree_util.tree_map_with_path(spread, model.init(jax.random.key(0)))
    z = jax.random.normal(jax.random.key(2), (4, *GRID, model.inputs))
    quantize = jax.jit(lambda p, z, key, train: model.quantize(p, z, key, train), static_argnums=3)
    return model, params, z, quantize


MEMBERS = pytest.mark.parametrize("name", SECTIONS)


@MEMBERS
def test_ids_are_whole_and_say_the_values(name):
    model, params, z, quantize = example(name)
    spec, tokens = model.spec(GRID), model.encode(params, z)
    several = (spec.codes,) if spec.codes > 1 else ()
    assert tokens.ids.shape == (4, spec.length, *several)
    assert tokens.ids.dtype == jnp.int32
    assert 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < spec.vocab
    assert tokens.values.shape == (4, spec.length, spec.channels)
    coded = quantize(params, z, None, False)
    assert coded.values.shape == (4, *GRID, model.channels)
    if not spec.levels:
        flat = coded.values.reshape(tokens.values.shape)
        np.testing.assert_allclose(flat, tokens.values, atol=1e-5)
    for given in (tokens, Tokens(ids=tokens.ids), Tokens(values=tokens.values)):
        np.testing.assert_allclose(model.decode(params, given, GRID), coded.values, atol=1e-5)
    assert not coded.moves


@MEMBERS
def test_examples_do_not_see_each_other(name):
    model, params, z, _ = example(name)
    backward = model.encode(params, z[::-1]).ids[::-1]
    np.testing.assert_array_equal(backward, model.encode(params, z).ids)


@MEMBERS
def test_codes_to_values_to_codes_is_the_identity(name):
    model, params, _, _ = example(name)
    if name.startswith(("bernoulli", "residual", "fsq", "hierarchy", "gumbel")):
        pytest.skip("values of a projection, a sum, a bounded latent or logits are no latents")
    spec = model.spec(GRID)
    several = (spec.codes,) if spec.codes > 1 else ()
    ids = jax.random.randint(
        jax.random.key(3), (4, spec.length, *several), 0, spec.vocab, jnp.int32
    )
    values = model.ids_to_values(params, ids)
    np.testing.assert_array_equal(model.encode(params, values).ids, ids)


@MEMBERS
def test_training_gives_finite_losses_gradients_and_fitting_moves(name):
    model, params, z, _ = example(name)

    @jax.jit
    def run(params, z):
        def total(params, z):
            coded = model.quantize(params, z, jax.random.key(4), True)
            weights = jax.random.normal(jax.random.key(5), coded.values.shape)
            return (weights * coded.values).sum() + coded.loss.mean(), coded

        return jax.grad(total, (0, 1), has_aux=True)(params, z)

    (_, to_latents), coded = run(params, z)
    assert bool(jnp.isfinite(to_latents).all())
    assert float(jnp.abs(to_latents).max()) > 0
    assert coded.loss.shape in ((), (4,))
    assert all(bool(jnp.isfinite(m).all()) for m in coded.metrics.values())
    moves = jax.tree.leaves(coded.moves)
    assert all(bool(jnp.isfinite(change).all()) for change in moves)
    shapes = jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, moved(params, coded.moves)) == shapes
    needs = any(word in name for word in ("ema", "kmeans", "anchor", "random", "prior", "gumbel"))
    assert bool(coded.moves) == needs


@MEMBERS
def test_every_parameter_has_a_place(name):
    _, params, _, _ = example(name)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), {"quantizer": params})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vq", dict(size=1), r"tokenizer\.bottleneck\.size = 1: expected at least 2"),
        ("vq", dict(gradient="none"), r"gradient = 'none': expected straight \| rotation"),
        ("vq_unit", dict(update="ema"), r"update = 'ema': expected gradient, with normalize"),
        ("vq", dict(temperature=0.1), r"temperature = 0\.1: expected 0 without normalize"),
        ("vq", dict(revive="random"), r"revive_below = 0\.0: expected above 0"),
        ("vq", dict(revive_below=1.0), r"revive_below = 1\.0: expected above 0 under"),
        ("vq", dict(decay=1.0), r"decay = 1\.0"),
        ("lfq", dict(channels=7), r"channels = 7: expected the 6 bits"),
        ("lfq", dict(kind="fsq"), r"kind = 'fsq': expected lfq \| bsq \| bernoulli"),
        ("lfq", dict(signed=True), r"signed = True: expected False"),
        ("bernoulli", dict(beta=0.1), r"beta = 0\.1: expected 0 under"),
        ("product", dict(codes=3), r"codes = 3: expected a divisor of the 4 channels"),
        ("product", dict(dropout=0.5), r"dropout = 0\.5: expected off"),
        ("residual", dict(dropout=1.5), r"dropout = 1\.5: expected 0 \.\. 1"),
        ("transport", dict(eps=0.0), r"eps = 0\.0: expected above 0"),
        ("hierarchy", dict(combine="sum"), r"combine = 'sum': expected concat \| residual"),
        ("hierarchy", dict(dropout=1.5), r"dropout = 1\.5: expected 0 \.\. 1"),
        ("hierarchy", dict(codes=common.section(**SEVERAL)), r"codes\.name = 'residual': expected"),
        ("hierarchy", dict(networks=common.section()), r"networks\.level1 is missing"),
        ("gumbel", dict(temperature=0.0), r"temperature = 0\.0: expected above 0"),
        ("gumbel", dict(final_temperature=2.0), r"final_temperature = 2\.0: .* at most 1\.0"),
        ("gumbel", dict(anneal=0), r"anneal = 0: expected at least 1"),
    ],
)
def test_bad_sections_are_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **changes)
