"""Pictures as a pyramid of token maps, coarse to fine (VAR: Tian et al., "Visual Autoregressive
Modeling: Scalable Image Generation via Next-Scale Prediction", 2024).

A convolutional encoder's latent is a sum of upsampled maps of codes (bottlenecks/multiscale.py).
Every prefix of whole maps decodes to a coarser picture, and what a prefix sums to is what a
generator reads when it predicts the next map.
"""

import dataclasses

from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import multiscale, vq
from nexttok.config import build
from nexttok.rng import stream
from nexttok.tokenizers.vqgan import VQGAN, refuse_providers
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiScaleVQ(VQGAN):
    """A VQGAN, its losses included, with another bottleneck; see there for the other fields.

    Parameters are {encoder, decoder, quantizer: {embedding, phi: {conv0, ...}}[, discriminator]}.

    Attributes:
      normalize: codes are chosen by cosine; their values keep their length.
      sides: of the maps, growing up to the latent's side; pictures are square.
      phis: convolutions that the scales share; 4 of ten scales in the release.
      phi_ratio: their share in phi.
    """

    sides: tuple[int, ...]
    phis: int
    phi_ratio: float

    def __post_init__(self):
        super().__post_init__()
        side = self.image_shape[0] // self.conv.stride
        multiscale.validate(self.sides, side, self.phis, self.phi_ratio, self.config_path)

    @property
    def spec(self) -> TokenSpec:
        """All maps in one row; a prefix decodes as far as its last whole map."""
        length = multiscale.ends(self.sides)[-1]
        return TokenSpec((length,), self.codebook_size, self.latent_channels, True, self.sides)

    def init(self, rng: Array) -> dict:
        """Parameters; see the class."""
        params = self._plain.init(rng)
        key = stream(rng, "phi")
        phis = multiscale.init_phis(key, self.phis, self.latent_channels)
        return params | {"quantizer": params["quantizer"] | {"phi": phis}}

    @property
    def _plain(self) -> VQGAN:
        fields = [f.name for f in dataclasses.fields(VQGAN)]
        return VQGAN(**{name: getattr(self, name) for name in fields})

    def _pyramid(self, params):
        """What every function of bottlenecks/multiscale.py takes after its own arguments."""
        quantizer = params["quantizer"]
        return quantizer["embedding"], quantizer["phi"], self.sides

    def _latents(self, params, x, rng):
        del rng
        z = self.encoder.apply({"params": params["encoder"]}, x)
        values, ids, losses = multiscale.quantize(
            z, *self._pyramid(params), self.beta, self.phi_ratio, self.normalize
        )
        metrics = losses | {"perplexity": vq.perplexity(ids, self.codebook_size)}
        return values, ids, sum(losses.values()), metrics

    def _decode(self, params, z):
        return self.decoder.apply({"params": params}, z)

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Ids [B, N], coarse to fine and row-major inside a map, and as values [B, N, C] what the
        coarser maps of each token decode to; deterministic, rng is not used."""
        _, ids, _, _ = self._latents(params, x, rng)
        values = multiscale.ar_inputs(ids, *self._pyramid(params), self.phi_ratio)
        return Tokens(ids=ids, values=values)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array | None = None,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Pictures of ids [B, M <= N]; deterministic, rng is not used.

        Args:
          params: see the class.
          tokens: ids; their values are not read. Maps that are not complete add nothing.
          rng: not used.
          keep: tokens of each example that count, None for all; only whole maps among them do.
        """
        del rng
        z = multiscale.ids_to_values(tokens.ids, *self._pyramid(params), self.phi_ratio, keep)
        return self._decode(params["decoder"], z)

    def start(self, batch: int) -> tuple[Float[Array, "B h w C"], Float[Array, "B n C"]]:
        """(f_hat, inputs of map 0) before any map is known: zeros."""
        return multiscale.start(batch, self.latent_channels, self.sides)

    def advance(
        self, params: dict, f_hat: Float[Array, "B h w C"], ids: Int[Array, "B n"], k: int
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B m C"]]:
        """Adds the ids of map k: (f_hat, inputs of map k + 1), the latter empty after the last."""
        return multiscale.advance(f_hat, ids, k, *self._pyramid(params), self.phi_ratio)


def make(section, image_shape, dtype="float32", latent=None, features=None) -> MultiScaleVQ:
    """A tokenizer from its config section: the keys of the class and those of VQGAN, but for its
    network, KL and entropy settings.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, or a latent or
        feature provider, which it does not take.
    """
    refuse_providers("multiscale", latent, features)
    given = dict(
        image_shape=tuple(image_shape), dtype=dtype, config_path="tokenizer", network="conv",
        bottleneck="vq", entropy_weight=0.0, scaling_factor=1.0, kl_weight=0.0,
        sample_posterior=False,
    )  # fmt: skip
    return build(MultiScaleVQ, section, "tokenizer", named=True, **given)
