"""Control at the logits: how the predictions of several models, or of one model told several
things, make one law. Each is a function of logits, to be warped and drawn from like any other.

Guidance itself, u + s (c - u), is heads/guidance.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.samplers.logits import kth_largest


def contrastive(
    strong: Float[Array, "*n V"], weak: Float[Array, "*n V"], alpha: float, k: int = 1
) -> Float[Array, "*n V"]:
    """Contrastive decoding, CD-K of CM3Leon (Yu et al., "Scaling Autoregressive Multi-Modal Models:
    Pretraining and Instruction Tuning", 2023): log p_strong - log p_weak on the tokens whose strong
    probability is at least alpha times the k-th largest.

    The weak model may be the same one told nothing. K = 1 is Li et al., "Contrastive Decoding",
    2022. Where both agree the kept tokens are equally likely.
    """
    likely, unlikely = (jax.nn.log_softmax(x.astype(jnp.float32), -1) for x in (strong, weak))
    least = kth_largest(likely, k) + jnp.log(jnp.maximum(alpha, jnp.finfo(jnp.float32).tiny))
    return jnp.where(likely >= least, likely - unlikely, -jnp.inf)


def collaborative(
    small: Float[Array, "*n V"], large: Float[Array, "*n V"], beta: float, alpha: float
) -> Float[Array, "*n V"]:
    """FS-GEN's contrastive mix (Zhang et al., "Fast and Slow Generating: An Empirical Study on
    Large and Small Language Models Collaborative Decoding", 2024): small + beta (large - small) on
    the tokens that the large model gives at least alpha times its largest probability.

    beta 1 and alpha 0 is the large model alone.
    """
    least = large.max(-1, keepdims=True) + jnp.log(jnp.maximum(alpha, jnp.finfo(jnp.float32).tiny))
    return jnp.where((large >= least) | (alpha == 0), small + beta * (large - small), -jnp.inf)


def proxy(
    large: Float[Array, "*n V"], tuned: Float[Array, "*n V"], plain: Float[Array, "*n V"],
    strength: float = 1.0,
) -> Float[Array, "*n V"]:  # fmt: skip
    """Proxy tuning (Liu et al., "Tuning Language Models by Proxy", 2024): what tuning did to a
    small model is added to a large one; strength 0 is the large model."""
    return large + strength * (tuned - plain)


def unsure(logits: Float[Array, "*n V"], least: float = 0.5) -> Bool[Array, "*n"]:
    """FS-GEN's router: where the largest probability is below `least`, another model is asked."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1).max(-1) < least


def gedi(
    logits: Float[Array, "*n V"],
    desired: Float[Array, "*n V"],
    undesired: Float[Array, "*n V"],
    so_far: tuple[Float[Array, "*n"], Float[Array, "*n"]],
    length: int | Int[Array, ""],
    omega: float = 30.0,
    mass: float = 0.8,
) -> Float[Array, "*n V"]:
    """GeDi (Krause et al., "GeDi: Generative Discriminator Guided Sequence Generation", 2020):
    log p(x) + omega log P(desired | x), the latter by Bayes' rule from a class-conditional model.

    Args:
      logits: of the model that is steered.
      desired, undesired: of the class-conditional model, told either class.
      so_far: log-probability of the tokens before under both classes.
      length: tokens, this one included, by which both are divided; 1 for Bayes' rule itself.
      omega: strength; 0 is the model alone, but for the filter.
      mass: tokens that are least likely to be desired are dropped, of as much mass as does not
        exceed this, unless P(desired | x) is as large itself; 0 drops none.
    """
    both = (
        (before[..., None] + jax.nn.log_softmax(x.astype(jnp.float32), axis=-1)) / length
        for before, x in zip(so_far, (desired, undesired), strict=True)
    )
    good, bad = both
    log_share = good - jnp.logaddexp(good, bad)
    mixed = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) + omega * log_share
    if mass == 0:
        return mixed
    order = jnp.argsort(log_share, axis=-1)
    sums = jnp.cumsum(jnp.take_along_axis(jax.nn.softmax(mixed, -1), order, -1), axis=-1)
    sums = jnp.take_along_axis(sums, jnp.argsort(order, axis=-1), axis=-1)
    best = log_share >= log_share.max(-1, keepdims=True)
    kept = (sums >= mass) | (jnp.exp(log_share) >= mass) | best
    return jnp.where(kept, mixed, -jnp.inf)


def near_access_free(
    first: Float[Array, "*n V"], second: Float[Array, "*n V"], kind: str = "max"
) -> tuple[Float[Array, "*n V"], Float[Array, "*n"]]:
    """CP-Delta (Vyas et al., "On Provable Copyright Protection for Generative Models", 2023): a law
    near to both of two models that were trained on separate halves of the data.

    Args:
      first, second: logits of the two models.
      kind: max: p ~ min(q1, q2), which bounds the largest log-ratio; kl: p ~ sqrt(q1 q2), which
        bounds the divergence.

    Returns:
      Logits, and the bound k in bits: of log2 p / q_i at every token (max), or of KL(p, q_i).
    """
    logs = [jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (first, second)]
    mixed = jnp.minimum(*logs) if kind == "max" else 0.5 * (logs[0] + logs[1])
    total = jax.nn.logsumexp(mixed, axis=-1)
    return mixed, -(1.0 if kind == "max" else 2.0) * total / jnp.log(2.0)


def access_free_acceptance(
    log_prob: Float[Array, "*n"], safe: Float[Array, "M *n"], bits: float
) -> Float[Array, "*n"]:
    """Smooth CP-k (as above): the probability with which a whole sample of log-probability
    `log_prob` is kept, min(1, 2^k min_i q_i / p); `safe` holds its log-probability under each safe
    model. The rate nu at which samples are kept makes the law access-free at k + log2(1 / nu)."""
    return jnp.exp(jnp.minimum(0.0, bits * jnp.log(2.0) + safe.min(0) - log_prob))


def allowed(
    logits: Float[Array, "*n V"], automaton: Int[Array, "Q V"], state: Int[Array, "*n"]
) -> Float[Array, "*n V"]:
    """Tokens that the automaton has a way on for; -1 in its table is none. The state after token x
    is automaton[state, x]."""
    return jnp.where(automaton[state] >= 0, logits, -jnp.inf)


def live(
    automaton: Int[Array, "Q V"], accepting: Bool[Array, "Q"], left: int
) -> Int[Array, "T Q V"]:
    """Tables of an automaton that never lead where no accepting state can be reached any more.

    Args:
      automaton: next states, -1 for none.
      accepting: states that may be the last.
      left: T, the number of tokens of a string.

    Returns:
      Table t is that of token t of T.
    """
    tables, good = [], accepting
    for _ in range(left):
        table = jnp.where((automaton >= 0) & good[automaton], automaton, -1)
        tables.append(table)
        good = (table >= 0).any(-1)
    return jnp.stack(tables[::-1])
