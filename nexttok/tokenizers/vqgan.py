"""The convolutional autoencoder with a codebook or a KL bottleneck, and its adversarial training.

VQGAN (Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021), the KL
autoencoder of latent diffusion (Rombach et al., 2022), LlamaGen's tokenizer (Sun et al., 2024),
whose small unit-length codes keep nearly all of a large codebook in use, and those of MaskGIT
(Chang et al., 2022) and GIVT (Tschannen et al., 2023), whose network has no attention.

The discriminator trains in the same step as the networks: the loss is one scalar per example in
which the generator's term sees fixed discriminator parameters and the discriminator's term sees
fixed pictures. Gradients are thus those of the two alternating steps; a clip by global norm acts
on both together.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.bottlenecks import kl, vq
from nexttok.config import build, check
from nexttok.nn import pooled_conv
from nexttok.nn.conv import ConvConfig, Decoder, Encoder
from nexttok.nn.discriminator import NORMS, PatchGAN
from nexttok.nn.lpips import LPIPS
from nexttok.rng import stream
from nexttok.tokenizers import criteria
from nexttok.tokens import Tokens, TokenSpec

NETWORKS = {
    "conv": (Encoder, Decoder),
    "pooled_conv": (pooled_conv.Encoder, pooled_conv.Decoder),
}
# Keys that only the first network has, and what they are under the other.
UNPOOLED = {"attention": (), "decoder_attention": (), "z_channels": 0, "quant_kernel": 1}


@dataclasses.dataclass(frozen=True)
class VQGAN:
    """Static configuration; parameters {encoder, decoder, ...} are passed to every method.

    Parameters "quantizer" exist with a codebook, "discriminator" with an adversarial loss; those
    of LPIPS ("perceptual") are frozen and come from `perceptual_checkpoint`. Losses are means over
    elements: a KL weight w of a paper that sums is w x latent elements / picture elements here.

    Attributes:
      image_shape: (H, W, C), values in [-1, 1].
      dtype: compute dtype.
      network: conv | pooled_conv, a file of nn/.
      width, multipliers, blocks, attention, groups, z_channels, quant_kernel: see nn/conv.py.
      decoder_attention: levels of the decoder with attention.
      bottleneck: vq | kl.
      latent_channels: width of a latent or of a code.
      codebook_size: number of codes; 0 with kl.
      normalize: codes and latents have unit length.
      beta: weight of the commitment loss.
      entropy_weight: of the codebook's entropy loss.
      scaling_factor: kl latents are given out multiplied by it.
      kl_weight: of the KL term (nats, mean over latent elements).
      sample_posterior: encode with noise when a key is given; False is a plain autoencoder.
      reconstruction: l1 | l2, with reconstruction_weight.
      perceptual_weight: of LPIPS, or without its weights of criteria.pyramid.
      perceptual_checkpoint: files of LPIPS weights (interop/lpips.py); "" for none.
      adversarial_weight: of both hinge losses; 0 for no discriminator.
      adaptive_weight: scale the generator's by the ratio of gradients (criteria.adaptive_weight).
      discriminator_start: training step from which they count.
      discriminator_width, discriminator_layers, discriminator_norm: see nn/discriminator.py.
      lecam_weight: of the discriminator's regularizer (criteria.lecam).
      config_path: config section that errors name.
    """

    image_shape: tuple[int, ...]
    dtype: str
    network: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    decoder_attention: tuple[int, ...]
    groups: int
    z_channels: int
    quant_kernel: int
    bottleneck: str
    latent_channels: int
    codebook_size: int
    normalize: bool
    beta: float
    entropy_weight: float
    scaling_factor: float
    kl_weight: float
    sample_posterior: bool
    reconstruction: str
    reconstruction_weight: float
    perceptual_weight: float
    perceptual_checkpoint: str
    adversarial_weight: float
    adaptive_weight: bool
    discriminator_start: int
    discriminator_width: int
    discriminator_layers: int
    discriminator_norm: str
    lecam_weight: float
    config_path: str = "tokenizer"

    def __post_init__(self):
        still = len(self.image_shape) == 3
        check(still, "data.frames", self.image_shape[0], "0: this tokenizer takes pictures")
        stride = self.conv.stride
        for side in self.image_shape[:2]:
            allowed = f"a multiple of {stride}, the stride of config.{self.config_path}"
            check(side % stride == 0, "data.resolution", side, allowed)
        self._check("network", self.network in NETWORKS, " | ".join(NETWORKS))
        for name, none in UNPOOLED.items() if self.network == "pooled_conv" else ():
            fits = getattr(self, name) == none
            self._check(name, fits, f"{none!r} under network = 'pooled_conv'")
        self._check("bottleneck", self.bottleneck in ("vq", "kl"), "vq | kl")
        self._check("latent_channels", self.latent_channels >= 1, "at least 1")
        coded = self.bottleneck == "vq"
        self._check("codebook_size", (self.codebook_size >= 2) == coded, "2 or more codes under "
                    "bottleneck = 'vq', 0 under 'kl'")  # fmt: skip
        self._check("scaling_factor", self.scaling_factor > 0, "above 0")
        self._check("reconstruction", self.reconstruction in ("l1", "l2"), "l1 | l2")
        for name in ("beta", "entropy_weight", "kl_weight", "reconstruction_weight",
                     "perceptual_weight", "adversarial_weight", "lecam_weight"):  # fmt: skip
            self._check(name, getattr(self, name) >= 0, "at least 0")
        if self.adversarial_weight:
            self._check_discriminator()
        if self.perceptual_checkpoint:
            fits = self.perceptual_weight > 0 and self.image_shape[-1] in (1, 3)
            fits = fits and min(self.image_shape[:2]) >= 16
            self._check("perceptual_checkpoint", fits, "'' unless perceptual_weight is above 0 and "
                        "pictures have 1 or 3 channels and sides of at least 16")  # fmt: skip

    def _check(self, name, condition, allowed):
        check(condition, f"{self.config_path}.{name}", getattr(self, name), allowed)

    def _check_discriminator(self):
        self._check("discriminator_norm", self.discriminator_norm in NORMS, " | ".join(NORMS))
        for name in ("discriminator_width", "discriminator_layers"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        fits = min(map(self.discriminator.logits_side, self.image_shape[:2])) >= 1
        self._check("discriminator_layers", fits, "fewer, for pictures this small")

    @property
    def conv(self) -> ConvConfig:
        """The encoder's sizes."""
        return ConvConfig(
            self.width, self.multipliers, self.blocks, self.attention, self.groups, self.dtype,
            self.z_channels, self.quant_kernel, self.config_path,
        )  # fmt: skip

    @property
    def decoder_conv(self) -> ConvConfig:
        """The decoder's sizes."""
        return dataclasses.replace(self.conv, attention=self.decoder_attention)

    @property
    def spec(self) -> TokenSpec:
        """A grid of codes, or of continuous tokens."""
        grid = tuple(side // self.conv.stride for side in self.image_shape[:2])
        return TokenSpec(grid, self.codebook_size, self.latent_channels)

    @functools.cached_property
    def encoder(self) -> Encoder | pooled_conv.Encoder:
        """Pictures -> latents, or the moments of their posterior."""
        moments = 1 if self.bottleneck == "vq" else 2
        return NETWORKS[self.network][0](self.conv, moments * self.latent_channels)

    @functools.cached_property
    def decoder(self) -> Decoder | pooled_conv.Decoder:
        """Latents -> pictures."""
        return NETWORKS[self.network][1](self.decoder_conv, self.image_shape[-1])

    @functools.cached_property
    def discriminator(self) -> PatchGAN:
        """Pictures -> logits of patches."""
        return PatchGAN(
            self.discriminator_width, self.discriminator_layers, self.discriminator_norm, self.dtype
        )

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, decoder} and, where they are used, {quantizer, discriminator}."""
        image = jnp.zeros((1, *self.image_shape))
        latent = jnp.zeros((1, *self.spec.grid, self.latent_channels))
        modules = {"encoder": (self.encoder, image), "decoder": (self.decoder, latent)}
        if self.adversarial_weight:
            modules["discriminator"] = (self.discriminator, image)
        params = {n: m.init(stream(rng, n), x)["params"] for n, (m, x) in modules.items()}
        if self.bottleneck == "vq":
            key = stream(rng, "quantizer")
            rows = vq.init_codebook(key, self.codebook_size, self.latent_channels)
            params["quantizer"] = {"embedding": rows}
        return params

    def _latents(self, params, x, rng):
        """Latents [B, h, w, c] as the decoder takes them, ids [B, h, w] or None, weighted losses,
        metrics."""
        z = self.encoder.apply({"params": params["encoder"]}, x)
        if self.bottleneck == "kl":
            z, ids, aux = kl.quantize(z, rng if self.sample_posterior else None)
            return z, ids, self.kl_weight * aux["kl"], {"kl": aux["kl"].mean()}
        rows = params["quantizer"]["embedding"]
        values, ids, losses = vq.quantize(z, rows, self.normalize, self.beta)
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * vq.entropy(z, rows, self.normalize)
        metrics = losses | {"perplexity": vq.perplexity(ids, self.codebook_size)}
        return values, ids, sum(losses.values()), metrics

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Tokens in row-major order.

        With vq: ids [B, h*w] and the codes [B, h*w, c]. With kl: scaled latents [B, h*w, c], a
        posterior sample when rng is given, else the mode.
        """
        z, ids, _, _ = self._latents(params, x, rng)
        z = z.reshape(len(x), -1, z.shape[-1])
        if ids is None:
            return Tokens(values=z * self.scaling_factor)
        ids = ids.reshape(len(x), -1)
        rows = params["quantizer"]["embedding"]
        return Tokens(ids=ids, values=vq.ids_to_values(ids, rows, self.normalize))

    def decode(
        self, params: dict, tokens: Tokens, rng: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Pictures of ids where there are any, else of values; deterministic, rng is not used."""
        del rng
        z = tokens.values
        if self.bottleneck == "kl":
            z = z / self.scaling_factor
        elif tokens.ids is not None:
            rows = params["quantizer"]["embedding"]
            z = vq.ids_to_values(tokens.ids, rows, self.normalize)
        return self._decode(params["decoder"], z)

    def _decode(self, params, z):
        z = z.reshape(-1, *self.spec.grid, self.latent_channels)
        return self.decoder.apply({"params": params}, z)

    def _fidelity(self, params, x, recon):
        """Weighted reconstruction and perceptual loss [B]."""
        error = jnp.abs(recon - x) if self.reconstruction == "l1" else jnp.square(recon - x)
        total = self.reconstruction_weight * error.mean((1, 2, 3))
        if not self.perceptual_weight:
            return total
        if self.perceptual_checkpoint:
            frozen = {"params": jax.lax.stop_gradient(params["perceptual"])}
            distance = LPIPS(self.dtype).apply(frozen, x, recon)
        else:
            distance = criteria.pyramid(x, recon)
        return total + self.perceptual_weight * distance

    def _adversarial(self, params, x, z, fidelity, step):
        """Pictures of z, the gated losses of generator and discriminator [B], and metrics."""

        def logits(params, pictures):
            return self.discriminator.apply({"params": params}, pictures)

        def fool(recon):
            frozen = jax.lax.stop_gradient(params["discriminator"])
            return criteria.hinge_generator(logits(frozen, recon))

        last = params["decoder"]["conv_out"]

        def decode(kernel):
            return self._decode(params["decoder"] | {"conv_out": last | {"kernel": kernel}}, z)

        recon, balance = decode(last["kernel"]), jnp.ones(())
        if self.adaptive_weight:
            recon, balance = criteria.adaptive_weight(
                decode, last["kernel"], lambda r: fidelity(r).mean(), lambda r: fool(r).mean()
            )
        real = logits(params["discriminator"], x)
        fake = logits(params["discriminator"], jax.lax.stop_gradient(recon))
        generator, judge = fool(recon), criteria.hinge_discriminator(real, fake)
        if self.lecam_weight:
            judge = judge + self.lecam_weight * criteria.lecam(real, fake)
        gate = jnp.where(step >= self.discriminator_start, self.adversarial_weight, 0.0)
        metrics = {
            "generator": generator.mean(),
            "discriminator": judge.mean(),
            "adaptive_weight": balance,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }
        return recon, gate * (balance * generator + judge), metrics

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """The training loss of every network, per example.

        Args:
          params: as of `init`, and frozen "perceptual" where its checkpoint is given.
          batch: "image" float [B, H, W, C] and, with an adversarial loss, "step" int32 [].
          rng: key of the posterior's noise.

        Returns:
          reconstruction + perceptual + bottleneck losses, plus from `discriminator_start` on
          adversarial_weight (adaptive weight x generator + discriminator) hinge losses; metrics
          are unweighted except for those of the codebook.
        """
        x = batch["image"]
        z, _, aux, metrics = self._latents(params, x, stream(rng, "posterior"))
        fidelity = functools.partial(self._fidelity, params, x)
        if self.adversarial_weight:
            found = self._adversarial(params, x, z, fidelity, batch["step"])
        else:
            found = self._decode(params["decoder"], z), jnp.zeros(len(x)), {}
        recon, adversarial, more = found
        judged = fidelity(recon)
        metrics |= more | {"mse": jnp.square(recon - x).mean(), "fidelity": judged.mean()}
        return judged + adversarial + aux, metrics


def make(section, image_shape, dtype="float32", latent=None, features=None) -> VQGAN:
    """A tokenizer from its config section.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, or a latent or
        feature provider, which it does not take.
    """
    refuse_providers("vqgan", latent, features)
    given = dict(image_shape=tuple(image_shape), dtype=dtype, config_path="tokenizer")
    return build(VQGAN, section, "tokenizer", named=True, **given)


def refuse_providers(name: str, latent, features) -> None:
    """Raises ConfigError unless both are None: pixels alone are tokenized."""
    check(latent is None, "latent.name", "", f"'' under tokenizer.name = {name!r}")
    check(features is None, "features.name", "", f"'' under tokenizer.name = {name!r}")
