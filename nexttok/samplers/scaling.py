"""Test-time scaling over scales: many particles a sample, of which ever fewer go on.

    scale        0  1  2  3 ...
    particles    8  8  6  2 ...   8 -> 6: those that differ most; 6 -> 2: drawn by their reward

(TTS-VAR: Chen et al., "TTS-VAR: A Test-Time Scaling Framework for Visual Auto-Regressive
Generation", 2025.) After early scales the particles of a sample are clustered and the member
nearest to each centre goes on; after later ones they are drawn with replacement by exp(lambda phi),
where phi is a potential of their rewards so far; after the last scale the best one is the sample.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.config import check
from nexttok.plans import Plan
from nexttok.rng import stream
from nexttok.steps import Step, runs

FEATURES = ("pca", "pooled", "class", "none")
POTENTIALS = ("value", "diff", "max", "sum", "none")
PAPER = (8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1)  # of Infinity's 13 scales
ROUNDS = 10  # of k-means


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which particles go on where fewer do.

    Attributes:
      early: after so many scales in front they are clustered, after later ones drawn.
      features: (scale, tokens [R, N], state) -> [R, F], by which they are clustered; None keeps the
        first ones, an arbitrary choice.
      reward: (scale, tokens [R, N]) -> [R]; None keeps the first ones.
      potential: phi of the rewards r at the scales where particles were drawn. value: the last r;
        diff: by how much it rose; max, sum: over all; none: nothing is rewarded.
      strength: lambda.
    """

    early: int
    features: Callable[[int, Array, Any], Array] | None
    reward: Callable[[int, Array], Array] | None
    potential: str
    strength: float


