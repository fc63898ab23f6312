"""RQ-VAE: "Autoregressive Image Generation using Residual Quantization" (Lee et al., 2022).

    python -m nexttok.main --config=configs/rqvae.py --workdir=runs/rqvae

Variants (`--config=configs/rqvae.py:<variant>`):
  digits   (default) 2 x 2 positions of 4 codes of 256, for scikit-learn's handwritten digits.
  product  the same latents in 4 groups of channels, a codebook for each.
  photos   32 x 32 crops of photographs: 4 x 4 positions of 8 codes of 256.
  tiny     seconds: the whole path.
  imagenet256
           the paper's 8 x 8 positions of 4 codes of 16,384, of one shared codebook.

Codebooks are trained by gradient, where the paper keeps them by moving averages.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "product", "photos", "tiny", "imagenet256")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("rqvae")
    network = tokenizers.DIGITS | dict(multipliers=(1, 2, 2, 2))
    kind = "product" if variant == "product" else "residual"
    config.tokenizer = tokenizers.autoencoder(network, codes(kind, 32, 256, 4))
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer.bottleneck.codes = 8
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant == "imagenet256":
        common.imagenet(config)
        network = tokenizers.F16 | dict(multipliers=(1, 1, 2, 2, 4, 4), attention=(5,))
        config.tokenizer = tokenizers.autoencoder(
            network, codes("residual", 256, 16_384, 4, shared=True), **tokenizers.ADVERSARY
        )
    return config


def codes(kind, channels, size, count, shared=False):
    """Several codes per position."""
    return dict(
        name="residual", kind=kind, channels=channels, size=size, codes=count, shared=shared,
        beta=0.25, dropout=0.0,
    )  # fmt: skip
