"""Guidance scales against the formulas of the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import plans
from nexttok.config import ConfigError
from nexttok.samplers.executor import generate
from nexttok.samplers.schedules import CLOCKS, SHAPES, Guidance
from nexttok.steps import Step

N = 16
# how far a generation has come: step k of K, `before` and `after` tokens known around it
CLOCK = {
    "step": lambda k, K, before, after: k / (K - 1),
    "before": lambda k, K, before, after: before / N,
    "after": lambda k, K, before, after: after / N,
    "masked": lambda k, K, before, after: (N - max(N - after, 1)) / N,
}
SHAPE = {
    "constant": lambda x, power: 1.0,
    "linear": lambda x, power: x,
    "cosine": lambda x, power: (1 - np.cos(np.pi * x**power)) / 2,
    "power": lambda x, power: x**power,
}
# the guidance of a paper, and its scale as the paper writes it
PAPERS = {
    "VAR": (Guidance(2.5, 1.0, "linear", 1.0, "step"), lambda k, K, b, a: 1 + 1.5 * k / (K - 1)),
    "xAR": (Guidance(2.7, 1.0, "linear", 1.0, "step"), lambda k, K, b, a: 1 + 1.7 * k / (K - 1)),
    "RandAR": (Guidance(4.0, 1.0, "linear", 1.0, "before"), lambda k, K, b, a: 1 + 3 * b / N),
    "ARPG": (Guidance(5.0, 1.0, "linear", 1.0, "after"), lambda k, K, b, a: 1 + 4 * a / N),
    "MAR": (Guidance(2.9, 1.0, "linear", 1.0, "masked"),
            lambda k, K, b, a: 1 + 1.9 * (N - max(N - a, 1)) / N),
    "RAR": (Guidance(6.9, 1.0, "cosine", 2.75, "before"),
            lambda k, K, b, a: 1 + 5.9 * (1 - np.cos(np.pi * (b / N) ** 2.75)) / 2),
}  # fmt: skip
GRID = [Guidance(3.0, 0.5, shape, 1.7, clock) for shape in SHAPES for clock in CLOCKS]
ALL = [*GRID, *(guidance for guidance, _ in PAPERS.values())]


@functools.cache
def scales(given):
    """{guidance: scale of every step, as the steps of a generation find it}, (k, K, b, a) of each.

    The executor runs a step that writes its scales as tokens, in a scan.
    """
    config = plans.PlanConfig("random", 0, 6, "cosine", False, 0)
    plan = plans.Plan(np.arange(N, dtype=np.int32), plans.scheduled(config, N), "random", config)
    plan = plan.after(given)

    def run(tokens, order, at, state, key):
        row = jnp.stack([guidance.scale(at, plan) for guidance in ALL])
        return jnp.broadcast_to(row, (1, at.size, len(ALL))), order, state

    blank, step = jnp.full((1, N, len(ALL)), -1.0), Step(run, padding="all")
    out, stats = jax.jit(
        lambda: generate(step, plan, blank, None, jax.random.key(0), None, given)
    )()
    sizes = plan.sizes[1:] if given else plan.sizes
    ends, count = given + np.cumsum(sizes), len(sizes)
    assert int(stats["steps"]) == count
    rows = [(k, count, e - size, e) for k, (size, e) in enumerate(zip(sizes, ends, strict=True))]
    return dict(zip(ALL, np.asarray(out)[0, ends - 1].T, strict=True)), rows


@pytest.mark.parametrize("given", [0, 5])
@pytest.mark.parametrize("guidance", GRID, ids=lambda g: f"{g.shape}-{g.clock}")
def test_shapes_by_clocks(guidance, given):
    """Known tokens count as known; the steps that count are those that run after them."""
    found, rows = scales(given)
    shape, clock = SHAPE[guidance.shape], CLOCK[guidance.clock]
    expected = [0.5 + 2.5 * shape(clock(*row), 1.7) for row in rows]
    np.testing.assert_allclose(found[guidance], expected, rtol=1e-5)
    if guidance.clock in ("step", "after"):  # these end at the full scale
        assert found[guidance][-1] == pytest.approx(3.0)


@pytest.mark.parametrize("paper", PAPERS)
def test_papers(paper):
    guidance, formula = PAPERS[paper]
    found, rows = scales(0)
    np.testing.assert_allclose(found[guidance], [formula(*row) for row in rows], rtol=1e-5)


def test_no_guidance_is_off_and_bad_names_are_refused():
    assert Guidance(1.0, 2.0, "constant", 1.0, "step").off
    assert Guidance(1.0, 1.0, "linear", 1.0, "step").off
    assert not Guidance(1.0, 2.0, "linear", 1.0, "step").off
    for values, field in [
        ((2.0, 1.0, "cubic", 1.0, "step"), "shape"),
        ((2.0, 1.0, "linear", 1.0, "noon"), "clock"),
        ((2.0, 1.0, "power", 0.0, "step"), "power"),
    ]:
        with pytest.raises(ConfigError, match=f"sample.guidance_{field}"):
            Guidance(*values)
