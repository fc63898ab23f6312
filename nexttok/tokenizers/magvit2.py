"""Videos as a causal grid of FSQ codes: MAGVIT-v2's networks (Yu et al., "Language Model Beats
Diffusion: Tokenizer is Key to Visual Generation", 2023) with finite scalar quantization, as Ren et
al., "Next Block Prediction", 2025, train and release them.

Their adversarial and perceptual losses are not here: the loss is reconstruction alone.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.bottlenecks import fsq, vq
from nexttok.config import build, check
from nexttok.nn.magvit2 import CausalConfig, CausalDecoder, CausalEncoder
from nexttok.rng import stream
from nexttok.tokenizers.vqgan import refuse_providers
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class Magvit2:
    """Static configuration; parameters {encoder, decoder} are passed to every method.

    Attributes:
      image_shape: (T, H, W, C) of the videos, values in [-1, 1]; T is 1 more than a multiple of
        the stride in time.
      dtype: compute dtype.
      width, multipliers, blocks, time_levels, groups: see nn/magvit2.py.
      levels: of FSQ, one per latent channel.
      reconstruction: l1 | l2, with reconstruction_weight.
    """

    image_shape: tuple[int, ...]
    dtype: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    time_levels: int
    groups: int
    levels: tuple[int, ...]
    reconstruction: str
    reconstruction_weight: float

    def __post_init__(self):
        moving = len(self.image_shape) == 4
        check(moving, "data.frames", 0, "at least 1: this tokenizer takes videos")
        frames, side = self.image_shape[:2]
        time, space = self.conv.stride[:2]
        check(frames % time == 1 % time, "data.frames", frames, f"1 and a multiple of {time}")
        check(side % space == 0, "data.resolution", side, f"a multiple of the stride {space}")
        fsq.validate(self.levels, "tokenizer.levels")
        one_of = self.reconstruction in ("l1", "l2")
        check(one_of, "tokenizer.reconstruction", self.reconstruction, "l1 | l2")
        weight = self.reconstruction_weight
        check(weight > 0, "tokenizer.reconstruction_weight", weight, "above 0")

    @property
    def conv(self) -> CausalConfig:
        """The networks' sizes."""
        return CausalConfig(
            self.width, self.multipliers, self.blocks, self.time_levels, self.groups, self.dtype
        )

    @property
    def spec(self) -> TokenSpec:
        """A grid (T, H, W) of codes."""
        grid = tuple(-(-n // s) for n, s in zip(self.image_shape, self.conv.stride, strict=False))
        return TokenSpec(grid, fsq.vocabulary(self.levels), len(self.levels))

    @functools.cached_property
    def encoder(self) -> CausalEncoder:
        """Videos -> latents."""
        return CausalEncoder(self.conv, len(self.levels))

    @functools.cached_property
    def decoder(self) -> CausalDecoder:
        """Codes -> videos."""
        return CausalDecoder(self.conv, self.image_shape[-1])

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder}."""
        video = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.spec.grid, len(self.levels)))
        return {
            "encoder": self.encoder.init(stream(rng, "encoder"), video)["params"],
            "decoder": self.decoder.init(stream(rng, "decoder"), latent)["params"],
        }

    def _quantized(self, params, x):
        """Codes [B, t, h, w, c] and ids [B, t, h, w]; the networks see pixels in [0, 1]."""
        z = self.encoder.apply({"params": params["encoder"]}, 0.5 * (x + 1.0))
        return fsq.quantize(z, self.levels, printed=True)[:2]

    def encode(
        self, params: dict, x: Float[Array, "B T H W C"], rng: Array | None = None
    ) -> Tokens:
        """Ids [B, N] and their codes [B, N, c], frame by frame and row by row; rng is not used."""
        del rng
        ids = self._quantized(params, x)[1].reshape(len(x), -1)
        return Tokens(ids=ids, values=fsq.ids_to_values(ids, self.levels))

    def decode(
        self, params: dict, tokens: Tokens, rng: Array | None = None
    ) -> Float[Array, "B T H W C"]:
        """Videos of ids where there are any, else of values; rng is not used."""
        del rng
        z = tokens.values
        if tokens.ids is not None:
            z = fsq.ids_to_values(tokens.ids, self.levels)
        return self._decode(params, z.reshape(-1, *self.spec.grid, len(self.levels)))

    def _decode(self, params, z):
        return 2.0 * self.decoder.apply({"params": params["decoder"]}, z) - 1.0

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """Weighted reconstruction error per example; batch["image"] is the videos."""
        del rng
        x = batch["image"]
        codes, ids = self._quantized(params, x)
        error = self._decode(params, codes) - x
        error = jnp.abs(error) if self.reconstruction == "l1" else jnp.square(error)
        each = error.mean((1, 2, 3, 4))
        metrics = {
            self.reconstruction: each.mean(),
            "perplexity": vq.perplexity(ids, self.spec.vocab),
        }
        return self.reconstruction_weight * each, metrics


def make(section, image_shape, dtype="float32", latent=None, features=None) -> Magvit2:
    """A tokenizer from its config section.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, pictures instead
        of videos, or a latent or feature provider, which it does not take.
    """
    refuse_providers("magvit2", latent, features)
    given = dict(image_shape=tuple(image_shape), dtype=dtype)
    return build(Magvit2, section, "tokenizer", named=True, **given)
