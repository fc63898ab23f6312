"""Short videos as a grid of codes in time and space: a 3D convolutional VQ-VAE (Yan et al.,
"VideoGPT: Video Generation using VQ-VAE and Transformers", 2021).

The paper trains its codebook by moving averages with restarts; here the codebook is a parameter,
and unit-length codes of few channels keep it in use.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.bottlenecks import vq
from nexttok.config import build, check
from nexttok.nn.video import VideoConfig, VideoDecoder, VideoEncoder
from nexttok.rng import stream
from nexttok.tokenizers.vqgan import refuse_providers
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class VideoVQ:
    """Static configuration; parameters {encoder, decoder, quantizer} are passed to every method.

    Attributes:
      image_shape: (T, H, W, C) of the videos, values in [-1, 1].
      dtype: compute dtype.
      width, stride, blocks, heads, groups: see nn/video.py.
      latent_channels: width of a code.
      codebook_size: number of codes.
      normalize: codes and latents have unit length.
      beta: weight of the commitment loss.
      entropy_weight: of the codebook's entropy loss (bottlenecks/vq.py).
      reconstruction: l1 | l2, with reconstruction_weight (the paper's 1 / 0.06 with pixels in
        [-0.5, 0.5] is 4.2 here).
    """

    image_shape: tuple[int, ...]
    dtype: str
    width: int
    stride: tuple[int, ...]
    blocks: int
    heads: int
    groups: int
    latent_channels: int
    codebook_size: int
    normalize: bool
    beta: float
    entropy_weight: float
    reconstruction: str
    reconstruction_weight: float

    def __post_init__(self):
        moving = len(self.image_shape) == 4
        check(moving, "data.frames", 0, "at least 1: this tokenizer takes videos")
        frames, side = self.image_shape[:2]
        time, space = self.conv.stride[:2]
        check(frames % time == 0, "data.frames", frames, f"a multiple of the stride {time}")
        check(side % space == 0, "data.resolution", side, f"a multiple of the stride {space}")
        self._check("latent_channels", self.latent_channels >= 1, "at least 1")
        self._check("codebook_size", self.codebook_size >= 2, "at least 2")
        self._check("reconstruction", self.reconstruction in ("l1", "l2"), "l1 | l2")
        for name in ("beta", "entropy_weight", "reconstruction_weight"):
            self._check(name, getattr(self, name) >= 0, "at least 0")

    def _check(self, name, condition, allowed):
        check(condition, f"tokenizer.{name}", getattr(self, name), allowed)

    @property
    def conv(self) -> VideoConfig:
        """The networks' sizes."""
        return VideoConfig(
            self.width, self.stride, self.blocks, self.heads, self.groups, self.dtype
        )

    @property
    def spec(self) -> TokenSpec:
        """A grid (T, H, W) of codes."""
        sizes = zip(self.image_shape, self.stride, strict=False)
        grid = tuple(n // s for n, s in sizes)
        return TokenSpec(grid, self.codebook_size, self.latent_channels)

    @functools.cached_property
    def encoder(self) -> VideoEncoder:
        """Videos -> latents."""
        return VideoEncoder(self.conv, self.latent_channels)

    @functools.cached_property
    def decoder(self) -> VideoDecoder:
        """Latents -> videos."""
        return VideoDecoder(self.conv, self.image_shape[-1])

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder, quantizer}."""
        video = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.spec.grid, self.latent_channels))
        key = stream(rng, "quantizer")
        rows = vq.init_codebook(key, self.codebook_size, self.latent_channels)
        return {
            "encoder": self.encoder.init(stream(rng, "encoder"), video)["params"],
            "decoder": self.decoder.init(stream(rng, "decoder"), latent)["params"],
            "quantizer": {"embedding": rows},
        }

    def _latents(self, params, x):
        """Latents and their codes [B, t, h, w, c], ids [B, t, h, w], losses."""
        z = self.encoder.apply({"params": params["encoder"]}, x)
        rows = params["quantizer"]["embedding"]
        return z, *vq.quantize(z, rows, self.normalize, self.beta)

    def encode(
        self, params: dict, x: Float[Array, "B T H W C"], rng: Array | None = None
    ) -> Tokens:
        """Ids [B, N] and their codes [B, N, c], frame by frame and row by row; rng is not used."""
        del rng
        ids = self._latents(params, x)[2].reshape(len(x), -1)
        rows = params["quantizer"]["embedding"]
        return Tokens(ids=ids, values=vq.ids_to_values(ids, rows, self.normalize))

    def decode(
        self, params: dict, tokens: Tokens, rng: Array | None = None
    ) -> Float[Array, "B T H W C"]:
        """Videos of ids where there are any, else of values; rng is not used."""
        del rng
        z = tokens.values
        if tokens.ids is not None:
            z = vq.ids_to_values(tokens.ids, params["quantizer"]["embedding"], self.normalize)
        return self._decode(params, z)

    def _decode(self, params, z):
        z = z.reshape(-1, *self.spec.grid, self.latent_channels)
        return self.decoder.apply({"params": params["decoder"]}, z)

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """Weighted reconstruction and codebook losses per example; batch["image"] is the videos."""
        del rng
        x = batch["image"]
        z, values, ids, losses = self._latents(params, x)
        if self.entropy_weight:
            entropy = vq.entropy(z, params["quantizer"]["embedding"], self.normalize)
            losses["entropy"] = self.entropy_weight * entropy
        recon = self._decode(params, values)
        error = jnp.abs(recon - x) if self.reconstruction == "l1" else jnp.square(recon - x)
        total = self.reconstruction_weight * error.mean((1, 2, 3, 4)) + sum(losses.values())
        metrics = {
            "mse": jnp.square(recon - x).mean(),
            "perplexity": vq.perplexity(ids, self.codebook_size),
        }
        return total, losses | metrics


def make(section, image_shape, dtype="float32", latent=None, features=None) -> VideoVQ:
    """A tokenizer from its config section.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, pictures instead
        of videos, or a latent or feature provider, which it does not take.
    """
    refuse_providers("video", latent, features)
    given = dict(image_shape=tuple(image_shape), dtype=dtype)
    return build(VideoVQ, section, "tokenizer", named=True, **given)
