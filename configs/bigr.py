"""The binary autoencoder of "BiGR: Harnessing Binary Latent Codes for Image Generation and Improved
Visual Representation Capabilities" (Hao et al., 2024).

    python -m nexttok.main --config=configs/bigr.py --workdir=runs/bigr

Variants (`--config=configs/bigr.py:<variant>`):
  digits   (default) 4 x 4 positions of 8 bits, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 8 x 8 positions of 10 bits.
  tiny     seconds: the whole path.
  imagenet256_d24 | imagenet256_d32
           the released binary autoencoders: 16 x 16 positions of 24 or 32 bits.

    python -m nexttok.interop --system=bigr_bae --checkpoint=binaryae_ema_1000000.th \\
        --out=runs/bigr_d24
"""

from configs import common, tokenizers

VARIANTS = ("digits", "photos", "tiny", "imagenet256_d24", "imagenet256_d32")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("bigr")
    config.tokenizer = tokenizers.autoencoder(tokenizers.DIGITS, bits(8, 32), reconstruction="l1")
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer.bottleneck.bits = 10
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant != "digits":
        imagenet(config, int(variant[-2:]))
    return config


def bits(count, channels):
    """Bits drawn in training."""
    return dict(
        name="binary", kind="bernoulli", bits=count, channels=channels, signed=False,
        entropy_weight=0.0, diversity=1.0, beta=0.0,
    )  # fmt: skip


def imagenet(config, count):
    """The paper's sizes and losses."""
    common.imagenet(config)
    network = tokenizers.F16 | dict(name="bigr", z_channels=256)
    del network["quant_kernel"]
    config.tokenizer = tokenizers.autoencoder(
        network, bits(count, 256), reconstruction="l1", **tokenizers.ADVERSARY,
        adaptive_weight=True, discriminator_start=30_001,
    )  # fmt: skip
