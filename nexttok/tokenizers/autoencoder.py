"""Any encoder, any bottleneck, any decoder, any losses: the tokenizer that most papers are.

VQ-VAE (van den Oord et al., 2017), VQGAN (Esser et al., 2021), the KL autoencoder of latent
diffusion (Rombach et al., 2022), the discrete VAE of DALL-E (Ramesh et al., 2021), the tokenizers
of LlamaGen, VAR, MaskGIT, GIVT, VideoGPT and MAGVIT-v2 differ in these four answers only. Networks
are files of nn/networks/, bottlenecks files of bottlenecks/, losses are those of objective.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok import bottlenecks
from nexttok.config import check, check_keys, part
from nexttok.nn import networks
from nexttok.rng import stream
from nexttok.tokenizers import objective
from nexttok.tokens import Tokens, TokenSpec

PARTS = ("encoder", "decoder", "bottleneck", "losses")


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Static configuration; parameters {encoder, decoder, ...} are passed to every method.

    Parameters "quantizer" exist where the bottleneck has any, "discriminator" and "lecam" where the
    losses do; those of LPIPS ("perceptual") are frozen and come from `perceptual_checkpoint`.

    Attributes:
      image_shape: (H, W, C) of pictures or (T, H, W, C) of videos, values in [-1, 1].
      encoder_sizes, decoder_sizes: see nn/networks/__init__.py.
      bottleneck: see bottlenecks/contract.py.
      losses: see objective.py.
      where: config section that errors name.
    """

    image_shape: tuple[int, ...]
    encoder_sizes: Any
    decoder_sizes: Any
    bottleneck: Any
    losses: objective.Objective
    where: str = "tokenizer"

    def __post_init__(self):
        other = self.decoder_sizes.grid(self.image_shape)
        allowed = f"a network of {self.grid} latents, as config.{self.where}.encoder's"
        check(other == self.grid, f"{self.where}.decoder", f"of {other} latents", allowed)
        self.bottleneck.spec(self.grid)

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """Latents per axis."""
        return self.encoder_sizes.grid(self.image_shape)

    @property
    def spec(self) -> TokenSpec:
        """The tokens of a picture."""
        return self.bottleneck.spec(self.grid)

    @property
    def perceptual_checkpoint(self) -> str:
        """Files of the LPIPS weights that the loss reads; "" for none."""
        return self.losses.perceptual_checkpoint

    @functools.cached_property
    def encoder(self):
        """Pictures -> latents."""
        return self.encoder_sizes.encoder(self.image_shape, self.bottleneck.inputs)

    @functools.cached_property
    def decoder(self):
        """What the bottleneck gives -> pictures."""
        return self.decoder_sizes.decoder(self.image_shape)

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder} and, where used, {quantizer, discriminator, lecam}."""
        image = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.grid, self.bottleneck.channels))
        params = {
            "encoder": self.encoder.init(stream(rng, "encoder"), image)["params"],
            "decoder": self.decoder.init(stream(rng, "decoder"), latent)["params"],
            **self.losses.init(rng),
        }
        quantizer = self.bottleneck.init(stream(rng, "quantizer"))
        return params | ({"quantizer": quantizer} if quantizer else {})

    def latents(self, params: dict, x: Float[Array, "B *s C"]) -> Float[Array, "B *g c"]:
        """What the bottleneck takes."""
        return self.encoder.apply({"params": params["encoder"]}, x)

    def encode(self, params: dict, x: Float[Array, "B *s C"], rng: Array | None = None) -> Tokens:
        """Tokens in row-major order; see the bottleneck's `encode`."""
        return self.bottleneck.encode(params.get("quantizer", {}), self.latents(params, x), rng)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array | None = None,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B *s C"]:
        """Pictures of ids where there are any, else of values; deterministic, rng is not used.

        `keep`, tokens of each example that count, is for nested tokens; None for all.
        """
        del rng
        z = self.bottleneck.decode(params.get("quantizer", {}), tokens, self.grid, keep)
        return self.render(params, z)

    def render(self, params: dict, z: Float[Array, "B *g c"]) -> Float[Array, "B *s C"]:
        """Pictures of what the bottleneck gives."""
        return self.decoder.apply({"params": params["decoder"]}, z)

    def start(self, batch: int) -> tuple[Array, Array]:
        """See the bottleneck, where tokens build on each other."""
        return self.bottleneck.start(batch)

    def advance(self, params: dict, coarse: Array, ids: Array, k: int) -> tuple[Array, Array]:
        """See the bottleneck, where tokens build on each other."""
        return self.bottleneck.advance(params["quantizer"], coarse, ids, k)

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """The training loss of every network, per example.

        Args:
          params: as of `init`, and frozen "perceptual" where its checkpoint is given.
          batch: "image" float [B, ..., C] and, with an adversarial loss, "step" int32 [].
          rng: key of the bottleneck's noise.

        Returns:
          The objective's and the bottleneck's losses; metrics, and as "moves" the changes of
          parameters that no gradient gives (see train.Task).
        """
        x = batch["image"]
        coded = self.bottleneck.quantize(
            params.get("quantizer", {}), self.latents(params, x), stream(rng, "posterior")
        )
        last = self.decoder_sizes.last

        def decode(kernel):
            decoder = replaced(params["decoder"], last, kernel)
            return self.render({"decoder": decoder}, coded.values)

        kernel = functools.reduce(lambda tree, name: tree[name], last, params["decoder"])
        _, judged, metrics = self.losses(params, x, decode, kernel, batch.get("step"))
        metrics = metrics | coded.metrics
        if coded.moves:
            moves = {"quantizer": jax.lax.stop_gradient(coded.moves)}
            metrics["moves"] = metrics.get("moves", {}) | moves
        return judged + coded.loss, metrics


def replaced(tree: dict, path: tuple[str, ...], leaf: Array) -> dict:
    """The tree with another leaf at a path."""
    name, *rest = path
    return tree | {name: replaced(tree[name], tuple(rest), leaf) if rest else leaf}


def make(
    section, image_shape, dtype="float32", latent=None, features=None, where="tokenizer"
) -> Autoencoder:
    """A tokenizer from its config section: {encoder, decoder, bottleneck, losses}.

    Raises:
      ConfigError: unknown or missing key, wrong type, parts that do not fit each other, or a
        latent or feature provider, which it does not take.
    """
    named = f"'' under {where}.name = 'autoencoder'"
    check(latent is None, "latent.name", "", named)
    check(features is None, "features.name", "", named)
    check_keys(section, (*PARTS, "name"), where)

    def network(name):
        here = f"{where}.{name}"
        return part(networks, section[name], here).make(section[name], dtype, here)

    here = f"{where}.bottleneck"
    bottleneck = part(bottlenecks, section.bottleneck, here).make(section.bottleneck, here)
    losses = objective.from_section(section.losses, image_shape, dtype, f"{where}.losses")
    return Autoencoder(
        tuple(image_shape), network("encoder"), network("decoder"), bottleneck, losses, where
    )
