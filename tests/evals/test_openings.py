"""What samples start from: blank tokens, or those of held-out examples of the same class."""

import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.evaluate import Models, balanced, openings
from nexttok.experiment import Experiment
from nexttok.plans import Plan
from nexttok.tokens import Tokens, TokenSpec

TEST = {"image": np.arange(5, dtype=np.float32), "label": np.asarray([1, 0, 1, 2, 1], np.int32)}


def models(given, classes=3):
    """Examples whose three tokens are their number."""
    plan = Plan(np.arange(3, dtype=np.int32), (1, 1, 1), given=given)
    exp = mock.Mock(spec=Experiment)
    exp.data = types.SimpleNamespace(num_classes=classes)
    exp.eval = types.SimpleNamespace(batch_size=2)
    exp.generator = types.SimpleNamespace(plan=plan, spec=TokenSpec((3,), 9, 2))
    found = mock.Mock(spec=Models)
    found.experiment = exp
    found.encode = lambda x: Tokens(ids=jnp.repeat(jnp.asarray(x, jnp.int32)[:, None], 3, 1))
    return found


def test_classes_take_turns_and_so_do_their_examples():
    labels = balanced(8, 3)
    assert list(labels) == [0, 1, 2, 0, 1, 2, 0, 1]
    tokens = openings(models(1), TEST, labels)
    assert list(tokens[:, 0]) == [1, 0, 3, 1, 2, 3, 1, 4]
    tokens = openings(models(0), {}, labels[:4])
    assert tokens.shape == (4, 3)
    assert not tokens.any()


def test_a_class_without_an_example_is_named():
    with pytest.raises(ConfigError, match=r"eval\.images = 5: .*each class, \[3\] included"):
        openings(models(1, classes=4), TEST, balanced(4, 4))
