"""Plans: a permutation, sizes that sum, and the mask that follows from them."""

import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import plans
from nexttok.config import ConfigError
from nexttok.nn.attention import visible

PLANS = {
    "raster_1d": plans.raster((16,)),
    "raster_2d": plans.raster((4, 5)),
    "blocks": plans.Plan(np.arange(12, dtype=np.int32), (1, 3, 4, 4)),
    "shuffled": plans.Plan(np.random.default_rng(0).permutation(9).astype(np.int32), (2, 2, 5)),
}


@pytest.fixture(params=PLANS, name="plan")
def _plan(request):
    return PLANS[request.param]


def test_invariants(plan):
    assert sorted(plan.order) == list(range(plan.length))
    assert sum(plan.sizes) == plan.length
    assert plan.calls == len(plan.sizes)
    expanded = [size for _, size, count in plan.runs() for _ in range(count)]
    assert tuple(expanded) == plan.sizes
    starts = [first for first, _, _ in plan.runs()]
    assert starts == sorted(starts)


def test_mask_is_the_rule_by_brute_force(plan):
    step = {}
    at = 0
    for k, size in enumerate(plan.sizes):
        for token in plan.order[at : at + size]:
            step[int(token)] = k
        at += size
    got = visible(jnp.asarray(plan.step_of_token), jnp.asarray(plan.step_of_token))
    strict = visible(jnp.asarray(plan.step_of_token), jnp.asarray(plan.step_of_token), strict=True)
    for q in range(plan.length):
        for k in range(plan.length):
            assert bool(got[q, k]) == (step[k] <= step[q])
            assert bool(strict[q, k]) == (step[k] < step[q])


@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_prefix_cuts_the_last_step(tokens):
    prefix = PLANS["blocks"].prefix(tokens)
    assert prefix.length == tokens
    assert prefix.sizes == {1: (1,), 5: (1, 3, 1), 12: (1, 3, 4, 4)}[tokens]


def test_runs_group_equal_steps():
    assert PLANS["blocks"].runs() == [(0, 1, 1), (1, 3, 1), (4, 4, 2)]
    assert PLANS["raster_1d"].runs() == [(0, 1, 16)]


def test_bad_plans_are_refused():
    with pytest.raises(ConfigError, match="permutation"):
        plans.Plan(np.asarray([0, 0, 2], np.int32), (1, 1, 1))
    with pytest.raises(ConfigError, match="sum to 3"):
        plans.Plan(np.arange(3, dtype=np.int32), (1, 1))
    with pytest.raises(ConfigError, match=r"sample\.tokens = 17"):
        PLANS["raster_1d"].prefix(17)
    with pytest.raises(ConfigError, match=r"generator\.plan = 'spiral'.*raster"):
        plans.make("spiral", (4,))
