"""The networks of D-AR's tokenizer: causal query encoder, causal conditioning, pixel diffusion
transformer (Gao and Shou, "D-AR: Diffusion via Autoregressive Models", 2025)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.nn.attention import Attention
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import layer_norm
from nexttok.nn.patches import patchify, unpatchify
from nexttok.nn.positions import grid_positions, rope_table, time_features
from nexttok.nn.stack import scanned
from nexttok.nn.transformer import Mlp, Transformer, TransformerConfig

EPS = 1e-6  # of every norm
TIME_PERIOD, TIME_SCALE = 1e4, 1000.0


def trunk(
    width: int, depth: int, head_dim: int, remat: bool, unroll: int, dtype: str
) -> TransformerConfig:
    """D-AR's block: layer norms, also of queries and keys per head, SiLU MLP, biases everywhere."""
    return TransformerConfig(
        width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, activation="silu",
        norm_affine=True, norm_eps=EPS, qk_norm="layer", qk_affine=True, qk_eps=EPS, bias=True,
        mlp_bias=True, residual_gates=True, init="normal02", remat=remat, unroll=unroll,
        dtype=dtype,
    )  # fmt: skip


def rotary(grid: tuple[int, int], head_dim: int, others: int = 0) -> Float[np.ndarray, "N half 2"]:
    """(cos, sin) of the rows, then the columns of a grid; `others` that follow are not turned."""
    table = rope_table(grid_positions(grid), head_dim)
    still = np.broadcast_to(np.float32([1.0, 0.0]), (others, *table.shape[1:]))
    return np.concatenate([table, still])


def cells(x: Array, patch: int) -> tuple[int, int]:
    """Patches per column and per row of pictures."""
    return x.shape[1] // patch, x.shape[2] // patch


class QueryEncoder(nn.Module):
    """Patches and learned queries in; one latent vector per query out, in float32.

    Patches see patches; query i sees all patches and queries <= i.

    Attributes:
      config: the trunk.
      patch: side of a patch.
      queries: how many, N; their vectors are linear in `rank` learned numbers each.
      channels: latent width.
    """

    config: TransformerConfig
    patch: int
    queries: int
    rank: int
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B N c"]:
        c, grid = self.config, cells(x, self.patch)
        h = Linear(c.width, dtype=c.dtype, name="patch_embed")(patchify(x, (self.patch,) * 2))
        count = h.shape[1]
        drawn = nn.initializers.truncated_normal(1.0)
        queries = self.param("registers", drawn, (self.queries, self.rank))
        queries = Linear(c.width, dtype=c.dtype, name="project")(queries)
        queries = jnp.broadcast_to(queries[None], (len(x), *queries.shape))
        h = jnp.concatenate([layer_norm(h, EPS), queries], axis=1)
        steps = np.concatenate([np.zeros(count, np.int32), 1 + np.arange(self.queries)])
        h, _, _ = Transformer(c, name="trunk")(
            h, steps=steps, rotary=jnp.asarray(rotary(grid, c.head_dim, self.queries)),
        )  # fmt: skip
        kept = layer_norm(h[:, count:].astype(jnp.float32), EPS)
        return Linear(self.channels, bias=False, name="to_latents")(kept)


class Conditioner(nn.Module):
    """Dequantized latents -> one condition per token, which sees the tokens up to its own."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, values: Float[Array, "B N c"]) -> Float[Array, "B N D"]:
        c, count = self.config, values.shape[1]
        h = Linear(c.width, bias=False, dtype=c.dtype, name="from_latents")(values)
        positions = self.param("positions", INITS["normal02"], (count, c.width))
        steps = np.arange(count)
        h, _, _ = Transformer(c, name="trunk")(h + positions.astype(h.dtype)[None], steps=steps)
        return layer_norm(h, EPS)


class DenoiserBlock(nn.Module):
    """Patches read the group; that and the block's own view of time modulate each patch (adaLN)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, carry, index, time, group, rotary):
        x, tapped, tap = carry
        c = self.config
        narrow = dataclasses.replace(c, mlp_hidden=c.width)

        def attend(name, x, **inputs):
            attention = Attention(
                c.width, c.head_dim, c.bias, qk_norm=c.qk_norm, qk_affine=c.qk_affine,
                init=c.initializer, dtype=c.dtype, qk_eps=c.qk_eps, name=name,
            )  # fmt: skip
            return attention(x, rotary=rotary, **inputs)[0]

        source = layer_norm(Mlp(narrow, name="group")(group), EPS)
        seen = attend("cross", layer_norm(x, EPS), context=source)
        cond = jax.nn.silu(Mlp(narrow, name="time")(time) + seen)
        mods = Linear(6 * c.width, init="zeros", dtype=c.dtype, name="adaln")(cond)
        gate1, gate2, shift1, scale1, shift2, scale2 = jnp.split(mods, 6, axis=-1)
        h = attend("attn", layer_norm(x, EPS) * (1.0 + scale1) + shift1)
        x = x + gate1 * h
        h = Mlp(c, name="mlp")(layer_norm(x, EPS) * (1.0 + scale2) + shift2)
        x = x + gate2 * h
        return (x, jnp.where(index == tap, x, tapped), tap), None


class Denoiser(nn.Module):
    """Velocity of noised pictures given one group of conditions, in float32.

    Attributes:
      config: sizes of its blocks.
      patch: side of a patch.
    """

    config: TransformerConfig
    patch: int

    @nn.compact
    def __call__(
        self,
        group: Float[Array, "B n E"],
        noised: Float[Array, "B H W C"],
        times: Float[Array, "B"],
        tap: Int[Array, ""] | int = -1,
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B P D"]]:
        """Returns the velocity and the patches after block `tap` (0-based; zeros for none).

        `times` are noise levels; their complement is what the blocks are told, as in the release.
        """
        c, grid = self.config, cells(noised, self.patch)
        group = layer_norm(Linear(c.width, dtype=c.dtype, name="project")(group), EPS)
        time = time_features(1.0 - times, c.width, TIME_PERIOD, TIME_SCALE)[:, None]
        h = Linear(c.width, dtype=c.dtype, name="patch_embed")(patchify(noised, (self.patch,) * 2))
        blocks = scanned(DenoiserBlock, c.depth, 3, c, self.is_initializing())
        table = jnp.asarray(rotary(grid, c.head_dim))
        carry = (h, jnp.zeros_like(h), jnp.asarray(tap, jnp.int32))
        layers = jnp.arange(c.depth, dtype=jnp.int32)
        (h, tapped, _), _ = blocks(c, name="blocks")(carry, layers, time, group, table)
        pixels = Linear(self.patch**2 * noised.shape[-1], init="zeros", name="to_patches")(
            layer_norm(h.astype(jnp.float32), EPS)
        )
        return unpatchify(pixels, grid, (self.patch,) * 2), tapped
