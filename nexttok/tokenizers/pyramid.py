"""Continuous latents as a pyramid of maps, coarse to fine: the scales of next-X prediction (Ren et
al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation" (xAR), 2025).

Map k is the autoencoder's latent averaged over areas to side k; the last is the latent itself.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import multiscale
from nexttok.config import build
from nexttok.tokenizers.vqgan import VQGAN, refuse_providers
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid(VQGAN):
    """A KL autoencoder, its losses included, see there for the other fields.

    Attributes:
      sides: of the maps, growing up to the latent's side; pictures are square.
    """

    sides: tuple[int, ...]

    def __post_init__(self):
        super().__post_init__()
        self._check("bottleneck", self.bottleneck == "kl", "kl under tokenizer.name = 'pyramid'")
        side = self.image_shape[0] // self.conv.stride
        multiscale.check_sides(self.sides, side, self.config_path)

    @property
    def spec(self) -> TokenSpec:
        """All maps in one row; a prefix decodes as far as its last whole map."""
        length = multiscale.ends(self.sides)[-1]
        return TokenSpec((length,), 0, self.latent_channels, True, self.sides)

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder[, discriminator]}."""
        return self._plain.init(rng)

    @property
    def _plain(self) -> VQGAN:
        fields = [f.name for f in dataclasses.fields(VQGAN)]
        return VQGAN(**{name: getattr(self, name) for name in fields})

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Values [B, N, c], coarse to fine and row-major inside a map; see VQGAN.encode."""
        z = self._plain.encode(params, x, rng).values
        full = z.reshape(len(x), self.sides[-1], self.sides[-1], -1)
        maps = [multiscale.shrink(full, side) for side in self.sides]
        return Tokens(values=jnp.concatenate([m.reshape(len(x), -1, z.shape[-1]) for m in maps], 1))

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array | None = None,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Pictures of the last whole map among values [B, M <= N], enlarged to the latent's side.

        Args:
          params: see init.
          tokens: values; without a whole map the latent is zero.
          rng: not used.
          keep: tokens of each example that count, None for all.
        """
        del rng
        values, full = tokens.values, self.sides[-1]
        z = jnp.zeros((len(values), full, full, self.latent_channels))
        maps = multiscale.split(values, self.sides)
        for part, side, end in zip(maps, self.sides, multiscale.ends(self.sides), strict=False):
            found = part.reshape(len(values), side, side, -1)
            if side != full:
                found = multiscale.resample(found, multiscale.bicubic(full, side))
            z = found if keep is None else jnp.where((keep >= end)[:, None, None, None], found, z)
        return self._decode(params["decoder"], z / self.scaling_factor)

    def _decode(self, params, z):
        return self.decoder.apply({"params": params}, z)


def make(section, image_shape, dtype="float32", latent=None, features=None) -> Pyramid:
    """A tokenizer from its config section: the keys of VQGAN and `sides`.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, or a latent or
        feature provider, which it does not take.
    """
    refuse_providers("pyramid", latent, features)
    given = dict(image_shape=tuple(image_shape), dtype=dtype, config_path="tokenizer")
    return build(Pyramid, section, "tokenizer", named=True, **given)
