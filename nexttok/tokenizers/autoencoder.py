"""Convolutional autoencoder with continuous latents: KL-regularized or plain.

The latent space under FlexTok and of latent diffusion (Rombach et al., 2022): the networks of
tokenizers/vqgan.py trained by squared pixel error and KL alone.
"""

import dataclasses

from nexttok.config import build
from nexttok.tokenizers.vqgan import VQGAN, refuse_providers

PLAIN = dict(
    network="conv", decoder_attention=(), z_channels=0, quant_kernel=1, bottleneck="kl",
    codebook_size=0, normalize=False, beta=0.0, entropy_weight=0.0, reconstruction="l2",
    reconstruction_weight=1.0, perceptual_weight=0.0, perceptual_checkpoint="",
    adversarial_weight=0.0, adaptive_weight=False, discriminator_start=0, discriminator_width=0,
    discriminator_layers=0, discriminator_norm="", lecam_weight=0.0, config_path="latent",
)  # fmt: skip


def make(section, image_shape, dtype="float32", latent=None, features=None) -> VQGAN:
    """An autoencoder from its config section: width, multipliers, blocks, attention (of both
    networks), groups, latent_channels, scaling_factor, kl_weight, sample_posterior.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not divide, or a latent or
        feature provider, which it does not take.
    """
    refuse_providers("autoencoder", latent, features)
    given = PLAIN | dict(image_shape=tuple(image_shape), dtype=dtype)
    model = build(VQGAN, section, "latent", named=True, **given)
    return dataclasses.replace(model, decoder_attention=model.attention)
