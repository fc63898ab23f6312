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
from nexttok.nn.flextok import Projector
from nexttok.nn.networks.frozen import FrozenSizes
from nexttok.rng import stream
from nexttok.tokenizers import criteria, objective
from nexttok.tokens import Tokens, TokenSpec

PARTS = ("encoder", "decoder", "bottleneck", "losses")


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Static configuration; parameters {encoder, decoder, ...} are passed to every method.

    Parameters "quantizer" exist where the bottleneck has any, "discriminator" and "lecam" where the
    losses do; those of `checkpoints` are frozen.

    Attributes:
      image_shape: (H, W, C) of pictures or (T, H, W, C) of videos, values in [-1, 1].
      encoder_sizes, decoder_sizes: see nn/networks/__init__.py.
      bottleneck: see bottlenecks/contract.py.
      losses: see objective.py.
      features: frozen feature provider of the alignment loss or of the encoder `frozen`, or None;
        its parameters are `params["features"]`.
      where: config section that errors name.
    """

    image_shape: tuple[int, ...]
    encoder_sizes: Any
    decoder_sizes: Any
    bottleneck: Any
    losses: objective.Objective
    features: Any = None
    where: str = "tokenizer"

    def __post_init__(self):
        if self.reads_features:
            have, need = self.features.channels, self.bottleneck.inputs
            check(have == need, f"{self.where}.bottleneck.channels", need, f"{have}, the features'")
        other = self.decoder_sizes.grid(self.image_shape)
        allowed = f"a network of {self.grid} latents, as config.{self.where}.encoder's"
        check(other == self.grid, f"{self.where}.decoder", f"of {other} latents", allowed)
        self.bottleneck.spec(self.grid)
        self._check_losses()

    def _check_losses(self):
        asked, where = self.losses, f"{self.where}.losses"
        aligned, given = asked.align_weight > 0, self.features is not None
        fits = given if aligned else self.reads_features or not given
        allowed = "above 0 with a provider in config.features, else 0"
        check(fits, f"{where}.align_weight", asked.align_weight, allowed)
        blocks = getattr(self.decoder_sizes, "blocks_to_align", 0)
        fits = 0 <= asked.align_layer < blocks if aligned else asked.align_layer == 0
        allowed = f"a block of the decoder, below {blocks}, or 0 without align_weight"
        check(fits, f"{where}.align_layer", asked.align_layer, allowed)
        halves = all(hasattr(s, "cells") for s in (self.encoder_sizes, self.decoder_sizes))
        allowed = "0, as a network is not in two halves (qformer's are)"
        check(halves or not asked.warm_start, f"{where}.warm_start", asked.warm_start, allowed)

    @property
    def reads_features(self) -> bool:
        """Whether encoding needs the feature provider."""
        return isinstance(self.encoder_sizes, FrozenSizes)

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """Latents per axis."""
        return self.encoder_sizes.grid(self.image_shape)

    @property
    def spec(self) -> TokenSpec:
        """The tokens of a picture."""
        return self.bottleneck.spec(self.grid)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Files of frozen parameters that the losses read, by the parameters' name."""
        return self.losses.checkpoints

    @functools.cached_property
    def encoder(self):
        """Pictures -> latents."""
        return self.encoder_sizes.encoder(self.image_shape, self.bottleneck.inputs)

    @functools.cached_property
    def decoder(self):
        """What the bottleneck gives -> pictures."""
        return self.decoder_sizes.decoder(self.image_shape)

    @functools.cached_property
    def projector(self) -> Projector:
        """The decoder's features -> those of the provider."""
        return Projector(self.features.channels, self.losses.dtype, normed=False)

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder} and, where used, {quantizer, discriminator, lecam,
        projector}."""
        image = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.grid, self.bottleneck.channels))
        params = {
            "decoder": self.decoder.init(stream(rng, "decoder"), latent)["params"],
            **self.losses.init(rng),
        }
        if not self.reads_features:
            params["encoder"] = self.encoder.init(stream(rng, "encoder"), image)["params"]
        if self.losses.align_weight:
            width = jnp.zeros((1, 1, self.decoder_sizes.width))
            params["projector"] = self.projector.init(stream(rng, "projector"), width)["params"]
        quantizer = self.bottleneck.init(stream(rng, "quantizer"))
        return params | ({"quantizer": quantizer} if quantizer else {})

    def latents(self, params: dict, x: Float[Array, "B *s C"]) -> Float[Array, "B *g c"]:
        """What the bottleneck takes."""
        if self.reads_features:
            return jax.lax.stop_gradient(self.features.apply(params["features"], x))
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
          params: as of `init`, and frozen those of `checkpoints`, and "features" where there is a
            provider.
          batch: "image" float [B, ..., C] and, with an adversarial loss or a warm start, "step"
            int32 [].
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
            if not self.losses.align_weight:
                return self.render({"decoder": decoder}, coded.values), None
            variables, tap = {"params": decoder}, self.losses.align_layer
            return self.decoder.apply(variables, coded.values, tap=tap)

        kernel = functools.reduce(lambda tree, name: tree[name], last, params["decoder"])
        _, tapped, judged, metrics = self.losses(
            params, x, decode, kernel, batch.get("step"), stream(rng, "judge")
        )
        metrics = metrics | coded.metrics
        if self.losses.align_weight:
            align = self._alignment(params, x, tapped)
            judged, metrics["align"] = judged + self.losses.align_weight * align, align.mean()
        if self.losses.warm_start:
            warm = jnp.where(batch["step"] < self.losses.warm_start, 1.0, 0.0)
            judged = judged + warm * self._direct(params, x, coded.values)
        if coded.moves:
            moves = {"quantizer": jax.lax.stop_gradient(coded.moves)}
            metrics["moves"] = metrics.get("moves", {}) | moves
        return judged + coded.loss, metrics

    def _alignment(self, params, x, tapped):
        """Of the decoder's features with the provider's."""
        project = functools.partial(self.projector.apply, {"params": params["projector"]})
        features = tapped.reshape(len(x), -1, tapped.shape[-1])
        return criteria.alignment(
            self.features, params["features"], x, features, tapped.shape[1:3], project
        )

    def _direct(self, params, x, z):
        """See Objective.warm_start."""
        encoder, decoder = ({"params": params[name]} for name in ("encoder", "decoder"))
        theirs = self.encoder.apply(encoder, x, method="map")
        ours, _ = self.decoder.apply(decoder, z, method="map")
        error = jnp.square(ours - jax.lax.stop_gradient(theirs)).reshape(len(x), -1).mean(-1)
        drawn = self.decoder.apply(decoder, theirs, method="draw")
        return error + self.losses.fidelity(params, x, drawn)


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
        latent, which it does not take.
    """
    check(latent is None, "latent.name", "", f"'' under {where}.name = 'autoencoder'")
    check_keys(section, (*PARTS, "name"), where)

    def network(name):
        here = f"{where}.{name}"
        return part(networks, section[name], here).make(section[name], dtype, here)

    here = f"{where}.bottleneck"
    bottleneck = part(bottlenecks, section.bottleneck, here).make(section.bottleneck, here)
    losses = objective.from_section(section.losses, image_shape, dtype, f"{where}.losses")
    encoder = network("encoder")
    encoder = encoder.of(features) if isinstance(encoder, FrozenSizes) else encoder
    return Autoencoder(
        tuple(image_shape), encoder, network("decoder"), bottleneck, losses, features, where
    )
