"""The transformer that every backbone, encoder and decoder of the library shares."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nexttok.mesh import constrain
from nexttok.nn import slots
from nexttok.nn.attention import Attention
from nexttok.nn.cache import Cache
from nexttok.nn.linear import INITS, Linear, scaled
from nexttok.nn.norms import Norm
from nexttok.nn.slots import pick
from nexttok.nn.stack import scanned

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one paper's transformer from another's.

    Attributes:
      width, depth, head_dim: sizes; heads = width / head_dim.
      mlp_hidden: hidden width of the MLP (of each branch, when gated).
      gated: fc2(act(fc1 x) * fc3 x) instead of fc2(act(fc1 x)).
      activation: gelu | gelu_tanh | silu | relu.
      norm: layer | rms, before attention and MLP; `norm_affine` learns its scale, `norm_bias` its
        bias; `post_norm` puts it after the residual sum, as BERT does; `norm_input` makes the first
        norm that of the input itself, which it replaces (SLATE).
      qk_norm: none | layer | rms | l2 on queries and keys per head (see nn/attention.py);
        `qk_affine` learns their scale, `qk_eps` is added to the variance.
      score_scale: of attention scores; 0 for 1/sqrt(head_dim).
      bias: of attention (`key_bias` False: not of its keys; `qkv_bias` False: of its output alone);
        mlp_bias: of the MLP.
      adaln: number of adaLN modulation sets computed from a condition [B, D], one per segment of
        the sequence; 1 with a condition per segment [B, G, D]; 0 for none.
      adaln_gain: what the initializer of (gates, shifts and scales) is multiplied by; zeros for
        adaLN-zero.
      adaln_shared: the condition is the modulation itself, [B, 1, 6 D], shared by all layers, to
        which a layer adds its own table.
      residual_gates: what attention and MLP add is multiplied by learned vectors, zero at first.
      cross: add cross-attention to a context after self-attention.
      dropout: rate at the places that dropout_on names: weights (of attention), attention (its
        output), hidden (of the MLP), mlp (its output); drop_path: stochastic depth, linear over
        layers.
      init: xavier | normal02 | third (truncated normal of variance 1 / (3 width)).
      depth_scaled: output layers of attention and MLP start smaller by the root of their number.
      remat, unroll, zero: see nn/stack.py.
    """

    width: int
    depth: int
    head_dim: int
    mlp_hidden: int
    gated: bool = False
    activation: str = "gelu_tanh"
    norm: str = "layer"
    norm_affine: bool = False
    norm_bias: bool = True
    norm_eps: float = 1e-5
    post_norm: bool = False
    norm_input: bool = False
    qk_norm: str = "none"
    qk_affine: bool = False
    qk_eps: float = 1e-5
    score_scale: float = 0.0
    bias: bool = False
    key_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = False
    adaln: int = 0
    adaln_gain: tuple[float, ...] = (0.0, 0.0)
    adaln_shared: bool = False
    residual_gates: bool = False
    cross: bool = False
    dropout: float = 0.0
    dropout_on: tuple[str, ...] = ("attention", "mlp")
    drop_path: float = 0.0
    init: str = "xavier"
    depth_scaled: bool = False
    remat: bool = False
    unroll: int = 1
    zero: int = 3
    dtype: str = "float32"

    @property
    def initializer(self) -> Callable:
        """Of every linear layer."""
        return initializer(self.init, self.width)

    @property
    def output_initializer(self) -> Callable:
        """Of the output layers of attention and MLP."""
        branches = (3 if self.cross else 2) * self.depth
        gain = branches**-0.5 if self.depth_scaled else 1.0
        return scaled(self.initializer, gain)

    @property
    def adaln_initializer(self) -> Callable:
        """Of the layer that makes (two gates, then shift, scale, shift, scale)."""
        gates, rest = self.adaln_gain
        if gates == rest == 0:
            return INITS["zeros"]
        row = np.repeat([gates, rest], [2 * self.width, 4 * self.width])
        return scaled(self.initializer, np.tile(row, self.adaln))

    def dropout_at(self, place: str) -> float:
        """Dropout rate of a place."""
        return self.dropout if place in self.dropout_on else 0.0

    def norm_layer(self, name: str) -> Norm:
        """The normalization of this transformer."""
        return Norm(self.norm, self.norm_affine, self.norm_eps, self.norm_bias, name=name)


