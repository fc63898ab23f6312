"""What a reconstruction is judged by, beyond pixels: multi-scale or perceptual differences,
alignment of features, and a discriminator.

Everything is per example ([B]); a training loss is their mean.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.nn.lpips import LPIPS

LEVELS = 3


def pyramid(
    x: Float[Array, "B H W C"], y: Float[Array, "B H W C"], levels: int = LEVELS
) -> Float[Array, "B"]:
    """L1 distance of Laplacian pyramids (Bojanowski et al., "Optimizing the Latent Space ...").

    A band is a picture minus the upsampling of its 2 x 2 means; the mean |difference| of each of
    the `levels` finest bands is summed. Unlike pixel errors it weighs edges of every size alike,
    and it needs no trained network: it is the perceptual loss of a run without LPIPS weights.
    Bands end where a side is odd.
    """
    rest, total = x - y, jnp.zeros(len(x))
    for _ in range(levels):
        b, h, w, c = rest.shape
        if h % 2 or w % 2:
            break
        coarse = rest.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        band = rest - jnp.repeat(jnp.repeat(coarse, 2, axis=1), 2, axis=2)
        total += jnp.abs(band).mean((1, 2, 3))
        rest = coarse
    return total


def check_perceptual(
    checkpoint: str, weight: float, image_shape: tuple[int, ...], where: str
) -> None:
    """Raises ConfigError unless a checkpoint of LPIPS, if any, is read and fits the pictures."""
    sides, channels = image_shape[-3:-1], image_shape[-1]
    fits = not checkpoint or (weight > 0 and channels in (1, 3) and min(sides) >= 16)
    check(fits, f"{where}.perceptual_checkpoint", checkpoint, "'' unless perceptual_weight is "
          "above 0 and pictures have 1 or 3 channels and sides of at least 16")  # fmt: skip


def perceptual(
    weights: dict | None, x: Float[Array, "B H W C"], y: Float[Array, "B H W C"], dtype: str
) -> Float[Array, "B"]:
    """LPIPS of these weights, which stay; without any `pyramid`."""
    if weights is None:
        return pyramid(x, y)
    return LPIPS(dtype).apply({"params": jax.lax.stop_gradient(weights)}, x, y)


def alignment(
    provider: Any,
    frozen: dict,
    image: Float[Array, "B H W C"],
    features: Float[Array, "B P D"],
    grid: tuple[int, int],
    project: Callable[[Array], Array],
) -> Float[Array, "B"]:
    """1 - cosine between a network's features and a frozen provider's (Yu et al., "Representation
    Alignment for Generation", 2024), mean over the provider's grid.

    Args:
      provider: see nn/vit.py; frozen: its parameters.
      image: what it sees.
      features: of the network, one per cell of its `grid`; they are resampled bilinearly, which
        averages four cells where the provider's grid is half as fine.
      project: [B, P', D] -> [B, P', F], to the provider's width.
    """
    target = jax.lax.stop_gradient(provider.apply(frozen, image))
    batch, (h, w), width = len(image), target.shape[1:3], features.shape[-1]
    cells = features.reshape(batch, *grid, width)
    cells = jax.image.resize(cells, (batch, h, w, width), "bilinear", antialias=False)
    guess = project(cells.reshape(batch, -1, width))
    target = target.reshape(guess.shape)

    def unit(v):
        return v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-8)

    return 1.0 - (unit(guess) * unit(target)).sum(-1).mean(-1)


def hinge_generator(fake: Float[Array, "B *p"]) -> Float[Array, "B"]:
    """-logit, mean over patches."""
    return -fake.reshape(len(fake), -1).mean(-1)


def hinge_discriminator(
    real: Float[Array, "B *p"], fake: Float[Array, "B *p"]
) -> Float[Array, "B"]:
    """(relu(1 - real) + relu(1 + fake)) / 2, mean over patches."""
    margins = jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
    return 0.5 * margins.reshape(len(real), -1).mean(-1)


def lecam(
    real: Float[Array, "B *p"],
    fake: Float[Array, "B *p"],
    real_mean: Float[Array, ""],
    fake_mean: Float[Array, ""],
) -> Float[Array, "B"]:
    """The regularizer of Tseng et al. ("Regularizing GANs under Limited Data", 2021).

    relu(real - fake_mean)^2 + relu(real_mean - fake)^2, mean over patches, where the means are
    moving averages of the logits.
    """
    low, high = jax.lax.stop_gradient((fake_mean, real_mean))
    excess = jnp.square(jax.nn.relu(real - low)) + jnp.square(jax.nn.relu(high - fake))
    return excess.reshape(len(real), -1).mean(-1)


def adaptive_weight(
    decode: Callable[[Array], tuple[Array, Any]],
    kernel: Array,
    fidelity: Callable[[Array], Array],
    fool: Callable[[Array], Array],
) -> tuple[Float[Array, "B H W C"], Any, Float[Array, ""]]:
    """Balances two losses at the decoder's last layer (Esser et al., "Taming Transformers", 2021).

    Args:
      decode: kernel of the last layer -> pictures and anything else.
      kernel: that kernel.
      fidelity, fool: pictures -> scalar reconstruction and generator loss.

    Returns:
      The pictures, what else was decoded, and |d fidelity / d kernel| / (|d fool / d kernel| +
      1e-4), clipped to [0, 1e4], without gradient. The pictures are decoded once.
    """
    pictures, pull, other = jax.vjp(decode, kernel, has_aux=True)
    rec, gan = (
        jnp.linalg.norm(pull(jax.grad(loss)(pictures))[0].ravel()) for loss in (fidelity, fool)
    )
    return pictures, other, jax.lax.stop_gradient(jnp.clip(rec / (gan + 1e-4), 0.0, 1e4))
