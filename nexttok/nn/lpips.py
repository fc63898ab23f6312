"""LPIPS on VGG16 (Zhang et al., "The Unreasonable Effectiveness of Deep Features ...", 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.nn.conv import Conv

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


class VGG16(nn.Module):
    """The rectified features of VGG16's five stages, each at half the side of the one before."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        found = []
        for i, (channels, convs) in enumerate(STAGES):
            if i > 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for j in range(convs):
                x = jax.nn.relu(Conv(channels, dtype=self.dtype, name=f"conv{i}_{j}")(x))
            found.append(x)
        return found


class LPIPS(nn.Module):
    """Distance of two batches of pictures in [-1, 1]: one or three channels, sides of at least 16.

    Unit-normalized features of every stage, squared differences weighted per channel, averaged
    over positions and summed over stages. The weights are those of interop/lpips.py.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, "B"]:
        shift, scale = (jnp.asarray(row).reshape(1, 1, 1, 3) for row in (SHIFT, SCALE))
        both = jnp.concatenate([x, y]).astype(jnp.float32)
        both = jnp.broadcast_to(both, (*both.shape[:-1], 3))
        distance = jnp.zeros(len(x))
        for i, features in enumerate(VGG16(self.dtype, name="vgg")((both - shift) / scale)):
            weights = self.param(f"scale{i}", nn.initializers.ones_init(), features.shape[-1:])
            # Guarded inside the root as well, so that features of 0 have a gradient.
            wide = features.astype(jnp.float32)
            norm = jnp.sqrt(jnp.square(wide).sum(-1, keepdims=True) + 1e-20)
            a, b = jnp.split(wide / (norm + 1e-10), 2)
            distance += (jnp.square(a - b) * weights.reshape(1, 1, 1, -1)).sum(-1).mean((1, 2))
        return distance
