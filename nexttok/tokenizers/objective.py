"""What a tokenizer's pictures are judged by: fidelity to the data, and a discriminator.

The discriminator trains in the same step as the networks: the loss is one scalar per example in
which the generator's term sees fixed discriminator parameters and the discriminator's term sees
fixed pictures. Gradients are thus those of the two alternating steps; a clip by global norm acts
on both together. Of a video every frame is judged like a picture.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.discriminator import NORMS, PatchGAN
from nexttok.nn.lpips import LPIPS
from nexttok.rng import stream
from nexttok.tokenizers import criteria

LECAM_DECAY = 0.999
WEIGHTS = ("reconstruction_weight", "perceptual_weight", "adversarial_weight", "lecam_weight")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Losses of pictures, means over elements; see `criteria` for each.

    Attributes:
      reconstruction: l1 | l2, with reconstruction_weight.
      perceptual_weight: of LPIPS, or without its weights of criteria.pyramid.
      perceptual_checkpoint: files of LPIPS weights (interop/lpips.py); "" for none.
      adversarial_weight: of both hinge losses; 0 for no discriminator.
      adaptive_weight: scale the generator's by the ratio of gradients (criteria.adaptive_weight).
      discriminator_start: training step from which they count.
      discriminator_width, discriminator_layers, discriminator_norm: see nn/discriminator.py.
      lecam_weight: of the discriminator's regularizer (criteria.lecam), whose means of logits are
        kept with a decay of LECAM_DECAY from `discriminator_start` on.
      image_shape: of the pictures or videos, values in [-1, 1].
      dtype: compute dtype.
      where: config section that errors name.
    """

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
    image_shape: tuple[int, ...]
    dtype: str
    where: str

    def __post_init__(self):
        self._check("reconstruction", self.reconstruction in ("l1", "l2"), "l1 | l2")
        for name in WEIGHTS:
            self._check(name, getattr(self, name) >= 0, "at least 0")
        sides, channels = self.image_shape[-3:-1], self.image_shape[-1]
        if self.adversarial_weight:
            self._check("discriminator_norm", self.discriminator_norm in NORMS, " | ".join(NORMS))
            for name in ("discriminator_width", "discriminator_layers"):
                self._check(name, getattr(self, name) >= 1, "at least 1")
            fits = min(map(self.discriminator.logits_side, sides)) >= 1
            self._check("discriminator_layers", fits, "fewer, for pictures this small")
        if self.perceptual_checkpoint:
            fits = self.perceptual_weight > 0 and channels in (1, 3) and min(sides) >= 16
            self._check("perceptual_checkpoint", fits, "'' unless perceptual_weight is above 0 and "
                        "pictures have 1 or 3 channels and sides of at least 16")  # fmt: skip

    def _check(self, name, condition, allowed):
        check(condition, f"{self.where}.{name}", getattr(self, name), allowed)

    @functools.cached_property
    def discriminator(self) -> PatchGAN:
        """Pictures -> logits of patches."""
        return PatchGAN(
            self.discriminator_width, self.discriminator_layers, self.discriminator_norm, self.dtype
        )

    def init(self, rng: Array) -> dict:
        """Parameters: {discriminator[, lecam]} with an adversarial loss, else {}."""
        if not self.adversarial_weight:
            return {}
        image = jnp.zeros((1, *self.image_shape[-3:]))
        key = stream(rng, "discriminator")
        params = {"discriminator": self.discriminator.init(key, image)["params"]}
        zeros = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        return params | ({"lecam": zeros} if self.lecam_weight else {})

    def fidelity(
        self, params: dict, x: Float[Array, "B *T H W C"], recon: Float[Array, "B *T H W C"]
    ) -> Float[Array, "B"]:
        """Weighted reconstruction and perceptual loss."""
        error = jnp.abs(recon - x) if self.reconstruction == "l1" else jnp.square(recon - x)
        total = self.reconstruction_weight * error.reshape(len(x), -1).mean(-1)
        if not self.perceptual_weight:
            return total
        x, recon = _pictures(x), _pictures(recon)
        if self.perceptual_checkpoint:
            frozen = {"params": jax.lax.stop_gradient(params["perceptual"])}
            distance = LPIPS(self.dtype).apply(frozen, x, recon)
        else:
            distance = criteria.pyramid(x, recon)
        return total + self.perceptual_weight * distance.reshape(len(total), -1).mean(-1)

    def __call__(
        self,
        params: dict,
        x: Float[Array, "B *T H W C"],
        decode: Callable[[Array], Array],
        kernel: Array,
        step: Array | None,
    ) -> tuple[Array, Float[Array, "B"], dict]:
        """Decodes and judges.

        Args:
          params: {discriminator} with an adversarial loss, frozen {perceptual} with its checkpoint.
          x: the data.
          decode: kernel of the decoder's last layer -> pictures.
          kernel: that kernel.
          step: training step, int32 []; read with an adversarial loss.

        Returns:
          The pictures; fidelity plus, from `discriminator_start` on, adversarial_weight (adaptive
          weight x generator + discriminator) hinge losses [B]; metrics, unweighted, and "moves".
        """
        if not self.adversarial_weight:
            recon, adversarial, metrics = decode(kernel), 0.0, {}
        else:
            recon, adversarial, metrics = self._adversarial(params, x, decode, kernel, step)
        judged = self.fidelity(params, x, recon)
        metrics |= {"mse": jnp.square(recon - x).mean(), "fidelity": judged.mean()}
        return recon, judged + adversarial, metrics

    def _logits(self, params, x):
        """[B, patches], of all frames; pictures that were drawn smaller are enlarged."""
        pictures = _pictures(x)
        if pictures.shape[1:] != self.image_shape[-3:]:
            shape = (len(pictures), *self.image_shape[-3:])
            pictures = jax.image.resize(pictures, shape, "cubic")
        return self.discriminator.apply({"params": params}, pictures).reshape(len(x), -1)

    def _adversarial(self, params, x, decode, kernel, step):
        """Pictures, the gated losses of generator and discriminator [B], and metrics."""

        def fool(recon):
            frozen = jax.lax.stop_gradient(params["discriminator"])
            return criteria.hinge_generator(self._logits(frozen, recon))

        if self.adaptive_weight:
            recon, balance = criteria.adaptive_weight(
                decode, kernel, lambda r: self.fidelity(params, x, r).mean(),
                lambda r: fool(r).mean(),
            )  # fmt: skip
        else:
            recon, balance = decode(kernel), jnp.ones(())
        real = self._logits(params["discriminator"], x)
        fake = self._logits(params["discriminator"], jax.lax.stop_gradient(recon))
        generator, judge = fool(recon), criteria.hinge_discriminator(real, fake)
        begun, metrics = step >= self.discriminator_start, {}
        if self.lecam_weight:
            means = params["lecam"]
            excess = criteria.lecam(real, fake, means["real"], means["fake"])
            judge = judge + self.lecam_weight * excess
            pace = jnp.where(begun, 1 - LECAM_DECAY, 0.0)
            logits = {"real": real.mean(), "fake": fake.mean()}
            moves = {name: pace * (logits[name] - means[name]) for name in means}
            metrics["moves"] = {"lecam": jax.lax.stop_gradient(moves)}
        gate = jnp.where(begun, self.adversarial_weight, 0.0)
        metrics |= {
            "generator": generator.mean(),
            "discriminator": judge.mean(),
            "adaptive_weight": balance,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }
        return recon, gate * (balance * generator + judge), metrics


def _pictures(x):
    """The frames of videos as pictures."""
    return x.reshape(-1, *x.shape[-3:])


def from_section(section, image_shape: tuple[int, ...], dtype: str, where: str) -> Objective:
    """From a config section; raises ConfigError for wrong keys or values."""
    given = dict(image_shape=tuple(image_shape), dtype=dtype)
    return build(Objective, section, where, **given)
