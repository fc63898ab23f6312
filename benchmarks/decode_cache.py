"""Generation with the key-value cache against generation without it.

    python -m benchmarks.decode_cache [tokens]

Both run the same model under one jit; without the cache every step computes all slots again.
Prints medians of one run and their ratio.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from configs import flextok as config
from nexttok import generator
from nexttok.heads.draw import Draw
from nexttok.rng import stream
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.steps import Step
from nexttok.tokens import Tokens, TokenSpec

DRAW = Draw(warper(1.0, 0, 0.0), 1.0)


def uncached_step(gen, params, label):
    """The executor's step without a cache: all slots at every step, one of them used."""

    def run(tokens, order, at, state, key):
        tokens = Tokens(ids=tokens[:, : gen.spec.length])
        lesson = gen.lesson(tokens, key)
        hidden = gen.predicted(params, lesson, label)
        hidden = jax.lax.dynamic_slice_in_dim(hidden, at.first, at.size, axis=1)
        return gen.head.sample(params["head"], hidden, None, key, 1.0, DRAW)[0], order, state

    return Step(run)


def median_seconds(fn, repeats: int = 5) -> float:
    """Median wall time of fn(), after one call that compiles."""
    jax.block_until_ready(fn())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(tokens: int = 256, batch: int = 4) -> None:
    """Times both and checks that they draw the same tokens."""
    section = config.generator()
    section.backbone.update(width=256, depth=6, head_dim=64, mlp_hidden=1024, dropout=0.0)
    gen = generator.make(section, TokenSpec((tokens,), 1024, 4, True), 10)
    params, label = gen.init(jax.random.key(0)), jnp.arange(batch, dtype=jnp.int32)
    head = params["head"]["logits"]["kernel"]
    params["head"]["logits"]["kernel"] = jax.random.normal(
        stream(jax.random.key(1), "head"), head.shape
    )
    key, blank = jax.random.key(2), jnp.zeros((batch, tokens), jnp.int32)

    @jax.jit
    def cached(params):
        step = gen.step(params, label, gen.plan, DRAW)
        return generate(step, gen.plan, blank, gen.init_cache(batch, gen.plan), key)[0]

    @jax.jit
    def uncached(params):
        step = uncached_step(gen, params, label)
        return generate(step, gen.plan, blank, (), key)[0]

    agree = float((cached(params) == uncached(params)).mean())
    fast, slow = median_seconds(lambda: cached(params)), median_seconds(lambda: uncached(params))
    print(f"N = {tokens}, batch {batch}, width 256, depth 6; same tokens: {agree:.1%}")
    print(f"cached {fast:.3f} s, uncached {slow:.3f} s: {slow / fast:.1f} times faster")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
