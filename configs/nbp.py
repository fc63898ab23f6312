"""Next Block Prediction: Video Generation via Semi-Autoregressive Modeling (Ren et al., 2025).

    python -m nexttok.main --config=configs/nbp.py --workdir=runs/nbp

Variants (`--config=configs/nbp.py:<variant>`):
  digits   (default) rows of 4 tokens a step for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_base | imagenet256_xl | imagenet256_3b
           the paper's transformers (700 M, 1.2 B, 3 B), rows of 16 tokens, for ImageNet.
"""

from configs import common, tokenizers

# width, depth, head_dim
SIZES = {"base": (1536, 24, 96), "xl": (2048, 24, 64), "3b": (3072, 32, 96)}
VARIANTS = ("digits", "tiny", "imagenet256_base", "imagenet256_xl", "imagenet256_3b")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "nbp"
    config.tokenizer = tokenizers.vqgan()
    config.generator = generator()
    common.digits(config)
    if variant == "tiny":
        common.tiny(config)
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


def imagenet(config, width, depth, head_dim):
    """The paper's sizes."""
    common.imagenet(config)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator = generator(
        width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, remat=True
    )
    config.sample.update(top_k=16_000, top_p=0.9, guidance=1.5)
    config.train.generator.update(learning_rate=6e-4, weight_decay=0.01, ema=0.0)
