"""Sections of the tokenizers that several papers share, released sizes included."""

from configs.common import section

LOSSES = dict(
    reconstruction="l2",  # l2 | l1
    reconstruction_weight=1.0,
    perceptual_weight=0.0,
    perceptual_checkpoint="",  # LPIPS and VGG16 files; "" for a Laplacian pyramid
    adversarial_weight=0.0,
    adaptive_weight=False,
    discriminator_start=0,
    discriminator_width=64,
    discriminator_layers=3,
    discriminator_norm="batch",  # batch | group
    lecam_weight=0.0,
)

POOLED_F16 = dict(
    network="pooled_conv", width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, groups=32
)


def vqgan(**changes):
    """LlamaGen's VQGAN at digits size: f4, 256 unit codes of 8 channels."""
    keys = dict(
        name="vqgan", network="conv", width=32, multipliers=(1, 2, 2), blocks=1, attention=(),
        decoder_attention=(), groups=8, z_channels=0, quant_kernel=1, bottleneck="vq",
        latent_channels=8, codebook_size=256, normalize=True, beta=0.25, entropy_weight=0.0,
        scaling_factor=1.0, kl_weight=0.0, sample_posterior=False,
    )  # fmt: skip
    return section(**(keys | LOSSES | changes))


def vqgan_f16(**changes):
    """LlamaGen's released VQ-16 with its losses."""
    keys = dict(
        width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), decoder_attention=(4,),
        groups=32, z_channels=256, codebook_size=16384, perceptual_weight=1.0,
        adversarial_weight=0.5, discriminator_start=20_000,
    )  # fmt: skip
    return vqgan(**(keys | changes))


def maskgit_f16():
    """MaskGIT's released tokenizer, of 256 and of 512 pixels; its adversary here is a PatchGAN."""
    return vqgan(
        **POOLED_F16, latent_channels=256, codebook_size=1024, normalize=False, entropy_weight=0.1,
        perceptual_weight=0.1, adversarial_weight=0.1,
    )  # fmt: skip


def kl(**changes):
    """A KL autoencoder at digits size: f4, 4 channels of about unit variance."""
    keys = dict(
        bottleneck="kl", latent_channels=4, codebook_size=0, normalize=False, kl_weight=1e-2,
        sample_posterior=True,
    )  # fmt: skip
    return vqgan(**(keys | changes))


def kl_f16(**changes):
    """MAR's kl16: stride 16, 16 channels, latents times 0.2325."""
    keys = dict(
        width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), decoder_attention=(),
        groups=32, latent_channels=16, scaling_factor=0.2325, kl_weight=1e-6,
        perceptual_weight=1.0, adversarial_weight=0.5, adaptive_weight=True,
        discriminator_start=50_000,
    )  # fmt: skip
    return kl(**(keys | changes))


def givt_f16(kl_weight):
    """GIVT's released beta-VAE: MaskGIT's network, 16 channels not scaled; losses as of kl_f16."""
    return kl(
        **POOLED_F16, latent_channels=16, kl_weight=kl_weight, perceptual_weight=1.0,
        adversarial_weight=0.5, adaptive_weight=True, discriminator_start=50_000,
    )  # fmt: skip


def multiscale(**changes):
    """VAR's multi-scale residual VQ at digits size: f4, maps of side 1, 2, 3, 4."""
    keys = dict(
        name="multiscale", width=32, multipliers=(1, 2, 2), blocks=1, attention=(),
        decoder_attention=(), groups=8, z_channels=0, quant_kernel=3, latent_channels=16,
        codebook_size=256, normalize=False, beta=0.25, sides=(1, 2, 3, 4), phis=4, phi_ratio=0.5,
    )  # fmt: skip
    return section(**(keys | LOSSES | changes))


def multiscale_f16(sides):
    """VAR's released vae_ch160v4096z32."""
    return multiscale(
        width=160, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), decoder_attention=(4,),
        groups=32, latent_channels=32, codebook_size=4096, sides=sides, perceptual_weight=1.0,
        adversarial_weight=0.5, discriminator_start=20_000,
    )  # fmt: skip


def video(**changes):
    """A 3D VQ-VAE at the size of the moving shapes: 256 unit codes, each of 2 x 8 x 8 pixels."""
    keys = dict(
        name="video", width=48, stride=(2, 8, 8), blocks=1, heads=2, groups=8, latent_channels=8,
        codebook_size=256, normalize=True, beta=0.25, entropy_weight=0.0, reconstruction="l2",
        reconstruction_weight=4.0,
    )  # fmt: skip
    return section(**(keys | changes))


def magvit2(**changes):
    """Next Block Prediction's released tokenizer: 64,000 codes, each of 4 x 8 x 8 pixels."""
    keys = dict(
        name="magvit2", width=128, multipliers=(1, 2, 2, 4), blocks=4, time_levels=2, groups=32,
        levels=(8, 8, 8, 5, 5, 5), reconstruction="l1", reconstruction_weight=1.0,
    )  # fmt: skip
    return section(**(keys | changes))