def initializer(name: str, width: int) -> Callable:
    """xavier | normal02 | zeros | third (truncated normal of variance 1 / (3 width), as VAR)."""
    if name == "third":
        return nn.initializers.truncated_normal((3 * width) ** -0.5)
    return INITS[name]


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
        dense = functools.partial(Linear, bias=c.mlp_bias, init=c.initializer, dtype=c.dtype)
        h = ACTIVATIONS[c.activation](dense(c.mlp_hidden, name="fc1")(x))
        if c.gated:
            h = h * dense(c.mlp_hidden, name="fc3")(x)
        h = constrain(h, "batch", "sequence", "mlp")
        h = nn.Dropout(c.dropout_at("hidden"), deterministic=not train, name="hidden_dropout")(h)
        h = dense(c.width, init=c.output_initializer, name="fc2")(h)
        return nn.Dropout(c.dropout_at("mlp"), deterministic=not train)(h)


class Block(nn.Module):
    """Self-attention, optional cross-attention, MLP, with their norms; optional adaLN."""

    config: TransformerConfig
    segments: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    filled: int = 0
    first_layer: int = 0
    train: bool = False

    @nn.compact
    def __call__(self, carry, layer, steps, rotary, cond, context, context_mask, places, wanted):
        x, cache, tapped, tap = carry
        train = self.train
        index, rate = layer
        c = self.config

        def residual(x, branch, gate, learned=""):
            if c.residual_gates and learned:
                own = self.param(learned, INITS["zeros"], (c.width,))
                branch = branch * own.astype(branch.dtype)[None, None]
            if c.drop_path > 0 and train:
                branch = drop_path(branch, rate, self.make_rng("dropout"))
            return x + (branch if gate is None else gate * branch)

        def attention(name):
            return Attention(
                c.width, c.head_dim, c.bias, c.key_bias, c.qkv_bias, c.qk_norm, c.qk_affine,
                c.score_scale, c.dropout_at("attention"), c.dropout_at("weights"),
                c.initializer, c.output_initializer, c.dtype, c.qk_eps, name=name,
            )  # fmt: skip

        gates = shifts = scales = (None, None)
        if c.adaln:
            if c.adaln_shared:
                own = self.param(
                    "modulation", nn.initializers.normal(c.width**-0.5), (6 * c.width,)
                )
                mods = cond + own.astype(cond.dtype)[None, None]
            else:
                mods = Linear(
                    c.adaln * 6 * c.width, True, c.adaln_initializer, c.dtype, name="adaln"
                )(jax.nn.silu(cond)).reshape(x.shape[0], -1, 6 * c.width)
            six = jnp.split(per_slot(mods, self.segments), 6, axis=-1)
            gates, shifts, scales = six[0:2], (six[2], six[4]), (six[3], six[5])

        def normed(name, i):
            if c.post_norm:
                return x
            h = c.norm_layer(name)(x)
            return h if scales[i] is None else h * (1.0 + scales[i]) + shifts[i]

        h = normed("norm1", 0)
        x = jnp.where(index == 0, h, x) if c.norm_input else x
        h, cache = attention("attn")(
            h, steps, rotary, place=places[0], cache=cache,
            layer=self.first_layer + index, runs=self.runs, filled=self.filled, wanted=wanted,
            train=train,
        )  # fmt: skip
        x, *mods = (pick(v, wanted) for v in (x, *gates, shifts[1], scales[1]))
        gates, shifts, scales = mods[:2], mods[2:3] * 2, mods[3:] * 2
        x = residual(x, h, gates[0], "gate1")
        x = c.norm_layer("norm1")(x) if c.post_norm else x
        if c.cross:
            h = c.norm_layer("norm_cross")(x)
            h, _ = attention("cross")(
                h, context=context, context_mask=context_mask, place=places[0],
                context_place=places[1], train=train,
            )  # fmt: skip
            x = residual(x, h, None)
        x = residual(x, Mlp(c, name="mlp")(normed("norm2", 1), train), gates[1], "gate2")
        x = c.norm_layer("norm2")(x) if c.post_norm else x
        x = constrain(x, "batch", "sequence", None)
        if tapped is not None:
            tapped = jnp.where(index == tap, x, tapped)
        return (x, cache, tapped, tap), None


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
        steps: Int[Array, "S"] | Int[Array, "B S"] | Int[np.ndarray, "S"] | None = None,
        rotary: Float[Array, "S half 2"] | Float[Array, "B S half 2"] | None = None,
        cond: Float[Array, "B D"] | Float[Array, "B G E"] | None = None,
        context: Float[Array, "B K E"] | None = None,
        context_mask: Bool[Array, "B K"] | None = None,
        places: tuple[Float[Array, "S D"] | None, Float[Array, "K E"] | None] = (None, None),
        cache: Cache | None = None,
        first_layer: int = 0,
        tap: int = -1,
        runs: tuple[int, ...] = (),
        filled: int = 0,
        wanted: Int[Array, "B n"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B n D"], Cache | None, Float[Array, "B S D"] | None]:
        """Runs the blocks.

        Args:
          x: slot embeddings.
          steps: step ids of the slots (see nn/attention.py), in NumPy where they are known when
            compiled; None when all see all.
          rotary: (cos, sin) of the slots (see nn/positions.py).
          cond: condition of adaLN, one vector or one per segment.
          context, context_mask: what cross-attention reads.
          places: positions of the slots and of the context, added where queries and keys, not
            values, are made (DETR: Carion et al., 2020).
          cache: slots processed before, entered with `steps` (see nn/cache.py).
          first_layer: which of the cache's layers is the first of these blocks.
          runs, filled: what attention may leave out (see nn/slots.py).
          tap: also return the output of this 0-based block (for alignment losses); -1 for none.
          wanted: the slots of the output; None for all. The last layer computes them alone, without
            random numbers: not in training, nor with `tap` or `places`.
          train: enables dropout (rng stream "dropout").

        Returns:
          Output, cache with the new slots' keys and values, tapped features or None.
        """
        c = self.config
        if isinstance(steps, np.ndarray):
            runs, steps = slots.runs(steps), jnp.asarray(steps, jnp.int32)
        rates = jnp.asarray(np.linspace(0.0, c.drop_path, c.depth), jnp.float32)
        layers = (jnp.arange(c.depth, dtype=jnp.int32), rates)
        tapped = jnp.zeros_like(x) if tap >= 0 else None
        carry = (x, cache, tapped, jnp.asarray(tap, jnp.int32))
        shared = (steps, rotary, cond, context, context_mask, places)
        options = (c, self.segments, runs, filled, first_layer, train)
        if wanted is None or self.is_initializing():
            blocks = scanned(Block, c.depth, 7, c, self.is_initializing())
            return blocks(*options, name="blocks")(carry, layers, *shared, None)[0][:3]
        # the parameters of all layers lie in one stack: the last layer, of its own shape, and those
        # before it are applied to their parts of it
        stack = self.variables["params"]["blocks"]
        if c.depth > 1:
            before, own = jax.tree.map(lambda v: v[:-1], (layers, stack))
            blocks = scanned(Block, c.depth - 1, 7, c)(*options, parent=None)
            carry = blocks.apply({"params": own}, carry, before, *shared, None)[0]
        last, own = jax.tree.map(lambda v: v[-1], (layers, stack))
        block = Block(*options, parent=None)
        return block.apply({"params": own}, carry, last, *shared, wanted)[0][:3]
