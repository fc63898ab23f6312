"""DiGIT: "Stabilize the Latent Space for Image Autoregressive Modeling: A Unified Perspective" (Zhu
et al., 2024).

    python -m nexttok.main --config=configs/digit.py --workdir=runs/digit

Tokens are the k-means clusters of frozen features; a decoder is trained to draw them.

Variants (`--config=configs/digit.py:<variant>`):
  digits   (default) 4 x 4 clusters of 256 of patches, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 8 x 8 clusters of 512.
  tiny     seconds: the whole path.
  imagenet256_base
           16 x 16 clusters of 8,192 of DINOv2-B with registers, the third block from the end
           (--config.features.checkpoint).

Clusters begin as those of the first batch and follow moving averages, where the paper runs k-means
over a tenth of the data at once. The paper draws by a second transformer, from clusters to the
codes of a VQGAN; here a convolutional decoder draws pixels.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "photos", "tiny", "imagenet256_base")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("digit")
    config.features.update(name="patches", preset="4")
    config.tokenizer = tokenizer(tokenizers.DIGITS, 16, 256)
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer = tokenizer(tokenizers.DIGITS, 48, 512)
    elif variant == "tiny":
        tokenizers.tiny(config)
        config.tokenizer = tokenizer(tokenizers.DIGITS | dict(width=8), 16, 32)
    elif variant != "digits":
        imagenet(config)
    return config


def tokenizer(decoder, channels, size):
    """Clusters by moving averages; features do not train, so nothing commits to a cluster."""
    found = tokenizers.autoencoder(decoder, clusters(channels, size))
    found.encoder = common.section(name="frozen")
    return found


def clusters(channels, size):
    """Of features as they are, not normalized."""
    return tokenizers.codes(
        channels=channels, size=size, normalize=False, beta=0.0, update="ema", init_codes="kmeans",
        revive="random", revive_below=0.01,
    )  # fmt: skip


def imagenet(config):
    """The paper's clusters, and VQGAN's decoder."""
    common.imagenet(config)
    config.features.update(
        name="dinov2", preset="base_registers_third_last",
        checkpoint="dinov2_vitb14_reg4_pretrain.pth",
    )  # fmt: skip
    config.tokenizer = tokenizer(tokenizers.F16 | dict(z_channels=256), 768, 8192)
    config.tokenizer.losses.update(tokenizers.ADVERSARY | dict(discriminator_start=20_000))
    config.train.tokenizer.update(
        steps=400_000, batch_size=256, learning_rate=1e-4, b2=0.95, weight_decay=0.0, ema=0.999
    )
