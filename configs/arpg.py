"""Autoregressive Image Generation with Randomized Parallel Decoding (ARPG, Li et al., 2025).

    python -m nexttok.main --config=configs/arpg.py --workdir=runs/arpg

Variants (`--config=configs/arpg.py:<variant>`):
  digits   (default) 16 tokens of 256 ids in 8 steps for scikit-learn's handwritten digits. Queries
           hold their place as RandAR's do: rotary positions alone tell distances, and 16 tokens too
           few of them to know where one is.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_l | imagenet256_xl | imagenet256_xxl
           the released models (320 M, 719 M, 1.3 B), 256 tokens in 64 steps, for ImageNet
           through TFDS.
"""

from configs import common, llamagen, tokenizers

VARIANTS = ("digits", "tiny", "imagenet256_l", "imagenet256_xl", "imagenet256_xxl")
GUIDANCE = {"l": 5.0, "xl": 6.0, "xxl": 7.5}


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "arpg"
    config.tokenizer = tokenizers.vqgan()
    config.generator = common.section(
        plan=common.plan("random", steps=8, schedule="arccos"),
        context=common.section(name="query", layout="separate"),
        head=common.categorical(),
        backbone=common.llama("cross_decoder", depth=2, decoder_depth=2, rotate_query=True),
        class_dropout=0.1,
    )
    common.digits(config)
    config.train.generator.update(optimizer="muon", learning_rate=3e-3)
    config.sample.update(guidance=3.0, guidance_shape="linear", guidance_clock="after")
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        size = variant.split("_")[1]
        imagenet(config, *llamagen.SIZES[size][:4], GUIDANCE[size])
    return config


def imagenet(config, width, depth, head_dim, hidden, guidance):
    """A released model: half of the layers encode content, half answer queries."""
    common.imagenet(config)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator.plan.steps = 64
    config.generator.backbone.update(
        width=width, depth=depth // 2, decoder_depth=depth // 2, head_dim=head_dim,
        mlp_hidden=hidden, remat=True, rotate_query=False,
    )  # fmt: skip
    config.sample.guidance = guidance
    config.train.generator.update(
        steps=500_000, optimizer="adamw", learning_rate=4e-4, final_learning_rate=1e-5,
        warmup=125_000, ema=0.0,
    )  # fmt: skip
