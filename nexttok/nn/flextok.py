"""The three networks of FlexTok (Bachmann et al., "FlexTok: Resampling Images into 1D Token
Sequences of Flexible Length"): register encoder, rectified-flow decoder, alignment projector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import layer_norm
from nexttok.nn.patches import patchify, unpatchify
from nexttok.nn.positions import sincos_table, time_features
from nexttok.nn.transformer import Transformer, TransformerConfig

TIME_FREQUENCIES, TIME_PERIOD = 256, 256.0
AXES = ("columns", "rows")


def trunk(
    width: int, depth: int, head_dim: int, adaln: int, remat: bool, unroll: int, dtype: str
) -> TransformerConfig:
    """FlexTok's block: affine-free layer norms, per-head QK-norm, gated SiLU MLP, no biases.

    Scores are scaled by 8 / head_dim (muP), which is 1/sqrt(head_dim) at head_dim 64 only.
    """
    return TransformerConfig(
        width=width,
        depth=depth,
        head_dim=head_dim,
        mlp_hidden=int(2 * (4 * width) / 3),
        gated=True,
        activation="silu",
        qk_norm="layer",
        score_scale=8.0 / head_dim,
        adaln=adaln,
        remat=remat,
        unroll=unroll,
        dtype=dtype,
    )


def patch_positions(grid: tuple[int, int], width: int, first: str) -> Float[np.ndarray, "P D"]:
    """Sine-cosine positions of the patches, row-major.

    Args:
      grid: (h, w) patches.
      width: of the trunk, a multiple of 4.
      first: which coordinate the first half of the channels holds, columns | rows. MoCo v3's
        table, and so the released models', calls the slow axis w: rows.
    """
    table = sincos_table(grid, width)
    return np.roll(table, width // 2, axis=-1) if first == "rows" else table


class RegisterEncoder(nn.Module):
    """Patches and learned registers in; one latent vector per register out.

    Patches see patches; register i sees all patches and registers <= i, so the first k latents do
    not depend on how many registers follow.

    Attributes:
      config: the trunk.
      patch: side of a patch.
      registers: how many, N.
      channels: latent width, one per FSQ level.
      positions: see patch_positions.
    """

    config: TransformerConfig
    patch: int
    registers: int
    channels: int
    positions: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B N c"]:
        c = self.config
        patches = patchify(x, (self.patch, self.patch))
        grid = (x.shape[1] // self.patch, x.shape[2] // self.patch)
        h = Linear(c.width, dtype=c.dtype, name="patch_embed")(patches)
        h = h + jnp.asarray(patch_positions(grid, c.width, self.positions), h.dtype)[None]
        registers = self.param("registers", INITS["normal02"], (self.registers, c.width))
        registers = jnp.broadcast_to(registers.astype(h.dtype)[None], (len(x), *registers.shape))
        count = patches.shape[1]
        steps = np.concatenate([np.zeros(count, np.int32), 1 + np.arange(self.registers)])
        h = jnp.concatenate([h, registers], axis=1)
        h, _, _ = Transformer(c, name="trunk")(h, steps=steps)
        return Linear(self.channels, init="zeros", name="to_latents")(layer_norm(h[:, count:]))


class FlowDecoder(nn.Module):
    """Velocity of the noised latents given a prefix of the tokens.

    Dropped tokens (slot >= keep) become one learned mask vector, after positions are added; a null
    example has every token replaced by a learned null vector. Patches and registers attend to each
    other freely and are modulated by their own adaLN set.

    Attributes:
      config: the trunk, with two adaLN sets.
      patch: side of a patch.
      time_scale: multiplies the sine-cosine arguments, 1000 / max_timestep.
      positions: see patch_positions.
    """

    config: TransformerConfig
    patch: int
    time_scale: float
    positions: str

    @nn.compact
    def __call__(
        self,
        values: Float[Array, "B N c"],
        keep: Int[Array, "B"],
        null: Bool[Array, "B"],
        noised: Float[Array, "B H W C"],
        times: Float[Array, "B"],
        tap: int = -1,
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B P D"] | None]:
        """Returns the velocity and, with tap >= 0, the patch features after that block."""
        c = self.config
        count = values.shape[1]

        def vector(name, *shape):
            return self.param(name, INITS["normal02"], (*shape, c.width)).astype(c.dtype)

        tokens = Linear(c.width, dtype=c.dtype, name="from_latents")(values)
        tokens = tokens + vector("positions", count)[None]
        dropped = jnp.arange(count)[None, :] >= keep[:, None]
        mask = vector("mask_token", 1)[None]
        tokens = jnp.where(dropped[..., None], mask, tokens)
        tokens = jnp.where(null[:, None, None], vector("null_token", 1)[None], tokens)

        patches = patchify(noised, (self.patch, self.patch))
        grid = (noised.shape[1] // self.patch, noised.shape[2] // self.patch)
        h = Linear(c.width, dtype=c.dtype, name="patch_embed")(patches)
        h = h + jnp.asarray(patch_positions(grid, c.width, self.positions), h.dtype)[None]

        time = time_features(times, TIME_FREQUENCIES, TIME_PERIOD, self.time_scale)
        time = jax.nn.silu(Linear(c.width, dtype=c.dtype, name="time1")(time))
        time = Linear(c.width, dtype=c.dtype, name="time2")(time)

        lengths = (patches.shape[1], count)
        h = jnp.concatenate([h, tokens], axis=1)
        h, _, tapped = Transformer(c, lengths, name="trunk")(h, cond=time, tap=tap)
        shift, scale = jnp.split(
            Linear(2 * c.width, init="zeros", dtype=c.dtype, name="adaln")(jax.nn.silu(time)), 2, -1
        )
        h = layer_norm(h[:, : lengths[0]]) * (1.0 + scale[:, None]) + shift[:, None]
        velocity = Linear(patches.shape[2], init="zeros", name="to_patches")(h)
        tapped = None if tapped is None else tapped[:, : lengths[0]]
        return unpatchify(velocity, grid, (self.patch, self.patch)), tapped


class Projector(nn.Module):
    """Three-layer SiLU MLP, from decoder features to the feature provider's width (REPA).

    Attributes:
      features: outputs; hidden: of both hidden layers, 0 for four times the input.
      normed: layer norm first.
    """

    features: int
    dtype: str = "float32"
    hidden: int = 0
    normed: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P F"]:
        hidden = self.hidden or 4 * x.shape[-1]
        x = layer_norm(x) if self.normed else x
        h = jax.nn.silu(Linear(hidden, dtype=self.dtype, name="fc1")(x))
        h = jax.nn.silu(Linear(hidden, dtype=self.dtype, name="fc2")(h))
        return Linear(self.features, name="out")(h)
