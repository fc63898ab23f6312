"""Next Block Prediction: Video Generation via Semi-Autoregressive Modeling (Ren et al., 2025).

    python -m nexttok.main --config=configs/nbp.py --workdir=runs/nbp

Variants (`--config=configs/nbp.py:<variant>`):
  digits   (default) rows of 4 tokens a step for scikit-learn's handwritten digits.
  video    8 frames of 32 x 32 moving shapes: 4 x 4 x 4 tokens, the same rows a step.
  tiny | tiny_video
           the whole path, training to pictures, in under a minute.
  imagenet256_base | imagenet256_xl | imagenet256_3b
           the paper's transformers (700 M, 1.2 B, 3 B), rows of 16 tokens, for ImageNet.
"""

from configs import common, tokenizers

# width, depth, head_dim
SIZES = {"base": (1536, 24, 96), "xl": (2048, 24, 64), "3b": (3072, 32, 96)}
VARIANTS = (
    "digits", "video", "tiny", "tiny_video", "imagenet256_base", "imagenet256_xl", "imagenet256_3b",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "nbp"
    config.tokenizer = tokenizers.vqgan()
    config.generator = generator()
    common.digits(config)
    if variant.endswith("video"):
        video(config)
    if variant.startswith("tiny"):
        tiny(config)
    elif variant.startswith("imagenet"):
        imagenet(config, *SIZES[variant.split("_")[1]])
    return config


def generator(**sizes):
    """minGPT: the first row token by token behind a class slot, then a row a step (hybrid NBP)."""
    options = dict(
        activation="gelu", bias=True, mlp_bias=True, condition=("prefix",), prefix=1,
        embed_init="normal02", null_class=True,
    )  # fmt: skip
    return common.section(
        plan=common.plan("rows", lead=True),
        context=common.section(name="block"),
        head=common.categorical(init="normal02"),
        backbone=common.backbone(**(options | sizes)),
        class_dropout=0.1,
    )


def video(config):
    """Moving shapes through a 3D VQ-VAE; a class is the kind of the one large shape."""
    config.data.update(
        source="shapes", frames=8, resolution=32, channels=3, num_classes=6, augment="none"
    )
    config.tokenizer = tokenizers.video()
    config.cached_passes = 1  # 50,000 clips
    config.train.tokenizer.update(steps=1000, batch_size=32)
    config.train.generator.update(batch_size=32)


def tiny(config):
    """As everywhere; a video tokenizer has its own sizes."""
    common.tiny(config)
    if config.tokenizer.name == "video":
        config.tokenizer = tokenizers.video(width=16, groups=4, stride=(4, 8, 8))
        config.cached_passes = 0


def imagenet(config, width, depth, head_dim):
    """The paper's sizes."""
    common.imagenet(config)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator = generator(
        width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, remat=True
    )
    config.sample.update(top_k=16_000, top_p=0.9, guidance=1.5)
    config.train.generator.update(learning_rate=6e-4, weight_decay=0.01, ema=0.0)
