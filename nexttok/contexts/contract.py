"""What a context owes a generator, and what it is given.

Beside its class, the file of a context has `refusal(plan, spec)`: why it cannot serve a plan of
these tokens, in the words that follow "as", or "" where it can. Its class says with `takes_prefix`
whether class slots may stand in front.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Int

from nexttok.nn.slots import Slots


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a context asks of a backbone and a head.

    Attributes:
      slots: longest sequence for N tokens, without the class prefix.
      start, query: START, QUERY slots occur; fillers: number of FILL vectors.
      levels: number of scales; noised: tokens carry noise levels.
    """

    slots: int
    start: bool
    query: bool
    fillers: int
    levels: int
    noised: bool


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One training example of a batch.

    Attributes:
      slots: input.
      outputs: (first, stride) of the N slots whose hidden states predict, in the order of target.
      target: true tokens, ids [B, N] or values [B, N, C]; N leaves out what the plan gives.
      weight: of every token's loss [B, N], mean 1; None for equal weights.
    """

    slots: Slots
    outputs: tuple[int, int]
    target: Int[Array, "B N"] | Float[Array, "B N C"]
    weight: Float[Array, "B N"] | None = None


@dataclasses.dataclass(frozen=True)
class Calls:
    """What a context's step may call.

    Attributes:
      net: (slots, cache) -> (hidden, hidden without a class or None, cache).
      sample: (hidden, hidden without, at, key) -> (tokens, log-probabilities).
      integrate: (first velocity, x -> velocity, noise, key, at) -> tokens: the flow head's solver,
        which takes `solver_calls` velocities, the first included, in every step or step by step.
      velocity: (hidden, hidden without, at) -> guided velocity, of the flow head.
      confidence: weight of the Gumbel noise in confidences.
      advance: (coarse state, ids of scale k, k) -> (state, inputs of scale k + 1), of a tokenizer
        with scales; None elsewhere.
      empty: (batch, slots) -> an empty key-value cache, of rows of their own.
      reuse: of every step of the plan, the sizes of the steps it was merged from (context mask:
        only the first of them computes all slots anew); () for a plan of its own.
    """

    net: Callable[..., Any]
    sample: Callable[..., Any]
    velocity: Callable[..., Any] | None = None
    integrate: Callable[..., Any] | None = None
    solver_calls: int | tuple[int, ...] = 1
    confidence: float = 0.0
    advance: Callable[..., Any] | None = None
    empty: Callable[..., Any] | None = None
    reuse: tuple[tuple[int, ...], ...] = ()
