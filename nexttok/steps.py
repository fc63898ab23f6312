"""Steps of a generation: what a model's step is told, and which steps share one shape."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nexttok.plans import Plan


@flax.struct.dataclass
class At:
    """Where a step stands. Fields are traced inside a scan, plain ints where a step is unrolled.

    Attributes:
      index: number of the step among those that predict.
      first: slot of the order it starts at; count: tokens it predicts.
      before: tokens of the step before it (of the first step: 1 + the given tokens, as the start
        slot and they come before everything).
      size, size_before: static bounds of count and before; what lies beyond is padding.
      known: static bound of first, the tokens that are known before.
      steps: how many steps run, given tokens not counted.
    """

    index: Any
    first: Any
    count: Any
    before: Any
    size: int = flax.struct.field(pytree_node=False)
    size_before: int = flax.struct.field(pytree_node=False)
    known: int = flax.struct.field(pytree_node=False)
    steps: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Step:
    """A model's side of the loop.

    Attributes:
      run: (tokens [B, M, ...] in generation order, order [B, N], at, state, key) -> (new tokens
        [B, at.size, ...], order, state). Tokens from at.first on are not known yet.
      padding: "none": steps of equal size share a scan; "bucket": sizes up to the same number of
        `digits` binary digits and zeros do; "all": every step does. The step must ignore what lies
        beyond at.count.
      reads_before: its shape depends on the size of the step before, too.
      alone_first: the first step has a shape of its own.
      parts: its shape depends on how many of so many parts of the tokens are known before it.
      calls: network calls it makes, in every step or step by step.
    """

    run: Callable[..., tuple[Array, Array, Any]]
    padding: str = "none"
    digits: int = 1
    reads_before: bool = False
    alone_first: bool = False
    parts: int = 1
    calls: int | tuple[int, ...] = 1


def parts(plan: Plan) -> int:
    """How finely steps with a cache are told apart by what it holds, so that they read no more:
    one shape per 32 tokens or more, and 8 at most, as every shape is compiled."""
    return min(max(plan.length // 32, 1), 8)


def runs(plan: Plan, step: Step, given: int) -> list[list[At]]:
    """The steps after the `given` first tokens, grouped into runs of one shape."""
    sizes = _after(plan.sizes, given)
    firsts = given + np.cumsum([0, *sizes[:-1]])
    before = [1 + given, *sizes[:-1]]

    def bucket(size):
        if step.padding == "none":
            return size
        return 0 if step.padding == "all" else _rounded_up(size, step.digits)

    groups: list[list[tuple]] = []
    last = None
    for i, row in enumerate(zip(range(len(sizes)), firsts, sizes, before, strict=True)):
        key = (bucket(row[2]), bucket(row[3]) if step.reads_before else 0)
        key = (*key, i == 0 and step.alone_first, int(row[1]) * step.parts // plan.length)
        if key != last:
            groups.append([])
            last = key
        groups[-1].append(tuple(int(v) for v in row))
    return [[At(*row, *_bounds(group), len(sizes)) for row in group] for group in groups]


def _rounded_up(size, digits):
    """The next number of so many binary digits that count, zeros behind them: 2 of 5 give 6."""
    unit = 1 << max(size.bit_length() - digits, 0)
    return -(-size // unit) * unit


def _bounds(group):
    """The largest size, size of the step before, and first of (index, first, size, before) rows."""
    _, firsts, sizes, before = zip(*group, strict=True)
    return max(sizes), max(before), max(firsts)


def _after(sizes, given):
    """Sizes of what is left of the steps when their first `given` tokens are known."""
    ends = np.maximum(np.cumsum(sizes) - given, 0)
    return [int(s) for s in np.diff(ends, prepend=0) if s]


def random_order(rng: Array, batch: int, tokens: int, known: Array | None = None) -> Array:
    """A permutation per sample; tokens that are `known` (bool [N]) come first, in random order.

    Returns:
      int32 [B, N].
    """
    keys = jax.random.uniform(rng, (batch, tokens))
    if known is not None:
        keys = keys - known.astype(jnp.float32)[None]
    return jnp.argsort(keys, axis=1).astype(jnp.int32)
