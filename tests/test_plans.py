"""Plans: a permutation, sizes that sum, and the mask that follows from them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import plans
from nexttok.config import ConfigError
from nexttok.nn.slots import visible
from nexttok.steps import Step, runs
from nexttok.tokens import TokenSpec


def planned(name, grid, scales=(), **options):
    config = plans.PlanConfig(name, *(options.get(k, d) for k, d in DEFAULTS.items()))
    return plans.make(config, TokenSpec(grid, 8, 2, scales=scales))


DEFAULTS = {"block": 0, "steps": 0, "schedule": "", "lead": False, "given": 0}
PLANS = {
    "raster_1d": planned("raster", (16,)),
    "raster_2d": planned("raster", (4, 5)),
    "scales": planned("scales", (14,), scales=(1, 2, 3)),
    "rows": planned("rows", (3, 4)),
    "frames": planned("frames", (2, 2, 3)),
    "given": planned("rows", (3, 4), given=1),
    "lead": planned("blocks", (2, 4), block=2, lead=True),
    "cells": planned("cells", (4, 4), block=2),
    "subsamples": planned("subsamples", (4, 4), block=2),
    "whole": planned("whole", (4, 4)),
    "random": planned("random", (4, 4), steps=5, schedule="cosine"),
    "confidence": planned("confidence", (4, 4), steps=5, schedule="arccos"),
    "blocks": plans.Plan(np.arange(12, dtype=np.int32), (1, 3, 4, 4)),
    "shuffled": plans.Plan(np.random.default_rng(0).permutation(9).astype(np.int32), (2, 2, 5)),
}


@pytest.fixture(params=PLANS, name="plan")
def _plan(request):
    return PLANS[request.param]


def test_invariants(plan):
    assert sorted(plan.order) == list(range(plan.length))
    assert sum(plan.sizes) == plan.length
    assert plan.calls == len(plan.sizes) - plan.given
    for padding, parts in (("none", 1), ("bucket", 1), ("bucket", 4), ("all", 1)):
        groups = runs(plan, Step(print, padding, parts=parts), 0)
        steps = [at for group in groups for at in group]
        assert tuple(at.count for at in steps) == plan.sizes
        assert [at.first for at in steps] == [0, *np.cumsum(plan.sizes)[:-1]]
        assert [at.before for at in steps] == [1, *plan.sizes[:-1]]
        assert all(at.count <= at.size and at.first <= at.known for at in steps)
        assert padding != "none" or all(at.count == at.size for at in steps)
        assert padding != "all" or len(groups) == 1


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
    def shapes(plan, **options):
        return [(g[0].first, g[0].size, len(g)) for g in runs(plan, Step(print, **options), 0)]

    assert shapes(PLANS["blocks"]) == [(0, 1, 1), (1, 3, 1), (4, 4, 2)]
    assert shapes(PLANS["raster_1d"]) == [(0, 1, 16)]
    assert shapes(PLANS["raster_1d"], alone_first=True) == [(0, 1, 1), (1, 1, 15)]
    assert shapes(PLANS["blocks"], padding="bucket") == [(0, 1, 1), (1, 4, 3)]
    sizes = (3, 5, 7, 8, 9, 10, 11)
    grown = dataclasses.replace(
        PLANS["raster_1d"], order=np.arange(53, dtype=np.int32), sizes=sizes
    )
    assert shapes(grown, padding="bucket") == [(0, 3, 1), (3, 8, 3), (23, 11, 3)]
    assert shapes(grown, padding="bucket", digits=3) == [
        (0, 3, 1), (3, 5, 1), (8, 7, 1), (15, 8, 1), (23, 10, 2), (42, 11, 1),
    ]  # fmt: skip
    quarters = runs(PLANS["raster_1d"], Step(print, parts=4), 0)
    assert [(len(g), g[0].known) for g in quarters] == [(4, 3), (4, 7), (4, 11), (4, 15)]


def test_given_tokens_come_before_the_first_step():
    steps = [at for g in runs(PLANS["blocks"], Step(print), 5) for at in g]
    assert [(at.first, at.count, at.before) for at in steps] == [(5, 3, 6), (8, 4, 3)]
    assert PLANS["given"].known == 4
    assert (PLANS["given"].prefix(9).sizes, PLANS["given"].prefix(9).given) == ((4, 4, 1), 1)
    assert (PLANS["given"].giving(2).known, PLANS["given"].giving(0).known) == (8, 4)
    with pytest.raises(ConfigError, match=r"sample\.tokens = 4: expected 5 \.\. 12"):
        PLANS["given"].prefix(4)
    with pytest.raises(ConfigError, match=r"sample\.given = 3: expected 0, or 1 \.\. 2 steps"):
        PLANS["given"].giving(3)


def test_cells_and_subsamples_cover_the_grid():
    assert list(PLANS["cells"].order[:4]) == [0, 1, 4, 5]
    assert list(PLANS["subsamples"].order[:4]) == [0, 2, 8, 10]


def test_bad_plans_are_refused():
    with pytest.raises(ConfigError, match="permutation"):
        plans.Plan(np.asarray([0, 0, 2], np.int32), (1, 1, 1))
    with pytest.raises(ConfigError, match="sum to 3"):
        plans.Plan(np.arange(3, dtype=np.int32), (1, 1))
    with pytest.raises(ConfigError, match=r"sample\.tokens = 17"):
        PLANS["raster_1d"].prefix(17)
    with pytest.raises(ConfigError, match=r"generator\.plan\.name = 'spiral'.*raster"):
        planned("spiral", (4,))
    with pytest.raises(ConfigError, match=r"generator\.plan\.block = 3: .* both sides"):
        planned("cells", (4, 4), block=3)
