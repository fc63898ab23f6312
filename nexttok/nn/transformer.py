"""The transformer that every backbone, encoder and decoder of the library shares."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nexttok.mesh import constrain
from nexttok.nn.attention import Attention, Cache, LayerCache
from nexttok.nn.linear import Linear
from nexttok.nn.norms import Norm

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one paper's transformer from another's.

    Attributes:
      width, depth, head_dim: sizes; heads = width / head_dim.
      mlp_hidden: hidden width of the MLP (of each branch, when gated).
      gated: fc2(act(fc1 x) * fc3 x) instead of fc2(act(fc1 x)).
      activation: gelu | gelu_tanh | silu.
      norm: layer | rms, before attention and MLP; `norm_affine` learns its scale.
      qk_norm: none | layer | rms on queries and keys per head.
      score_scale: of attention scores; 0 for 1/sqrt(head_dim).
      bias: biases of attention and MLP.
      adaln: number of adaLN-zero modulation sets, one per segment of the sequence; 0 for none.
      cross: add cross-attention to a context after self-attention.
      dropout: on attention and MLP outputs; drop_path: stochastic depth, linear over layers.
      init: xavier | normal02.
      remat: rematerialize each block in the backward pass; unroll: blocks per scan iteration.
    """

    width: int
    depth: int
    head_dim: int
    mlp_hidden: int
    gated: bool = False
    activation: str = "gelu_tanh"
    norm: str = "layer"
    norm_affine: bool = False
    qk_norm: str = "none"
    score_scale: float = 0.0
    bias: bool = False
    adaln: int = 0
    cross: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    init: str = "xavier"
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"


def per_slot(mods: Float[Array, "B G M"], lengths: tuple[int, ...]) -> Float[Array, "B S M"]:
    """Repeats one vector per segment over the slots of that segment; S = sum(lengths)."""
    batch, _, width = mods.shape
    parts = [jnp.broadcast_to(mods[:, g : g + 1], (batch, n, width)) for g, n in enumerate(lengths)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def drop_path(x: Float[Array, "B S D"], rate: Float[Array, ""], key: Array) -> Array:
    """Zeroes whole residual branches per example, rescaling the others by 1/(1 - rate)."""
    kept = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return jnp.where(kept, x / (1.0 - rate).astype(x.dtype), jnp.zeros_like(x))


class Mlp(nn.Module):
    """fc2(act(fc1 x)), or gated: fc2(act(fc1 x) * fc3 x) (Shazeer, 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], train: bool = False) -> Float[Array, "B S D"]:
        c = self.config
        dense = functools.partial(Linear, bias=c.bias, init=c.init, dtype=c.dtype)
        h = ACTIVATIONS[c.activation](dense(c.mlp_hidden, name="fc1")(x))
        if c.gated:
            h = h * dense(c.mlp_hidden, name="fc3")(x)
        h = constrain(h, "batch", "sequence", "mlp")
        h = dense(c.width, name="fc2")(h)
        return nn.Dropout(c.dropout, deterministic=not train)(h)


class Block(nn.Module):
    """Pre-norm block: self-attention, optional cross-attention, MLP; optional adaLN-zero."""

    config: TransformerConfig
    segments: tuple[int, ...] = ()
    train: bool = False

    @nn.compact
    def __call__(self, carry, layer, shared, steps, angles, cond, context, context_mask):
        x, tapped, tap = carry
        train = self.train
        index, rate, memory = layer
        cache = None if memory is None else LayerCache(*memory, *shared)
        c = self.config

        def residual(x, branch, gate):
            if c.drop_path > 0 and train:
                branch = drop_path(branch, rate, self.make_rng("dropout"))
            return x + (branch if gate is None else gate * branch)

        def attention(name):
            return Attention(
                c.width, c.head_dim, c.bias, c.qk_norm, False, c.score_scale, c.dropout, c.init,
                c.dtype, name=name,
            )  # fmt: skip

        gates = shifts = scales = (None, None)
        if c.adaln:
            mods = Linear(c.adaln * 6 * c.width, True, "zeros", c.dtype, name="adaln")(
                jax.nn.silu(cond)
            ).reshape(x.shape[0], c.adaln, 6 * c.width)
            six = jnp.split(per_slot(mods, self.segments), 6, axis=-1)
            gates, shifts, scales = six[0:2], (six[2], six[4]), (six[3], six[5])

        def normed(name, i):
            h = Norm(c.norm, c.norm_affine, name=name)(x)
            return h if scales[i] is None else h * (1.0 + scales[i]) + shifts[i]

        h, cache = attention("attn")(
            normed("norm1", 0), steps=steps, angles=angles, cache=cache, train=train
        )
        x = residual(x, h, gates[0])
        if c.cross:
            h = Norm(c.norm, c.norm_affine, name="norm_cross")(x)
            h, _ = attention("cross")(h, context=context, context_mask=context_mask, train=train)
            x = residual(x, h, None)
        x = residual(x, Mlp(c, name="mlp")(normed("norm2", 1), train), gates[1])
        x = constrain(x, "batch", "sequence", None)
        if tapped is not None:
            tapped = jnp.where(index == tap, x, tapped)
        return (x, tapped, tap), None if cache is None else (cache.keys, cache.values)


class Transformer(nn.Module):
    """`depth` blocks under one scan; scan and unroll share one parameter layout.

    Attributes:
      config: see TransformerConfig.
      segments: lengths of the parts of the sequence that adaLN modulates separately.
    """

    config: TransformerConfig
    segments: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        steps: Int[Array, "S"] | Int[Array, "B S"] | None = None,
        angles: Float[Array, "S half"] | None = None,
        cond: Float[Array, "B D"] | None = None,
        context: Float[Array, "B K E"] | None = None,
        context_mask: Bool[Array, "B K"] | None = None,
        cache: Cache | None = None,
        tap: int = -1,
        train: bool = False,
    ) -> tuple[Float[Array, "B S D"], Cache | None, Float[Array, "B S D"] | None]:
        """Runs the blocks.

        Args:
          x: slot embeddings.
          steps: step ids of the slots (see nn/attention.py); None when all see all.
          angles: rotary angles of the slots.
          cond: conditioning vector of adaLN.
          context, context_mask: what cross-attention reads.
          cache: slots processed before; its leaves lead with the layer axis.
          tap: also return the output of this 0-based block (for alignment losses); -1 for none.
          train: enables dropout (rng stream "dropout").

        Returns:
          Output, cache with the new slots, tapped features or None.
        """
        c = self.config
        block = Block
        if c.remat:
            block = nn.remat(Block, prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * 6),
            length=c.depth,
            unroll=min(c.unroll, c.depth),
        )(c, self.segments, train, name="blocks")
        rates = jnp.asarray(np.linspace(0.0, c.drop_path, c.depth), jnp.float32)
        tapped = jnp.zeros_like(x) if tap >= 0 else None
        carry = (x, tapped, jnp.asarray(tap, jnp.int32))
        memory, shared = None, None
        if cache is not None:
            memory, shared = (cache.keys, cache.values), (cache.add_steps(steps), cache.cursor)
        indices = jnp.arange(c.depth, dtype=jnp.int32)
        (x, tapped, _), memory = layers(
            carry, (indices, rates, memory), shared, steps, angles, cond, context, context_mask
        )
        if cache is not None:
            cache = Cache(*memory, shared[0], cache.cursor + x.shape[1])
        return x, cache, tapped
