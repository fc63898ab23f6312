"""What a tokenizer's pictures are judged by: fidelity to the data, and a discriminator.

The discriminator trains in the same step as the networks: the loss is one scalar per example in
which the generator's term sees fixed discriminator parameters and the discriminator's term sees
fixed pictures. Gradients are thus those of the two alternating steps; a clip by global norm acts
on both together. Of a video every frame is judged like a picture.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn import dino
from nexttok.nn.discriminator import NORMS, PatchGAN
from nexttok.rng import stream
from nexttok.tokenizers import criteria

LECAM_DECAY = 0.999
DINO = dino.DinoConfig()
WEIGHTS = (
    "reconstruction_weight", "perceptual_weight", "adversarial_weight", "lecam_weight",
    "align_weight",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Objective:
    """Losses of pictures, means over elements; see `criteria` for each.

    Attributes:
      reconstruction: l1 | l2, with reconstruction_weight.
      perceptual_weight: of LPIPS, or without its weights of criteria.pyramid.
      perceptual_checkpoint: files of LPIPS weights (interop/lpips.py); "" for none.
      adversarial_weight: of both hinge losses; 0 for no discriminator.
      adaptive_weight: scale the generator's by the ratio of gradients (criteria.adaptive_weight).
      discriminator: patch (nn/discriminator.py, of discriminator_width, discriminator_layers and
        discriminator_norm) | dino (nn/dino.py, of the file discriminator_checkpoint).
      discriminator_start: training step from which they count.
      lecam_weight: of the discriminator's regularizer (criteria.lecam), whose means of logits are
        kept with a decay of LECAM_DECAY from `discriminator_start` on.
      image_shape: of the pictures or videos, values in [-1, 1].
      align_weight: of the alignment of the decoder's features after block `align_layer` (0-based)
        with those of config.features (criteria.alignment).
      warm_start: steps in which a decoder of two halves also draws the encoder's map directly, and
        its own map is drawn to the encoder's by the squared error (GigaTok); 0 for none.
      dtype: compute dtype.
      where: config section that errors name.
    """

    reconstruction: str
    reconstruction_weight: float
    perceptual_weight: float
    perceptual_checkpoint: str
    adversarial_weight: float
    adaptive_weight: bool
    discriminator: str
    discriminator_checkpoint: str
    discriminator_start: int
    discriminator_width: int
    discriminator_layers: int
    discriminator_norm: str
    lecam_weight: float
    align_weight: float
    align_layer: int
    warm_start: int
    image_shape: tuple[int, ...]
    dtype: str
    where: str

    def __post_init__(self):
        self._check("reconstruction", self.reconstruction in ("l1", "l2"), "l1 | l2")
        for name in WEIGHTS:
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("warm_start", self.warm_start >= 0, "at least 0")
        sides, channels = self.image_shape[-3:-1], self.image_shape[-1]
        self._check("discriminator", self.discriminator in ("patch", "dino"), "patch | dino")
        read = self.adversarial_weight > 0 and self.discriminator == "dino"
        fits = read == bool(self.discriminator_checkpoint)
        self._check("discriminator_checkpoint", fits, "a file under discriminator = 'dino' with an "
                    "adversarial loss, else ''")  # fmt: skip
        if read:
            fits = channels in (1, 3) and sides[0] == sides[1]
            self._check(
                "discriminator", fits, "patch, unless pictures are square, of 1 or 3 channels"
            )
        elif self.adversarial_weight:
            self._check("discriminator_norm", self.discriminator_norm in NORMS, " | ".join(NORMS))
            for name in ("discriminator_width", "discriminator_layers"):
                self._check(name, getattr(self, name) >= 1, "at least 1")
            fits = min(map(self.patches.logits_side, sides)) >= 1
            self._check("discriminator_layers", fits, "fewer, for pictures this small")
        criteria.check_perceptual(
            self.perceptual_checkpoint, self.perceptual_weight, self.image_shape, self.where
        )

    def _check(self, name, condition, allowed):
        check(condition, f"{self.where}.{name}", getattr(self, name), allowed)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Files of frozen parameters that the losses read, by the parameters' name."""
        files = {"perceptual": self.perceptual_checkpoint, "judge": self.discriminator_checkpoint}
        return {name: path for name, path in files.items() if path}

    @functools.cached_property
    def patches(self) -> PatchGAN:
        """Pictures -> logits of patches."""
        return PatchGAN(
            self.discriminator_width, self.discriminator_layers, self.discriminator_norm, self.dtype
        )

    def init(self, rng: Array) -> dict:
        """Parameters: {discriminator[, lecam]} with an adversarial loss, else {}."""
        if not self.adversarial_weight:
            return {}
        key = stream(rng, "discriminator")
        if self.discriminator == "dino":
            found = [jnp.zeros((1, DINO.patches, DINO.width))] * (1 + len(DINO.taps))
            params = {"discriminator": dino.Heads().init(key, found)["params"]}
        else:
            image = jnp.zeros((1, *self.image_shape[-3:]))
            params = {"discriminator": self.patches.init(key, image)["params"]}
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
        weights = params["perceptual"] if self.perceptual_checkpoint else None
        distance = criteria.perceptual(weights, _pictures(x), _pictures(recon), self.dtype)
        return total + self.perceptual_weight * distance.reshape(len(total), -1).mean(-1)

    def __call__(
        self,
        params: dict,
        x: Float[Array, "B *T H W C"],
        decode: Callable[[Array], tuple[Array, Any]],
        kernel: Array,
        step: Array | None,
        rng: Array | None = None,
    ) -> tuple[Array, Any, Float[Array, "B"], dict]:
        """Decodes and judges.

        Args:
          params: {discriminator} with an adversarial loss, frozen {perceptual} and {judge} with
            their checkpoints.
          x: the data.
          decode: kernel of the decoder's last layer -> pictures and anything else.
          kernel: that kernel.
          step: training step, int32 []; read with an adversarial loss.
          rng: key of what the `dino` discriminator sees of large pictures; None for all of them.

        Returns:
          The pictures; what else was decoded; fidelity plus, from `discriminator_start` on,
          adversarial_weight (adaptive weight x generator + discriminator) hinge losses [B];
          metrics, unweighted, and "moves".
        """
        if not self.adversarial_weight:
            (recon, other), adversarial, metrics = decode(kernel), 0.0, {}
        else:
            recon, other, adversarial, metrics = self._adversarial(
                params, x, decode, kernel, step, rng
            )
        judged = self.fidelity(params, x, recon)
        metrics |= {"mse": jnp.square(recon - x).mean(), "fidelity": judged.mean()}
        return recon, other, judged + adversarial, metrics

    def _logits(self, params, judge, x, key):
        """[B, patches], of all frames, and the moves of the discriminator's parameters; pictures
        that were drawn smaller are enlarged."""
        variables, frames, moves = {"params": params}, _pictures(x), {}
        if frames.shape[1:] != self.image_shape[-3:]:
            shape = (len(frames), *self.image_shape[-3:])
            frames = jax.image.resize(frames, shape, "cubic")
        if self.discriminator == "patch":
            logits = self.patches.apply(variables, frames)
        else:
            found = dino.readouts(DINO, jax.lax.stop_gradient(judge), frames, key)
            logits, made = dino.Heads().apply(variables, found, mutable=["moves"])
            moves = made["moves"]
        return logits.reshape(len(x), -1), moves

    def _adversarial(self, params, x, decode, kernel, step, rng):
        """What is decoded, the gated losses of generator and discriminator [B], and metrics."""

        def logits(own, pictures, name):
            key = None if rng is None else stream(rng, name)
            return self._logits(own, params.get("judge"), pictures, key)

        def fool(recon):
            frozen = jax.lax.stop_gradient(params["discriminator"])
            return criteria.hinge_generator(logits(frozen, recon, "fool")[0])

        if self.adaptive_weight:
            recon, other, balance = criteria.adaptive_weight(
                decode, kernel, lambda r: self.fidelity(params, x, r).mean(),
                lambda r: fool(r).mean(),
            )  # fmt: skip
        else:
            (recon, other), balance = decode(kernel), jnp.ones(())
        real, moves = logits(params["discriminator"], x, "real")
        fake, _ = logits(params["discriminator"], jax.lax.stop_gradient(recon), "fake")
        generator, judge = fool(recon), criteria.hinge_discriminator(real, fake)
        begun = step >= self.discriminator_start
        metrics = {"moves": {"discriminator": moves}} if moves else {}
        if self.lecam_weight:
            means = params["lecam"]
            excess = criteria.lecam(real, fake, means["real"], means["fake"])
            judge = judge + self.lecam_weight * excess
            pace = jnp.where(begun, 1 - LECAM_DECAY, 0.0)
            now = {"real": real.mean(), "fake": fake.mean()}
            moves = {name: pace * (now[name] - means[name]) for name in means}
            metrics["moves"] = metrics.get("moves", {}) | {"lecam": jax.lax.stop_gradient(moves)}
        gate = jnp.where(begun, self.adversarial_weight, 0.0)
        metrics |= {
            "generator": generator.mean(),
            "discriminator": judge.mean(),
            "adaptive_weight": balance,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }
        return recon, other, gate * (balance * generator + judge), metrics


def _pictures(x):
    """The frames of videos as pictures."""
    return x.reshape(-1, *x.shape[-3:])


def from_section(section, image_shape: tuple[int, ...], dtype: str, where: str) -> Objective:
    """From a config section; raises ConfigError for wrong keys or values."""
    given = dict(image_shape=tuple(image_shape), dtype=dtype)
    return build(Objective, section, where, **given)
