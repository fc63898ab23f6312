"""VQ-VAE-2: "Generating Diverse High-Fidelity Images with VQ-VAE-2" (Razavi et al., 2019).

    python -m nexttok.main --config=configs/vqvae2.py --workdir=runs/vqvae2

Variants (`--config=configs/vqvae2.py:<variant>`):
  digits   (default) 2 x 2 codes, then 4 x 4, of 256 each, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 4 x 4 codes, then 8 x 8, of 512 each.
  tiny     seconds: the whole path.
  imagenet256
           the paper's ImageNet: 32 x 32 codes, then 64 x 64, of 512 each.
  ffhq1024 the paper's faces, of a folder (--config.data.source=folder:<path>): 32 x 32 codes, then
           64 x 64, then 128 x 128.

The paper's code is not public; networks are those of its authors' VQ-VAE (see configs/vqvae.py and
nexttok/bottlenecks/hierarchy.py). Its priors are a PixelSNAIL per level; here
--config.stages=tokenizer,generator adds one transformer over the codes of all levels, coarse ones
first.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "photos", "tiny", "imagenet256", "ffhq1024")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("vqvae2")
    # 1 / variance of the pictures, about
    config.tokenizer = tokenizer(levels=2, halvings=2, channels=16, size=256)
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer = tokenizer(levels=2, halvings=2)
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant == "imagenet256":
        paper(config, 256, 2_207_444)
        config.tokenizer = tokenizer(levels=2, halvings=2)
    elif variant == "ffhq1024":
        paper(config, 1024, 304_741)
        config.data.update(source="folder:ffhq", num_classes=1)
        config.tokenizer = tokenizer(levels=3, halvings=3)
    return config


def tokenizer(levels, halvings, **changes):
    """The paper's networks; codes kept by moving averages."""
    codes = dict(channels=64, size=512, normalize=False, update="ema", init_codes="kmeans")
    bottleneck = tokenizers.hierarchy(
        128, [network(1)] * (levels - 1), tokenizers.codes(**(codes | changes))
    )
    return tokenizers.autoencoder(network(halvings), bottleneck, reconstruction_weight=4.0)


def network(halvings):
    """Of the finest level from pictures, and of each level from the finer one."""
    return dict(name="strided", width=128, halvings=halvings, blocks=2, residual=64)


def paper(config, resolution, steps):
    """The paper's training."""
    common.imagenet(config, resolution)
    config.train.tokenizer.update(
        steps=steps, optimizer="adam", learning_rate=3e-4, clip=0.0, schedule="constant", warmup=0
    )
