"""VideoGPT's VQ-VAE: "VideoGPT: Video Generation using VQ-VAE and Transformers" (Yan et al., 2021).

    python -m nexttok.main --config=configs/videogpt.py --workdir=runs/videogpt

Variants (`--config=configs/videogpt.py:<variant>`):
  shapes   (default) 8 frames of 16 x 16 moving shapes as 4 x 4 x 4 codes of 512.
  tiny     seconds: the whole path.
  ucf64    the released sizes: 16 frames of 64 x 64 as 4 x 16 x 16 codes of 2,048, of class folders
           of animated pictures (--config.data.source=folder:<path>).

Codes are kept by moving averages and drawn anew from the batch when they fall out of use, as in the
paper. Normalization is by groups, where the official code normalizes over the batch.
"""

from configs import common, tokenizers

VARIANTS = ("shapes", "tiny", "ucf64")


def get_config(variant="shapes"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("videogpt")
    tokenizers.shapes(config)
    config.data.resolution = 16
    config.tokenizer = tokenizers.autoencoder(
        network(48, (2, 4, 4), 1), tokenizers.restarted(32, 512), reconstruction_weight=4.2
    )
    if variant == "tiny":
        tokenizers.tiny(config)
        config.tokenizer = tokenizers.autoencoder(
            network(16, (4, 8, 8), 1), tokenizers.restarted(8, 64), reconstruction_weight=4.2
        )
    elif variant == "ucf64":
        ucf(config)
    return config


def network(width, stride, blocks):
    """3D convolutions with axial attention."""
    return dict(
        name="video", width=width, stride=stride, blocks=blocks, heads=2, groups=8, causal=False
    )


def ucf(config):
    """The released sizes; pixels lie in [-1, 1], so 1 / 0.06 of the paper's error is 4.2 here."""
    common.imagenet(config, 64)
    config.data.update(source="folder:UCF-101", frames=16, num_classes=101, augment="none")
    config.tokenizer = tokenizers.autoencoder(
        network(240, (4, 4, 4), 4), tokenizers.restarted(256, 2048), reconstruction_weight=4.2
    )
    config.train.tokenizer.update(
        steps=200_000, batch_size=32, optimizer="adam", learning_rate=3e-4, b2=0.999, clip=0.0,
        warmup=0,
    )  # fmt: skip
