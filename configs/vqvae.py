"""VQ-VAE: "Neural Discrete Representation Learning" (van den Oord et al., 2017).

    python -m nexttok.main --config=configs/vqvae.py --workdir=runs/vqvae

Variants (`--config=configs/vqvae.py:<variant>`):
  digits   (default) 4 x 4 codes of 256, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 8 x 8 codes of 512, the sizes of the authors' example.
  tiny     seconds: the whole path.
  imagenet128
           the paper's ImageNet: 128 x 128 pictures, 32 x 32 codes of 512.

The codebook is kept by moving averages, as in the authors' example (google-deepmind/sonnet); with
--config.tokenizer.bottleneck.update=gradient it is trained by the paper's first loss.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "photos", "tiny", "imagenet128")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("vqvae")
    codes = tokenizers.codes(
        channels=64, size=512, normalize=False, update="ema", init_codes="kmeans"
    )
    # 1 / variance of the pictures, about
    config.tokenizer = tokenizers.autoencoder(network(), codes, reconstruction_weight=4.0)
    if variant == "photos":
        tokenizers.photos(config)
    elif variant == "imagenet128":
        common.imagenet(config, 128)
        config.train.tokenizer.update(optimizer="adam", learning_rate=3e-4, clip=0.0)
    else:
        config.tokenizer.bottleneck.update(channels=16, size=256)
    if variant == "tiny":
        tokenizers.tiny(config)
    return config


def get_sweep(variant="digits"):
    """Codebooks of several sizes, a fourth and four times the variant's."""
    size = get_config(variant).tokenizer.bottleneck.size
    return common.product({"tokenizer.bottleneck.size": (size // 4, size, 4 * size)})


def network():
    """Sonnet's example; a quarter of the picture's side."""
    return dict(name="strided", width=128, halvings=2, blocks=2, residual=32)
