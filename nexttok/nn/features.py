"""Frozen feature providers by name: DINOv2's vision transformers, and patches.

A provider has `grid` (rows, columns) and `channels` of its features, `init(key)` -> parameters, and
`apply(params, images [B, H, W, C]) -> [B, *grid, channels]`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.nn import vit
from nexttok.nn.patches import patchify

PATCHES = {f"{side}": side for side in (2, 4, 8, 16)}


@dataclasses.dataclass(frozen=True)
class PatchFeatures:
    """Pixels of square patches, turned at random: features that need no file.

    Attributes:
      side: of a patch.
      image_shape: (H, W, C) of the pictures.
    """

    side: int
    image_shape: tuple[int, ...]

    def __post_init__(self):
        for size in self.image_shape[:2]:
            allowed = f"a divisor of the side {size} of pictures"
            check(size % self.side == 0, "features.preset", self.side, allowed)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of a picture."""
        return self.image_shape[0] // self.side, self.image_shape[1] // self.side

    @property
    def channels(self) -> int:
        """Values of a patch."""
        return self.side**2 * self.image_shape[-1]

    def init(self, rng: Array) -> dict:
        """{kernel}, a random rotation."""
        shape = (self.channels, self.channels)
        return {"kernel": jax.nn.initializers.orthogonal()(rng, shape, jnp.float32)}

    def apply(self, params: dict, images: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Features of images; distances are those of their pixels."""
        rows = patchify(images, (self.side, self.side)) @ params["kernel"]
        return rows.reshape(len(images), *self.grid, self.channels)


def make(name: str, preset: str, image_shape: tuple[int, ...]):
    """The provider of `config.features`, or None for name "".

    Raises:
      ConfigError: unknown name or preset, pictures that it cannot take.
    """
    allowed = "'' | dinov2 | patches"
    check(name in ("", "dinov2", "patches"), "features.name", name, allowed)
    if not name:
        return None
    check(len(image_shape) == 3, "features.name", name, "'' for videos")
    if name == "dinov2":
        return vit.make(preset)
    check(preset in PATCHES, "features.preset", preset, " | ".join(PATCHES))
    return PatchFeatures(PATCHES[preset], tuple(image_shape))
