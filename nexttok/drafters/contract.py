"""What a trained drafter owes, and what its lessons share.

A drafter is a small frozen dataclass over its generator. Its parameters are what it adds; those of
the generator, which it reads, stay as they are.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.generator import Generator
from nexttok.plans import Plan
from nexttok.rng import stream
from nexttok.samplers.options import SamplerConfig
from nexttok.samplers.speculative import Drafter
from nexttok.steps import At
from nexttok.tokens import Tokens


@runtime_checkable
class Drafting(Protocol):
    """A drafter of `gen`.

    `reads_halves`: its guesses need the generator's hidden states, of both halves of guidance.
    """

    gen: Generator
    reads_halves: bool

    def init(self, rng: Array) -> dict:
        """What is trained."""

    def loss(
        self, params: dict, base: dict, tokens: Tokens, label: Int[Array, "B"], rng: Array
    ) -> tuple[Float[Array, "B N"], dict]:
        """Loss of what is guessed, and metrics: `kept`, the share of guesses that the generator's
        own law would keep, 1 - TV, at temperature 1 and without guidance.

        Args:
          params: what `init` gives; base: of the generator.
          tokens: by index; label: class, dropped at random as in the generator's training.
        """

    def guesser(
        self,
        params: dict,
        base: dict,
        label: Int[Array, "B"],
        plan: Plan,
        scale: Callable[[At], Array] | None,
        mix: Callable[[Array, Array], Array] | None,
        warp: Callable[[Array], Array],
        choice: SamplerConfig,
    ) -> Drafter:
        """The drafter of samplers/speculative.py; arguments are those of `views.causal`, the
        sampler's warp and its options."""


def dropped(gen: Generator, label: Int[Array, "B"], rng: Array) -> Int[Array, "B"]:
    """Labels as the generator is trained with, -1 for some."""
    drop = jax.random.bernoulli(stream(rng, "label"), gen.class_dropout, label.shape)
    return jnp.where(drop, -1, label)


def against(
    law: Float[Array, "*n V"], guess: Float[Array, "*n V"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Cross-entropy in nats of logits `guess` by the law, and the share of guesses that is kept."""
    own = jax.nn.log_softmax(guess, axis=-1)
    return -(law * own).sum(-1), jnp.minimum(law, jnp.exp(own)).sum(-1)
