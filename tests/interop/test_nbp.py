"""The released entries of Next Block Prediction fit their configs, by name and shape.

Zeros stand for the weights, none of them held: the arrays are one number each.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import experiment, stages
from nexttok.config import ConfigError
from nexttok.importing import SYSTEMS
from nexttok.interop import nbp
from nexttok.interop.ucf101 import CLASSES, words
from nexttok.main import load_config

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "nbp.py"
WIDTHS = {"base": (1536, 24), "3b": (3072, 32)}


def zeros(*shape):
    return np.broadcast_to(np.float32(0), shape)


def unstacked(layer, count):
    """Shapes of the stack of all layers, every one of them read."""
    return jax.tree.map(lambda *leaves: zeros(count, *leaves[0].shape), *map(layer, range(count)))


def released(size, vocab, prefix):
    """Entries of a release: 5120 positions, a buffer for no class, masks, and the tokenizer."""
    d, depth = WIDTHS[size]
    shapes = {"tok_emb.weight": (vocab, d), "pos_emb": (1, 5120, d), "head.weight": (vocab, d)}
    shapes |= {"uncond_embedding": (prefix, d)}
    norms, layers = ["ln_f"], {}
    for i in range(depth):
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2"]
        layers |= {f"blocks.{i}.attn.{n}": (d, d) for n in ("query", "key", "value", "proj")}
        layers |= {f"blocks.{i}.mlp.0": (4 * d, d), f"blocks.{i}.mlp.2": (d, 4 * d)}
    shapes |= {f"{n}.{part}": (d,) for n in norms for part in ("weight", "bias")}
    shapes |= {f"{n}.weight": s for n, s in layers.items()}
    shapes |= {f"{n}.bias": s[:1] for n, s in layers.items()}
    state = {f"transformer.{name}": zeros(*shape) for name, shape in shapes.items()}
    state["first_stage_model.encoder_layers.0.conv.bias"] = zeros(128)
    return state | {"transformer.blocks.0.attn.mask": zeros(1, 1, 16, 16)}


@pytest.mark.parametrize(
    ("variant", "vocab", "prefix"),
    [
        ("ucf_base", 16 + 32_000 + 64_000, 8),
        ("ucf_3b", 16 + 32_000 + 64_000, 8),
        ("k600_base", 64_000, 0),
        ("k600_3b", 64_000, 0),
    ],
)
def test_released_generators_fit(variant, vocab, prefix, monkeypatch):
    monkeypatch.setattr(nbp, "stacked", unstacked)
    exp = experiment.resolve(load_config(f"{CONFIG}:{variant}"))
    state = released(variant.split("_")[1], vocab, prefix)
    params = SYSTEMS["nbp"].convert(state, exp)
    expected = stages.abstract_params(exp, "generator")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert exp.plan.calls == (95 if prefix else 48)
    short = state | {"transformer.pos_emb": zeros(1, 1263, state["transformer.pos_emb"].shape[2])}
    with pytest.raises(ConfigError, match=r"transformer\.pos_emb is \(1, 1263, "):
        SYSTEMS["nbp"].convert(short, exp)


# Of each list of the tokenizer's layers: convolutions, and residual blocks up to each index.
CONVS = {
    "encoder": {0: (3, 128), 5: (128, 128), 10: (256, 256), 15: (256, 256)},
    "decoder": {0: (6, 512), 9: (512, 4096), 15: (256, 2048), 21: (256, 1024), 29: (128, 3)},
}
BLOCKS = {
    "encoder": [(1, 4, 128, 128), (6, 9, 128, 256), (11, 14, 256, 256), (16, 23, 256, 512)],
    "decoder": [(1, 8, 512, 512), (11, 14, 512, 256), (17, 20, 256, 256), (23, 26, 256, 128)],
}
LAST = {"encoder": (24, 512), "decoder": (27, 128)}


def tokenizer_entries():
    """Entries of the released tokenizer."""
    shapes = {"encoder_layers.26.weight": (6, 512, 1, 1, 1), "encoder_layers.26.bias": (6,)}

    def conv(name, inputs, outputs, side=3):
        shapes[f"{name}.conv.weight"] = (outputs, inputs, side, side, side)
        shapes[f"{name}.conv.bias"] = (outputs,)

    def swish(norm, activation, width):
        shapes.update({f"{norm}.{part}": (width,) for part in ("weight", "bias")})
        shapes[f"{activation}.beta"] = (1, width, 1, 1, 1)

    for half in ("encoder", "decoder"):
        at = f"{half}_layers"
        for i, widths in CONVS[half].items():
            conv(f"{at}.{i}", *widths)
        for first, last, before, width in BLOCKS[half]:
            for i in range(first, last + 1):
                inputs = before if i == first else width
                for j, channels in enumerate((inputs, width)):
                    fn = f"{at}.{i}.fn"
                    swish(f"{fn}.{3 * j}", f"{fn}.{3 * j + 1}", channels)
                    conv(f"{fn}.{3 * j + 2}", channels, width)
                if inputs != width:
                    conv(f"{at}.{i}.residual_fn.0", inputs, width, 1)
        index, width = LAST[half]
        swish(f"{at}.{index}", f"{at}.{index + 1}", width)
    return {name: zeros(*shape) for name, shape in shapes.items()}


def test_the_released_tokenizer_fits():
    exp = experiment.resolve(load_config(f"{CONFIG}:ucf_base"))
    assert (exp.tokenizer.spec.grid, exp.tokenizer.spec.vocab) == ((5, 16, 16), 64_000)
    state = tokenizer_entries()
    params = SYSTEMS["nbp_tokenizer"].convert(state, exp)
    expected = stages.abstract_params(exp, "tokenizer")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    count = sum(math.prod(x.shape) for x in state.values())
    assert count == 370_372_105  # as official code counts
    assert count == sum(x.size for x in jax.tree.leaves(params))


def test_class_names_become_words():
    ids = words(8)
    assert ids.shape == (101, 8)
    assert list(ids[0]) == [1, 3394, 10977, 1207, 786, 2, 2, 2]
    assert list(CLASSES) == sorted(CLASSES)
    exp = experiment.resolve(load_config(f"{CONFIG}:ucf_base"))
    config = exp.config.copy_and_resolve_references()
    config.data.num_classes = 7
    gen = experiment.resolve(config).generator
    with pytest.raises(ConfigError, match=r"data\.num_classes = 7: expected 101"):
        nbp.convert(released("base", 96_016, 8), gen)
    config.generator.head.reserved = 20
    gen = experiment.resolve(config).generator
    with pytest.raises(ConfigError, match=r"head\.reserved = 20: expected special ids, and 32000"):
        nbp.convert(released("base", 64_020, 8), gen)
