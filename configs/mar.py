"""Autoregressive Image Generation without Vector Quantization (MAR, Li et al., 2024).

    python -m nexttok.main --config=configs/mar.py --workdir=runs/mar

Variants (`--config=configs/mar.py:<variant>`):
  digits   (default) 16 continuous tokens in 8 steps for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_b | imagenet256_l | imagenet256_h
           the released models (208 M, 479 M, 943 M) for ImageNet through TFDS.
"""

from configs import common, tokenizers

# width, layers of each half, head_dim, width and depth of the diffusion head, guidance
SIZES = {
    "b": (768, 12, 64, 1024, 6, 2.9),
    "l": (1024, 16, 64, 1280, 8, 3.0),
    "h": (1280, 20, 80, 1536, 12, 3.2),
}
VARIANTS = ("digits", "tiny", "imagenet256_b", "imagenet256_l", "imagenet256_h")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "mar"
    config.tokenizer = tokenizers.kl()
    config.generator = generator()
    common.digits(config)
    config.train.tokenizer.steps = 800
    config.train.generator.update(
        steps=800, batch_size=96, optimizer="muon", learning_rate=3e-3
    )  # fmt: skip
    config.sample.update(guidance=2.0, guidance_shape="linear", guidance_clock="masked")
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        imagenet(config, *SIZES[variant.split("_")[1]])
    return config


def generator(prefix=4, **sizes):
    """A masked autoencoder with class slots in front, and a diffusion head."""
    options = dict(
        depth=2, decoder_depth=2, activation="gelu", norm_eps=1e-6, bias=True, mlp_bias=True,
        init="xavier", embed_norm="layer", start_vector=False, null_class=True,
        condition=("prefix",), prefix=prefix, output_positions=True, embed_init="normal02",
    )  # fmt: skip
    return common.section(
        plan=common.plan("random", steps=8, schedule="cosine"),
        context=common.mask(schedule="truncated_normal", floor=0.7),
        head=common.section(name="diffusion", width=128, depth=3, repeats=4, steps=100, clip=4.0),
        backbone=common.backbone("encoder_decoder", **(options | sizes)),
        class_dropout=0.1,
    )


def imagenet(config, width, depth, head_dim, head_width, head_depth, guidance):
    """A released model: 800 epochs of 2,048 images at a constant rate; `guidance` is that of 256
    steps (config.sample.steps = 64 is faster)."""
    common.imagenet(config)
    config.tokenizer = tokenizers.kl_f16()
    config.generator = generator(
        prefix=64, width=width, depth=depth, decoder_depth=depth, head_dim=head_dim,
        mlp_hidden=4 * width, remat=True, dropout_on=("weights", "attention", "hidden", "mlp"),
    )  # fmt: skip
    config.generator.plan.steps = 256
    config.generator.head.update(width=head_width, depth=head_depth, steps=100, clip=0.0)
    config.sample.guidance = guidance
    config.train.generator.update(
        steps=500_000, batch_size=2048, optimizer="adamw", learning_rate=8e-4, weight_decay=0.02,
        clip=3.0, schedule="constant", warmup=62_500, ema=0.9999,
    )  # fmt: skip
