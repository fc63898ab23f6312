"""Search: the likeliest strings of a causal model, or draws of them that differ.

Beam search, diverse beam search (Vijayakumar et al., "Diverse Beam Search: Decoding Diverse
Solutions from Neural Sequence Models", 2016), stochastic beam search (Kool et al., "Stochastic
Beams and Where to Find Them", 2019: strings drawn without replacement) and contrastive search (Su
et al., "A Contrastive Framework for Neural Text Generation", 2022).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.causal import Causal
from nexttok.config import check
from nexttok.rng import stream
from nexttok.samplers.gumbel import conditioned


def beams(
    model: Causal,
    warp: Callable[[Array], Array],
    batch: int,
    width: int,
    groups: int = 1,
    penalty: float = 0.0,
    rng: Array | None = None,
) -> tuple[Int[Array, "B K N"], Float[Array, "B K"]]:
    """The `width` best strings of a beam search, one call per token.

    Args:
      model: of all rows.
      warp: logits -> logits.
      batch: rows B; each has `width` beams.
      width: K.
      groups: of beams, which choose one after the other; `penalty` is taken off the score of a
        token for every beam of an earlier group that chose it at this place. Strings are ranked by
        their log-probability alone.
      rng: None, or the key of a stochastic beam search: the K strings are then a draw without
        replacement, in the order of their perturbed scores.

    Returns:
      Strings, the best (or first drawn) first, and their log-probabilities; -inf where there are
      fewer.

    Raises:
      ConfigError: groups that do not divide the beams, or groups in a stochastic search.
    """
    check(width >= 1 and groups >= 1 and width % groups == 0, "sampler.groups", groups,
          f"a divisor of {width} beams")  # fmt: skip
    check(rng is None or groups == 1, "sampler.groups", groups, "1 in a stochastic search")
    n, vocab, each = model.tokens, model.vocab, width // groups
    lines = jnp.arange(batch)[:, None]

    def best(scores, total):
        """(score, log-probability, beam, token) of the best continuations, [B, each]."""
        found, at = jax.lax.top_k(scores.reshape(batch, -1), each)
        log_prob = jnp.take_along_axis(total.reshape(batch, -1), at, axis=1)
        return found, log_prob, at // vocab, at % vocab

    def extend(carry, i):
        strings, log_prob, perturbed, state = carry
        last = jnp.where(i == 0, 0, strings[:, :, jnp.maximum(i - 1, 0)]).reshape(-1, 1)
        logits, _, state = model.score(last, None, jnp.full((batch * width,), i), state)
        new = jax.nn.log_softmax(warp(logits[:, 0]).astype(jnp.float32), axis=-1)
        total = log_prob[..., None] + new.reshape(batch, width, vocab)
        if rng is not None:
            scores = conditioned(total, perturbed, stream(rng, "beam", i))
            perturbed, log_prob, beam, token = best(scores, total)
        else:
            chosen, counts = [], jnp.zeros((batch, 1, vocab))
            for g in range(groups):
                own = total[:, g * each : (g + 1) * each]
                _, kept, beam, token = best(own - penalty * counts, own)
                chosen.append((kept, beam + g * each, token))
                alive = jnp.isfinite(kept)[..., None].astype(jnp.float32)
                counts += (jax.nn.one_hot(token, vocab) * alive).sum(1, keepdims=True)
            log_prob, beam, token = (jnp.concatenate(v, axis=1) for v in zip(*chosen, strict=True))
        strings = strings[lines, beam].at[:, :, i].set(token.astype(jnp.int32))
        state = model.select(state, (lines * width + beam).reshape(-1))
        return (strings, log_prob, perturbed, state), None

    # every group starts with one beam
    first = (jnp.arange(width) % each == 0)[None]
    start = jnp.broadcast_to(jnp.where(first, 0.0, -jnp.inf), (batch, width))
    carry = (jnp.zeros((batch, width, n), jnp.int32), start, start, model.start(batch * width, 1))
    (strings, log_prob, _, _), _ = jax.lax.scan(extend, carry, jnp.arange(n))
    if rng is None:
        log_prob, order = jax.lax.top_k(log_prob, width)
        strings = strings[lines, order]
    return strings, log_prob


def assigned(
    label: Int[Array, "B"], width: int, classes: int
) -> tuple[Int[Array, "S"], Int[Array, "B"], Int[Array, "B"]]:
    """Searches of `width` strings that the rows of one class share, as many as may be needed.

    Returns:
      The class of every search (0 of one that no row needs), and for every row its search and its
      place among the strings: 0, 1, ... in turn.
    """
    same = label[:, None] == label[None]
    rank = jnp.tril(same, -1).sum(1).astype(jnp.int32)  # of a row in its class
    place = rank % width
    number = jnp.cumsum(place == 0).astype(jnp.int32) - 1
    opener = jnp.argmax(same & (rank[None] == (rank - place)[:, None]), axis=1)
    count = min(len(label), len(label) // width + classes)
    at = jnp.where(place == 0, number, count)
    return jnp.zeros((count,), jnp.int32).at[at].set(label, mode="drop"), number[opener], place


def contrastive_search(
    model: Causal,
    warp: Callable[[Array], Array],
    batch: int,
    candidates: int = 5,
    alpha: float = 0.6,
) -> Int[Array, "B N"]:
    """One string per row: of the likeliest tokens that which trades its probability against how
    like its hidden state is to any before, (1 - alpha) p - alpha max cos. Tokens that the warp
    drops are no candidates. One call per token, and one before.

    Raises:
      ConfigError: no candidates, or an alpha beyond 0 .. 1.
    """
    n, k = model.tokens, candidates
    check(1 <= k <= model.vocab, "sampler.candidates", k, f"1 .. {model.vocab}")
    check(0 <= alpha <= 1, "sampler.alpha", alpha, "0 .. 1")
    rows = jnp.arange(batch)
    parents = jnp.broadcast_to(jnp.where(jnp.arange(k + 1) == 0, -1, 0)[None], (batch, k + 1))

    def unit(h):
        h = h.astype(jnp.float32)
        return h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-6)

    def extend(carry, i):
        strings, logits, seen, state = carry
        last = jnp.where(i == 0, 0, strings[:, jnp.maximum(i - 1, 0)])
        probs = jax.nn.softmax(warp(logits).astype(jnp.float32), axis=-1)
        probs, ids = jax.lax.top_k(probs, k)
        window = jnp.concatenate([last[:, None], ids], axis=1).astype(jnp.int32)
        length = jnp.full((batch,), i)
        after, hidden, state = model.score(window, parents, length, state)
        hidden = unit(hidden[:, 1:])
        like = jnp.einsum("bkd,btd->bkt", hidden, seen)
        like = jnp.where((jnp.arange(n + 1) <= i)[None, None], like, -jnp.inf).max(-1)
        scores = jnp.where(probs > 0, (1.0 - alpha) * probs - alpha * like, -jnp.inf)
        best = jnp.argmax(scores, axis=-1)
        state = model.keep(state, length, (best + 1)[:, None].astype(jnp.int32))
        strings = strings.at[:, i].set(ids[rows, best].astype(jnp.int32))
        seen = seen.at[:, i + 1].set(hidden[rows, best])
        return (strings, after[rows, best + 1], seen, state), None

    logits, hidden, state = model.score(
        jnp.zeros((batch, 1), jnp.int32), None, jnp.zeros((batch,), jnp.int32),
        model.start(batch, k + 1),
    )  # fmt: skip
    seen = jnp.zeros((batch, n + 1, hidden.shape[-1])).at[:, 0].set(unit(hidden[:, 0]))
    carry = (jnp.zeros((batch, n), jnp.int32), logits[:, 0], seen, state)
    return jax.lax.scan(extend, carry, jnp.arange(n))[0][0]
