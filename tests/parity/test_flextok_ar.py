"""FlexTok's class-conditional generator against its official code.

Fixtures: EPFL-VILAB/search-over-tokens flextok_ar/model/{preprocessors,generation}.py over
apple/ml-l3m's Transformer, EfficientAttention and LinearClassifier, at width 48, 3 heads, 2 layers,
8 tokens of 64 ids, 5 classes, learned positions, without and with biases, every parameter
overwritten by `official.seeded`. Greedy tokens come from generate_ids(cfg_factor=1.5, top_k=1),
the classes copied before every call: the official preprocessor overwrites the null class by class 0
in place, so that every call after the first would be guided away from class 0 instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flextok
from nexttok import generator
from nexttok.interop.flextok_ar import convert
from nexttok.samplers.schedules import Guidance
from nexttok.tokens import TokenSpec
from tests.parity import official
from tests.parity.test_llama import greedy, teacher_forced


def built(bias):
    section = flextok.generator()
    section.head.bias = bias
    section.backbone = flextok.released_backbone(
        width=48, depth=2, head_dim=16, mlp_hidden=192, bias=bias, mlp_bias=bias
    )
    return generator.make(section, TokenSpec((8,), 64, 4, True), 5)


@pytest.mark.parametrize("name", ["flextok_ar", "flextok_ar_bias"])
def test_teacher_forced_logits_loss_and_greedy_generation(name):
    fixture, gen = official.load(name), built(name.endswith("bias"))
    state = official.state_dict(fixture)
    params = convert(state | {"models.image_tokenizer.a": np.zeros(1)}, gen)
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    label = jnp.asarray(fixture["label"])
    _, logits, loss = teacher_forced(gen, params, fixture, label)
    official.close(logits, fixture["logits"])
    official.close(loss, fixture["loss"])
    null = teacher_forced(gen, params, fixture, jnp.full((2,), -1, jnp.int32))[1]
    official.close(null, fixture["logits_null"])
    ids = greedy(gen, params, label, None, Guidance(1.5, 1.0, "constant", 1.0, "step"))
    np.testing.assert_array_equal(ids, fixture["greedy"])
    assert len(np.unique(ids)) > 6
