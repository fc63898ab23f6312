"""VQ-WAE: "Vector Quantized Wasserstein Auto-Encoder" (Vuong et al., 2023).

    python -m nexttok.main --config=configs/vqwae.py --workdir=runs/vqwae

Variants (`--config=configs/vqwae.py:<variant>`):
  digits   (default) 4 x 4 codes of 256, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 8 x 8 codes of 512, the paper's sizes for CIFAR-10.
  tiny     seconds: the whole path.

All latents of a batch are transported to one weighted codebook (the official code's global mode) by
Sinkhorn's algorithm, where the official code solves that exactly or by potentials.
"""

from configs import tokenizers
from configs.vqvae import network

VARIANTS = ("digits", "photos", "tiny")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("vqwae")
    codes = dict(
        name="transport", channels=16, size=256, weight=1e-2, even_weight=1e-2, eps=0.05, rounds=20
    )
    config.tokenizer = tokenizers.autoencoder(network(), codes)
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer.bottleneck.update(channels=64, size=512)
    elif variant == "tiny":
        tokenizers.tiny(config)
    return config
