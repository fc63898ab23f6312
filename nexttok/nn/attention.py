"""Attention masked by step ids.

One rule gives the masks of all plans: slot k is visible to slot q when step[k] <= step[q].
Causal, bidirectional, prefix and block-causal attention differ in the steps alone.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.nn.cache import Cache
from nexttok.nn.kernels import attend, received
from nexttok.nn.linear import Linear
from nexttok.nn.norms import Norm, unit
from nexttok.nn.positions import rotate
from nexttok.nn.slots import pick, visible


class Attention(nn.Module):
    """Multi-head self- or cross-attention.

    Attributes:
      width, head_dim: heads = width / head_dim.
      bias: biases of the four projections; `key_bias` False leaves the keys without one, `qkv_bias`
        False all but the output projection.
      qk_norm: none | layer | rms | l2, per head; `qk_affine` learns its scale, `qk_eps` is added to
        the variance. With l2 the scores are cosines times a learned temperature per head, at most
        100 (VAR).
      scale: of the scores; 0 for 1/sqrt(head_dim).
      dropout: on the output projection; weight_dropout: on the attention weights.
      init: of the projections; `proj_init` of the output projection, None for the same.
    """

    width: int
    head_dim: int
    bias: bool = False
    key_bias: bool = True
    qkv_bias: bool = True
    qk_norm: str = "none"
    qk_affine: bool = False
    scale: float = 0.0
    dropout: float = 0.0
    weight_dropout: float = 0.0
    init: str | Callable = "xavier"
    proj_init: str | Callable | None = None
    dtype: str = "float32"
    qk_eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        steps: Int[Array, "S"] | Int[Array, "B S"] | None = None,
        rotary: Float[Array, "S half 2"] | Float[Array, "B S half 2"] | None = None,
        context: Float[Array, "B K E"] | None = None,
        context_mask: Bool[Array, "B K"] | None = None,
        place: Float[Array, "S D"] | None = None,
        context_place: Float[Array, "K E"] | None = None,
        cache: Cache | None = None,
        layer: Int[Array, ""] | int = 0,
        runs: tuple[int, ...] = (),
        filled: int = 0,
        wanted: Int[Array, "B n"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B n D"], Cache | None]:
        """Returns the output and, when one was given, the cache with the new slots written.

        Self-attention reads x by `steps` (None: everything is visible), which keep the promises of
        `runs` and `filled` (see nn/slots.py); with a cache, whose `layer` this is, it also reads
        the slots written before. Only the slots that are `wanted` ask (None: all do).
        Cross-attention reads `context` where `context_mask` is True; `rotary` turns no key of it.
        Queries and keys, not values, are also made of the places of their slots. A mutable
        collection "attention" is told what every key receives (nn/kernels.py).
        """
        heads = self.width // self.head_dim
        placed = x if place is None else x + place[None].astype(x.dtype)
        if context is None:
            source, marked = x, placed
        else:
            source, marked = context, context
            if context_place is not None:
                marked = context + context_place[None].astype(context.dtype)
        x, asking = pick(x, wanted), pick(placed, wanted)
        ask = None if steps is None else pick(steps, wanted, steps.ndim == 1)
        turn = None if rotary is None else pick(rotary, wanted, rotary.ndim == 3)
        scale = self.scale or self.head_dim**-0.5

        def project(name, inputs, bias):
            y = Linear(self.width, bias, self.init, self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:-1], heads, self.head_dim)

        bias = self.bias and self.qkv_bias
        q = project("wq", asking, bias)
        k = project("wk", marked, bias and self.key_bias)
        v = project("wv", source, bias)
        if self.qk_norm == "l2":
            warmth = self.param("scale", nn.initializers.constant(math.log(4.0)), (heads,))
            warmth = jnp.exp(jnp.minimum(warmth, math.log(100.0))).reshape(1, 1, -1, 1)
            q, k, scale = unit(q) * warmth.astype(q.dtype), unit(k), 1.0
        else:
            q = Norm(self.qk_norm, self.qk_affine, self.qk_eps, name="q_norm")(q)
            k = Norm(self.qk_norm, self.qk_affine, self.qk_eps, name="k_norm")(k)
        if rotary is not None:
            q, k = rotate(q, turn), rotate(k, rotary) if context is None else k
        if context is not None:
            mask = None
            if context_mask is not None:
                mask = jnp.broadcast_to(context_mask[:, None], (*x.shape[:2], source.shape[1]))
        elif cache is not None:
            cache = cache.write(layer, k, v)
            k, v, mask = cache.read(layer, ask, filled)
            runs = ()
        elif steps is None:
            mask, runs = None, (x.shape[1],)
        else:
            mask = visible(ask, steps)
        drop = None
        if train and self.weight_dropout:
            drop = nn.Dropout(self.weight_dropout, deterministic=False, name="weight_dropout")
        runs = runs if wanted is None and context is None else ()
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "received", received(q, k, mask, scale))
        y = attend(q, k, v, mask, scale, drop, runs)
        init = self.init if self.proj_init is None else self.proj_init
        y = Linear(self.width, self.bias, init, self.dtype, name="proj")(
            y.reshape(*x.shape[:2], self.width)
        )
        return nn.Dropout(self.dropout, deterministic=not train)(y), cache
