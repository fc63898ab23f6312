"""Guesses of another model, token by token: a smaller one, or a part of the same one.

How many there are is fixed, or follows how sure the drafter is (Zhang et al., "Draft & Verify:
Lossless Large Language Model Acceleration via Self-Speculative Decoding", 2023) or how often its
guesses were kept (Thompson sampling: Liu et al., "Speculative Decoding via Early-exiting for Faster
LLM Inference with Thompson Sampling Control Mechanism", 2024).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.causal import Causal, chain
from nexttok.config import check
from nexttok.rng import categorical, stream
from nexttok.samplers.speculative import Drafter, Outcome
from nexttok.samplers.verify import Draft


@dataclasses.dataclass(frozen=True)
class Control:
    """How many guesses a round has, row by row.

    Attributes:
      start: batch -> what it remembers.
      goes_on: (memory, law that the guess before came from [B, V], key) -> bool [B]: whether
        another guess follows.
      learn: (memory, guesses [B], accepted [B]) -> memory.
    """

    start: Callable[[int], Any]
    goes_on: Callable[..., Array]
    learn: Callable[..., Any]


def fixed() -> Control:
    """Always all."""
    return Control(
        lambda batch: jnp.zeros((batch,)),
        lambda memory, law, key: jnp.ones(law.shape[:1], bool),
        lambda memory, guesses, accepted: memory,
    )


class Sureness(NamedTuple):
    """Memory of `threshold`, per row."""

    rate: Float[Array, "B"]
    least: Float[Array, "B"]


def threshold(
    least: float = 0.5, most: int = 8, target: float = 0.9, step: float = 0.01,
    b1: float = 0.5, b2: float = 0.9,
) -> Control:  # fmt: skip
    """Draft & Verify: guesses go on while the largest probability is at least a threshold that
    steers the share of kept guesses to `target`.

    Args:
      least: the first threshold; most: guesses of a round, at which it does not fall.
      target, step, b1, b2: kept share aimed at, change of the threshold, and what is remembered of
        the share and of the threshold.
    """

    def goes_on(memory, law, key):
        del key
        return law.max(-1) >= memory.least

    def learn(memory, guesses, accepted):
        share = accepted.astype(jnp.float32) / jnp.maximum(guesses, 1).astype(jnp.float32)
        rate = b1 * memory.rate + (1.0 - b1) * share
        lower = jnp.where(guesses >= most, memory.least, memory.least - step)
        moved = jnp.where(rate < target, memory.least + step, lower)
        return Sureness(rate, b2 * memory.least + (1.0 - b2) * moved)

    def start(batch):
        return Sureness(jnp.full((batch,), target), jnp.full((batch,), least))

    return Control(start, goes_on, learn)


class Kept(NamedTuple):
    """Memory of `thompson`: a Beta law of the share that is kept, per row."""

    hits: Float[Array, "B"]
    misses: Float[Array, "B"]


def thompson() -> Control:
    """EESD: a further guess with the probability that a draw from Beta(kept, lost) gives."""

    def goes_on(memory, law, key):
        del law
        share = jax.random.beta(stream(key, "share"), memory.hits, memory.misses)
        return jax.random.uniform(stream(key, "coin"), share.shape) < share

    def learn(memory, guesses, accepted):
        lost = (accepted < guesses).astype(jnp.float32)
        return Kept(memory.hits + accepted.astype(jnp.float32), memory.misses + lost)

    return Control(lambda batch: Kept(jnp.ones((batch,)), jnp.ones((batch,))), goes_on, learn)


def from_model(
    model: Causal,
    warp: Callable[[Array], Array],
    guesses: int,
    control: Control | None = None,
    correct: Callable[[Any, Outcome], Any] | None = None,
) -> Drafter:
    """A chain of at most `guesses` tokens per round.

    Args:
      model: drafts; it has the vocabulary of the model that verifies.
      warp: of its logits; guesses follow what it gives.
      guesses: per round.
      control: of their number; None for all of them.
      correct: (state of the model, Outcome) -> state: of a model that reads what the verifying
        model finds, and with it the tokens that were kept anew; None reads them as guessed.

    Raises:
      ConfigError: no guesses.
    """
    check(guesses >= 1, "sampler.window", guesses, "at least 1")
    control = fixed() if control is None else control

    def start(batch, key):
        del key
        return model.start(batch, 1), control.start(batch)

    def propose(memory, last, length, key):
        state, known = memory

        def guess(carry, i):
            state, token, going = carry
            logits, _, state = model.score(token[:, None], None, length + i, state)
            law = jax.nn.softmax(warp(logits[:, 0]).astype(jnp.float32), axis=-1)
            new = categorical(stream(key, "token", i), jnp.log(law))
            further = going & control.goes_on(known, law, stream(key, "further", i))
            return (state, new, further), (new, law, going)

        # the last guess is only read in, so that the drafter's cache lacks nothing
        calls = guesses + (correct is None)
        carry = (state, last, jnp.ones(last.shape, bool))
        (state, _, _), rows = jax.lax.scan(guess, carry, jnp.arange(calls))
        tokens, laws, there = (x[:guesses].swapaxes(0, 1) for x in rows)
        parents = chain(len(last), guesses + 1)
        parents = parents.at[:, 1:].set(jnp.where(there, parents[:, 1:], -1))
        tokens = jnp.concatenate([last[:, None], tokens], axis=1)
        laws = jnp.pad(laws, ((0, 0), (0, 1), (0, 0)))  # nothing stands behind the last guess
        return Draft(tokens, parents, laws), (state, known)

    def learn(memory, outcome: Outcome, key):
        del key
        made = (outcome.draft.parents[:, 1:] >= 0).sum(-1)
        state = memory[0] if correct is None else correct(memory[0], outcome)
        return state, control.learn(memory[1], made, outcome.verdict.accepted)

    return Drafter(guesses + 1, guesses, 1, "independent", start, propose, learn, guesses + 1)
