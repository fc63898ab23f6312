"""RandAR: Decoder-only Autoregressive Visual Generation in Random Orders (Pang et al., 2024).

    python -m nexttok.main --config=configs/randar.py --workdir=runs/randar

Variants (`--config=configs/randar.py:<variant>`):
  digits   (default) 16 tokens of 256 ids in 8 steps for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_l | imagenet256_xl | imagenet256_xxl
           the released models (0.3 B, 0.7 B, 1.4 B), 256 tokens in 88 steps, for ImageNet
           through TFDS.
"""

from configs import common, llamagen, tokenizers

GUIDANCE = {"l": 3.4, "xl": 4.0, "xxl": 4.0}
VARIANTS = ("digits", "tiny", "imagenet256_l", "imagenet256_xl", "imagenet256_xxl")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "randar"
    config.tokenizer = tokenizers.vqgan()
    config.generator = common.section(
        plan=common.plan("random", steps=8, schedule="randar"),
        context=common.section(name="query", layout="interleaved"),
        head=common.categorical(),
        backbone=common.llama(rotate_query=True),
        class_dropout=0.1,
    )
    common.digits(config)
    config.sample.update(guidance=3.0, guidance_shape="linear", guidance_clock="before")
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        size = variant.split("_")[1]
        imagenet(config, *llamagen.SIZES[size][:4], GUIDANCE[size])
    return config


def imagenet(config, width, depth, head_dim, hidden, guidance):
    """A released model: 360,000 steps of 1,024 images."""
    common.imagenet(config)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator.plan.steps = 88
    config.generator.backbone.update(
        width=width, depth=depth, head_dim=head_dim, mlp_hidden=hidden, remat=True
    )
    config.sample.guidance = guidance
    config.train.generator.update(
        steps=360_000, learning_rate=4e-4, final_learning_rate=2e-5, warmup=50_000, ema=0.0
    )
