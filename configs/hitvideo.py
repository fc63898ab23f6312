"""HiTVideo: "HiTVideo: Hierarchical Tokenizers for Enhancing Text-to-Video Generation with
Autoregressive Large Language Models" (Zhou et al., 2025).

    python -m nexttok.main --config=configs/hitvideo.py --workdir=runs/hitvideo

Variants (`--config=configs/hitvideo.py:<variant>`):
  shapes   (default) 5 frames of 16 x 16 moving shapes: 2 x 2 x 2 codes, then 3 x 4 x 4, of 512.
  tiny     seconds: the whole path.
  video256 65 frames of 256 x 256, of class folders of animated pictures
           (--config.data.source=folder:<path>): codes of 8 x 32 x 32 pixels, then 4 x 16 x 16, then
           4 x 8 x 8, of 8,192 each.

No code is public: the networks (MAGVIT-v2's; of the small variants VideoGPT's, made causal), the
residual form and all sizes are a reconstruction (see nexttok/bottlenecks/hierarchy.py). Training
drops the finest levels of some examples, so that videos decode from the coarse codes alone. The
paper's generator is a language model that reads text; here --config.stages=tokenizer,generator adds
a transformer of classes over the codes of all levels, coarse ones first.
"""

from configs import common, tokenizers

VARIANTS = ("shapes", "tiny", "video256")


def get_config(variant="shapes"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("hitvideo")
    tokenizers.shapes(config)
    config.data.update(frames=5, resolution=16)
    config.tokenizer = small(48, (2, 4, 4), 512)
    config.train.tokenizer.update(steps=1000)
    if variant == "tiny":
        tokenizers.tiny(config)
        config.tokenizer = small(16, (2, 4, 4), 64)
        config.train.tokenizer.batch_size = 8
    elif variant == "video256":
        video(config)
    return config


def small(width, stride, size):
    """Codes of 4 x 8 x 8 pixels, then of 2 x 4 x 4; convolutions that are cheap on a CPU."""
    codes = tokenizers.restarted(32, size, below=0.1)  # the coarse level has few latents a batch
    bottleneck = levels(width, [cheap(width, (2, 2, 2))], codes, dropout=0.1)
    return tokenizers.autoencoder(cheap(width, stride), bottleneck, reconstruction_weight=4.0)


def cheap(width, stride):
    """VideoGPT's convolutions, made causal, without attention."""
    return dict(name="video", width=width, stride=stride, blocks=1, heads=0, groups=8, causal=True)


def levels(width, networks, codes, dropout):
    """Codes of what the coarser levels leave."""
    return tokenizers.hierarchy(width, networks, codes, combine="residual", dropout=dropout)


def network(width, multipliers, blocks, time_levels, groups):
    """MAGVIT-v2's causal convolutions."""
    return dict(
        name="magvit2", width=width, multipliers=multipliers, blocks=blocks,
        time_levels=time_levels, groups=groups,
    )  # fmt: skip


def video(config):
    """8 seconds at 8 frames a second and the first frame."""
    common.imagenet(config, 256)
    config.data.update(source="folder:videos", frames=65, num_classes=1, augment="none")
    joins = [network(256, (1, 1), 1, time, groups=32) for time in (1, 0)]
    bottleneck = levels(256, joins, tokenizers.codes(size=8192), dropout=0.2)
    config.tokenizer = tokenizers.autoencoder(
        network(128, (1, 2, 2, 4), 4, 2, groups=32), bottleneck, reconstruction="l1",
        perceptual_weight=1.0, adversarial_weight=0.1, discriminator_start=50_000,
    )  # fmt: skip
    config.train.tokenizer.batch_size = 32
