"""Context `noise`: a slot holds its own token, noised; earlier steps are noised independently.

    cell 0 at level t0 | cell 1 at level t1 | ...      attention is block-causal over cells

The whole network is the velocity of a flow. At generation earlier cells are clean: they enter the
cache at level 0. (Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual
Generation" (xAR), 2025.)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nexttok.config import build
from nexttok.contexts.contract import Calls, Lesson, Needs
from nexttok.nn.slots import TOKEN, Slots
from nexttok.plans import Plan
from nexttok.rng import stream
from nexttok.steps import At, Step, parts
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class Noise:
    """`config.generator.context` of name noise; levels are sigmoid(N(0, 1)) in training."""

    likelihood = False
    takes_prefix = False

    def needs(self, plan: Plan) -> Needs:
        """One slot per token."""
        return Needs(plan.length, False, False, 0, 0, True)

    def cache_slots(self, plan: Plan, given: int) -> int:
        """Key-value slots of a generation."""
        del given
        return plan.length

    def lesson(self, plan: Plan, tokens: Tokens, order: Array, prefix: int, rng: Array) -> Lesson:
        """Noises every step at its own level; `tokens` are in generation order."""
        del order, prefix
        x = tokens.values
        levels = (x.shape[0], plan.calls)
        times = jax.nn.sigmoid(jax.random.normal(stream(rng, "level"), levels))
        return self.taught(plan, x, times, jax.random.normal(stream(rng, "noise"), x.shape))

    def taught(self, plan: Plan, x: Array, times: Array, noise: Array) -> Lesson:
        """The lesson of given levels [B, K] and noise [B, N, C]; the target is noise - x."""
        level = jnp.take(times, jnp.asarray(plan.step_of_slot), axis=1)[..., None]
        body = slots(plan, (1.0 - level) * x + level * noise, 0, plan.length, times, plan.sizes)
        return Lesson(body.replace(runs=plan.sizes), (0, 1), noise - x)

    def step(self, plan: Plan, calls: Calls, prefix: int) -> Step:
        """One entity: its ODE or SDE from noise; the entity before enters with the first call."""
        del prefix

        def run(tokens, order, at: At, cache, key):
            batch, size, wide = tokens.shape[0], at.size, tokens.shape[2]
            noise = jax.random.normal(stream(key, "noise"), (batch, size, wide))
            new = plan.calls > 1 and not (isinstance(at.index, int) and at.index == 0)
            before = at.size_before if new else 0
            start = at.first - before
            past = jax.lax.dynamic_slice_in_dim(tokens, start, before, axis=1)
            ones = jnp.ones((batch, 1))
            times = jnp.concatenate([jnp.zeros((batch, 1)), ones], axis=1) if before else ones
            both = slots(
                plan, jnp.concatenate([past, noise], axis=1), start, before + size, times,
                (before, size) if before else (size,),
            )  # fmt: skip
            filled = at.known + size
            hidden, other, cache = calls.net(both.replace(filled=filled), _at(cache, start))
            hidden, other = (h if h is None else h[:, before:] for h in (hidden, other))
            first = calls.velocity(hidden, other, at)

            def velocity(x, now):
                body = slots(plan, x, at.first, size, jnp.full((batch, 1), now), (size,))
                hidden, other, _ = calls.net(body.replace(filled=filled), _at(cache, at.first))
                return calls.velocity(hidden, other, at)

            return calls.integrate(first, velocity, noise, key, at), order, cache

        return Step(run, reads_before=True, alone_first=True, parts=parts(plan),
                    calls=calls.solver_calls)  # fmt: skip


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: values in a fixed order."""
    if spec.vocab:
        return "these tokens are discrete"
    return "" if plan.kind == "fixed" else "the plan's order is not fixed"


def slots(plan: Plan, values: Array, first, size: int, times: Array, segments: tuple) -> Slots:
    """Slots first .. first + size - 1, which hold noised `values`."""
    index = first + jnp.arange(size, dtype=jnp.int32)
    return Slots(
        content=values,
        kind=jnp.full((size,), TOKEN, jnp.int32),
        index=index,
        place=jnp.take(jnp.asarray(plan.order), index),
        steps=jnp.take(jnp.asarray(plan.step_of_slot), index),
        times=times,
        segments=tuple(segments),
    )


def _at(cache, slot):
    return cache.replace(cursor=jnp.asarray(slot, jnp.int32))


def make(section) -> Noise:
    """The context of a config section."""
    return build(Noise, section, "generator.context", named=True)
