"""Trees of guesses drawn without replacement, so that no two siblings are the same.

(Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without
Replacement", 2024: RSD-C with constant branching, RSD-S by stochastic beam search, Kool et al.,
2019.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nexttok.causal import Causal
from nexttok.config import check
from nexttok.rng import stream
from nexttok.samplers.gumbel import conditioned
from nexttok.samplers.speculative import Drafter, Outcome
from nexttok.samplers.verify import Draft


def branching(model: Causal, warp: Callable[[Array], Array], branches: tuple[int, ...]) -> Drafter:
    """RSD-C: every node of depth l has branches[l] children, the largest of its perturbed scores.

    Raises:
      ConfigError: no branches, or more than there are tokens.
    """
    fits = len(branches) > 0 and all(1 <= b <= model.vocab for b in branches)
    check(fits, "sampler.branches", branches, f"numbers of 1 .. {model.vocab}")
    sizes = np.cumprod([1, *branches])
    firsts = np.cumsum([0, *sizes])

    def grow(carry, draft, level, laws, key):
        """Children of all nodes of a level: carry, tokens [B, n], parents [B, n]."""
        nodes = np.arange(firsts[level], firsts[level + 1])
        scores = jnp.log(laws[:, nodes]) + jax.random.gumbel(key, laws[:, nodes].shape)
        best, tokens = jax.lax.top_k(scores, branches[level])
        there = (draft.parents[:, nodes] >= 0) | (jnp.asarray(nodes) == 0)[None]
        parents = jnp.broadcast_to(jnp.asarray(nodes)[None, :, None], tokens.shape)
        parents = jnp.where((best > -jnp.inf) & there[..., None], parents, -1)
        return carry, tokens.reshape(len(tokens), -1), parents.reshape(len(tokens), -1)

    levels = tuple(int(s) for s in sizes[1:])
    return _tree(model, warp, levels, max(branches), lambda batch: None, grow)


def beams(model: Causal, warp: Callable[[Array], Array], width: int, depth: int) -> Drafter:
    """RSD-S: the `width` best of all continuations per depth, by perturbed scores of whole paths.

    Raises:
      ConfigError: a width or depth below 1, or a width above the number of tokens.
    """
    check(1 <= width <= model.vocab, "sampler.branches", width, f"1 .. {model.vocab}")
    check(depth >= 1, "sampler.window", depth, "at least 1")

    def start(batch):
        """(log probability, perturbed score) of the beams: of the root both 0."""
        return jnp.zeros((batch, 1)), jnp.zeros((batch, 1))

    def grow(carry, draft, level, laws, key):
        phi, perturbed = carry
        first = 0 if level == 0 else 1 + (level - 1) * width
        nodes = np.arange(first, first + phi.shape[1])
        total = phi[..., None] + jnp.log(laws[:, nodes])
        scores = conditioned(total, perturbed, key)
        batch, _, vocab = scores.shape
        best, at = jax.lax.top_k(scores.reshape(batch, -1), width)
        parents, tokens = jnp.asarray(nodes)[at // vocab], at % vocab
        there = best > -jnp.inf
        phi = jnp.take_along_axis(total.reshape(batch, -1), at, axis=1)
        return (jnp.where(there, phi, -jnp.inf), best), tokens, jnp.where(there, parents, -1)

    return _tree(model, warp, (width,) * depth, width, start, grow)


def _tree(model, warp, sizes, width, begin, grow):
    """A tree of so many nodes per level, grown by one call of the model per level."""
    nodes, depth = 1 + sum(sizes), len(sizes)
    firsts = np.cumsum([1, *sizes])

    def start(batch, key):
        del key
        return model.start(batch, nodes)

    def propose(state, last, length, key):
        batch = len(last)
        tokens = jnp.zeros((batch, nodes), jnp.int32).at[:, 0].set(last)
        draft = Draft(
            tokens, jnp.full((batch, nodes), -1, jnp.int32), jnp.zeros((batch, nodes, model.vocab))
        )
        carry = begin(batch)
        for level in range(depth):
            # the whole tree so far is read in anew: it is small
            logits, _, state = model.score(draft.tokens, draft.parents, length, state)
            laws = jax.nn.softmax(warp(logits).astype(jnp.float32), axis=-1)
            carry, new, parents = grow(carry, draft, level, laws, stream(key, level))
            own = slice(int(firsts[level]), int(firsts[level + 1]))
            draft = Draft(
                draft.tokens.at[:, own].set(new.astype(jnp.int32)),
                draft.parents.at[:, own].set(parents.astype(jnp.int32)),
                laws,
            )
        # a last call reads in the leaves, so that the drafter's cache lacks nothing
        _, _, state = model.score(draft.tokens, draft.parents, length, state)
        return draft, state

    def learn(state, outcome: Outcome, key):
        del key
        return model.keep(state, outcome.before, outcome.verdict.path)

    return Drafter(nodes, depth, width, "distinct", start, propose, learn, depth + 1)