def class_reward(logits: Float[Array, "R K"], label: Int[Array, "R"]) -> Float[Array, "R"]:
    """Log-probability of the class that is drawn."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]


def certainty(logits: Float[Array, "R K"], label: Int[Array, "R"]) -> Float[Array, "R"]:
    """Negative entropy of the classes: the picture is of some class for sure."""
    del label
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return (jnp.exp(log_probs) * log_probs).sum(-1)


REWARDS = {"class": class_reward, "certainty": certainty}


def schedule(particles: tuple[int, ...], scales: int) -> tuple[int, ...]:
    """Particles of each scale; () for the paper's, stretched over so many scales.

    Raises:
      ConfigError: not one number for each scale, or a rising one.
    """
    last = max(scales - 1, 1)
    own = tuple(PAPER[round(k * (len(PAPER) - 1) / last)] for k in range(scales))
    found = particles or own
    falling = list(found) == sorted(found, reverse=True) and found[-1] >= 1
    check(len(found) == scales and falling, "sampler.particles", found,
          f"{scales} numbers that do not rise, one for each scale")  # fmt: skip
    return found


def potential(rewards: Float[Array, "R T"], kind: str) -> Float[Array, "R"]:
    """phi of the rewards of the T scales so far; see Selection."""
    if kind == "max":
        return rewards.max(1)
    if kind == "sum":
        return rewards.sum(1)
    before = rewards[:, -2] if kind == "diff" and rewards.shape[1] > 1 else 0.0
    return rewards[:, -1] - before


def resampled(rng: Array, phi: Float[Array, "B P"], count: int, strength: float) -> Array:
    """`count` particles of each sample [B, count], drawn with replacement by softmax(strength phi):
    each occurs count softmax(strength phi) times on average."""
    logits = strength * phi.astype(jnp.float32)
    drawn = jax.random.categorical(rng, logits[:, None], axis=-1, shape=(len(phi), count))
    return drawn.astype(jnp.int32)


def spread(points: Float[Array, "P F"], count: int) -> Int[Array, "count"]:
    """Different particles, each that nearest to the centre of a cluster of k-means.

    The first centres lie far from each other, each next one furthest from those before. A cluster
    that has lost its members gives a particle that no other has given.
    """
    points = points.astype(jnp.float32)

    def distances(centres):
        return jnp.square(points[:, None] - centres[None]).sum(-1)

    def furthest(nearest, _):
        at = jnp.argmax(nearest)
        return jnp.minimum(nearest, distances(points[at][None])[:, 0]), at

    first = distances(points.mean(0, keepdims=True))[:, 0]
    start = jnp.argmin(first)
    _, others = jax.lax.scan(furthest, distances(points[start][None])[:, 0], length=count - 1)
    centres = points[jnp.concatenate([start[None], others])]

    def refine(_, centres):
        own = jax.nn.one_hot(jnp.argmin(distances(centres), axis=1), count)
        size = own.sum(0)[:, None]
        return jnp.where(size > 0, own.T @ points / jnp.maximum(size, 1.0), centres)

    apart = distances(jax.lax.fori_loop(0, ROUNDS, refine, centres))
    member = jnp.argmin(apart, axis=1)

    def pick(used, k):
        cost = apart[:, k] + jnp.where(member == k, 0.0, 1e30)
        at = jnp.argmin(jnp.where(used, jnp.inf, cost)).astype(jnp.int32)
        return used.at[at].set(True), at

    return jax.lax.scan(pick, jnp.zeros(len(points), bool), jnp.arange(count))[1]


def principal(maps: Float[Array, "R *s C"]) -> Float[Array, "R L"]:
    """Each map, less its mean, along its own first principal direction, whose largest entry is
    positive."""
    x = maps.reshape(len(maps), -1, maps.shape[-1]).astype(jnp.float32)
    x = x - x.mean(1, keepdims=True)
    direction = jnp.linalg.eigh(jnp.einsum("rlc,rld->rcd", x, x))[1][..., -1]
    largest = jnp.argmax(jnp.abs(direction), axis=-1, keepdims=True)
    direction = direction * jnp.sign(jnp.take_along_axis(direction, largest, axis=-1))
    return jnp.einsum("rlc,rc->rl", x, direction)


def search(
    step: Callable[[int], Step],
    take: Callable[[Any, Array], Any],
    plan: Plan,
    widths: tuple[int, ...],
    batch: int,
    state: Any,
    rng: Array,
    selection: Selection,
) -> tuple[Int[Array, "B N"], dict]:
    """One sample of each row: the best of its particles that are left after the last scale.

    Args:
      step: the step of a batch in which every sample has so many particles, side by side.
      take: (state, rows) -> the state of these rows.
      plan: of the scales.
      widths: particles of each scale.
      batch: samples B.
      state: of B widths[0] rows.
      rng: key; a single particle is drawn as the executor draws it.
      selection: who goes on.

    Returns:
      Tokens by index, and stats: steps, network_calls, rows (of all calls, a sample) and judged
      (rewards, a sample).
    """
    tokens = jnp.zeros((batch * widths[0], plan.length), jnp.int32)
    rewards = jnp.zeros((len(tokens), 0))
    steps = [at for group in runs(plan, step(widths[0]), 0) for at in group]
    judged = 0
    for at, width, wanted in zip(steps, widths, (*widths[1:], 1), strict=True):
        order = jnp.broadcast_to(jnp.asarray(plan.order)[None], tokens.shape)
        key = stream(rng, "sample", at.first)
        new, _, state = step(width).run(tokens, order, at, state, key)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new, at.first, axis=1)
        if wanted == width:
            continue
        chosen = jnp.broadcast_to(jnp.arange(wanted)[None], (batch, wanted))
        last = at.index + 1 == len(steps)
        if at.index < selection.early and not last:
            if selection.features is not None:
                points = selection.features(at.index, tokens, state)
                chosen = jax.vmap(lambda p, n=wanted: spread(p, n))(_per_sample(points, batch))
        elif selection.reward is not None:
            new = selection.reward(at.index, tokens)
            judged += width
            rewards = jnp.concatenate([rewards, new[:, None].astype(rewards.dtype)], axis=1)
            if last:
                chosen = jnp.argmax(_per_sample(new, batch), axis=1)[:, None]
            else:
                phi = _per_sample(potential(rewards, selection.potential), batch)
                key = stream(rng, "resample", at.index)
                chosen = resampled(key, phi, wanted, selection.strength)
        rows = (jnp.arange(batch)[:, None] * width + chosen).reshape(-1)
        tokens, rewards = tokens[rows], rewards[rows]
        state = state if last else take(state, rows)
    stats = {"steps": len(steps), "network_calls": len(steps), "rows": sum(widths)}
    stats |= {"judged": judged} if judged else {}
    return jnp.take(tokens, jnp.asarray(np.argsort(plan.order)), axis=1), stats


def _per_sample(x, batch):
    """[B P, ...] as [B, P, ...]."""
    return x.reshape(batch, -1, *x.shape[1:])
