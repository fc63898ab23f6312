"""Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation (LlamaGen, Sun et al.,
2024).

    python -m nexttok.main --config=configs/llamagen.py --workdir=runs/llamagen

Variants (`--config=configs/llamagen.py:<variant>`):
  digits   (default) 16 tokens of 256 ids for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_b | imagenet256_l | imagenet384_b | imagenet384_l | imagenet384_xl |
  imagenet384_xxl | imagenet384_3b
           the released models (111 M, 343 M, 775 M, 1.4 B, 3.1 B) for ImageNet through TFDS, 256
           tokens at 256 x 256 and 576 at 384 x 384.
  imagenet256_xl | imagenet256_xxl
           the paper's other models of 256 tokens, whose weights were not released.
"""

from configs import common, tokenizers

# width, depth, head_dim, hidden width of SwiGLU (256 ceil(8 width / 3 / 256)), guidance
SIZES = {
    "b": (768, 12, 64, 2048, 2.0),
    "l": (1024, 24, 64, 2816, 2.0),
    "xl": (1280, 36, 64, 3584, 1.75),
    "xxl": (1536, 48, 64, 4096, 1.75),
    "3b": (3200, 24, 100, 8704, 1.65),
}
VARIANTS = (
    "digits", "tiny", "imagenet256_b", "imagenet256_l", "imagenet256_xl", "imagenet256_xxl",
    "imagenet384_b", "imagenet384_l", "imagenet384_xl", "imagenet384_xxl", "imagenet384_3b",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "llamagen"
    config.tokenizer = tokenizers.vqgan()
    config.generator = common.section(
        plan=common.plan("raster"),
        context=common.section(name="shift"),
        head=common.categorical(),
        backbone=common.llama(),
        class_dropout=0.1,
    )
    common.digits(config)
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        resolution, size = variant.removeprefix("imagenet").split("_")
        imagenet(config, int(resolution), *SIZES[size])
    return config


def get_sweep(variant="digits"):
    """Learning rates of the generator; config.tokenizer_checkpoint spares each the tokenizer."""
    rate = get_config(variant).train.generator.learning_rate
    return common.product({"train.generator.learning_rate": (rate / 2, rate, 2 * rate)})


def imagenet(config, resolution, width, depth, head_dim, hidden, guidance):
    """A model of the paper; AdamW at 1e-4 per 256 images, constant."""
    common.imagenet(config, resolution)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator.backbone.update(
        width=width, depth=depth, head_dim=head_dim, mlp_hidden=hidden, remat=True
    )
    config.sample.guidance = guidance
    config.train.generator.update(
        steps=1_500_000, batch_size=256, learning_rate=1e-4, schedule="constant", warmup=0
    )
