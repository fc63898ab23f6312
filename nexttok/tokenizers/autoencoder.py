"""Convolutional autoencoder with continuous latents: KL-regularized or plain.

The latent space under FlexTok and of latent diffusion (Rombach et al., 2022).
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.bottlenecks import kl
from nexttok.config import build, check
from nexttok.nn.conv import ConvConfig, Decoder, Encoder
from nexttok.rng import stream
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Static configuration; parameters {encoder, decoder} are passed to every method.

    Attributes:
      image_shape: (H, W, C), values in [-1, 1].
      dtype: compute dtype.
      width, multipliers, blocks, attention, groups: see nn/conv.py.
      latent_channels: width of a latent.
      scaling_factor: latents are given out multiplied by it.
      kl_weight: of the KL term (nats, mean over latent elements).
      sample_posterior: encode with noise when a key is given; False is a plain autoencoder.
    """

    image_shape: tuple[int, ...]
    dtype: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    groups: int
    latent_channels: int
    scaling_factor: float
    kl_weight: float
    sample_posterior: bool

    def __post_init__(self):
        still = len(self.image_shape) == 3
        check(still, "data.frames", self.image_shape[0], "0: this tokenizer takes pictures")
        for side in self.image_shape[:2]:
            check(side % self.conv.stride == 0, "data.resolution", side,
                  f"a multiple of {self.conv.stride}, the stride of config.latent")  # fmt: skip
        channels = self.latent_channels
        check(channels >= 1, "latent.latent_channels", channels, "at least 1")
        check(self.scaling_factor > 0, "latent.scaling_factor", self.scaling_factor, "above 0")
        check(self.kl_weight >= 0, "latent.kl_weight", self.kl_weight, "at least 0")

    @property
    def conv(self) -> ConvConfig:
        """The networks' sizes."""
        return ConvConfig(
            self.width, self.multipliers, self.blocks, self.attention, self.groups, self.dtype
        )

    @property
    def spec(self) -> TokenSpec:
        """A grid of continuous tokens."""
        grid = tuple(side // self.conv.stride for side in self.image_shape[:2])
        return TokenSpec(grid, 0, self.latent_channels)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Pictures -> moments of the posterior."""
        return Encoder(self.conv, 2 * self.latent_channels)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """Latents -> pictures."""
        return Decoder(self.conv, self.image_shape[-1])

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder}."""
        image = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.spec.grid, self.latent_channels))
        return {
            "encoder": self.encoder.init(stream(rng, "encoder"), image)["params"],
            "decoder": self.decoder.init(stream(rng, "decoder"), latent)["params"],
        }

    def _posterior(self, params, x, rng):
        moments = self.encoder.apply({"params": params["encoder"]}, x)
        return kl.quantize(moments, rng if self.sample_posterior else None)

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Latents [B, h*w, c], scaled: a posterior sample when rng is given, else the mode."""
        z, _, _ = self._posterior(params, x, rng)
        return Tokens(values=(z * self.scaling_factor).reshape(len(x), -1, z.shape[-1]))

    def decode(
        self, params: dict, tokens: Tokens, rng: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Pictures of scaled latents; deterministic, rng is not used."""
        del rng
        z = tokens.values.reshape(-1, *self.spec.grid, self.latent_channels) / self.scaling_factor
        return self.decoder.apply({"params": params["decoder"]}, z)

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """Squared pixel error (mean over elements) + kl_weight KL, per example."""
        x = batch["image"]
        z, _, aux = self._posterior(params, x, stream(rng, "posterior"))
        recon = self.decoder.apply({"params": params["decoder"]}, z)
        error = jnp.square(recon - x).mean((1, 2, 3))
        metrics = {"mse": error.mean(), "kl": aux["kl"].mean()}
        return error + self.kl_weight * aux["kl"], metrics


def make(section, image_shape, dtype="float32", latent=None, features=None) -> Autoencoder:
    """An autoencoder from its config section.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, or a latent or
        feature provider, which it does not take.
    """
    check(latent is None, "latent.name", "", "'' under tokenizer.name = 'autoencoder'")
    check(features is None, "features.name", "", "'' under tokenizer.name = 'autoencoder'")
    given = dict(image_shape=tuple(image_shape), dtype=dtype)
    return build(Autoencoder, section, "latent", named=True, **given)
