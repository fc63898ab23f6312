"""Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation (xAR, Ren et al.,
2025).

    python -m nexttok.main --config=configs/xar.py --workdir=runs/xar

Variants (`--config=configs/xar.py:<variant>`):
  digits       (default) 4 cells of 4 continuous tokens for scikit-learn's handwritten digits.
  subsamples   the same with interleaved grids instead of cells.
  scales       maps of side 1, 2 and 4 of the same latents, coarse to fine.
  whole        the whole image as one entity (a flow matching model without autoregression).
  tiny         the whole path, training to pictures, in under a minute.
  imagenet256_b | imagenet256_l | imagenet256_h
               the released models (172 M, 608 M, 1.1 B), 4 cells of 64 tokens, for ImageNet
               through TFDS.
"""

from configs import common, tokenizers

# width, layers of each half, head_dim, hidden width int(8 width / 3), solver steps, guidance
SIZES = {
    "b": (768, 8, 64, 2048, 40, 2.7),
    "l": (1024, 16, 64, 2730, 50, 2.3),
    "h": (1280, 20, 80, 3413, 50, 2.2),
}
VARIANTS = (
    "digits", "subsamples", "scales", "whole", "tiny", "imagenet256_b", "imagenet256_l",
    "imagenet256_h",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "xar"
    config.tokenizer = tokenizers.kl()
    config.generator = generator()
    common.digits(config)
    config.sample.update(guidance=2.0, guidance_shape="linear", guidance_clock="step")
    if variant in ("subsamples", "whole"):
        config.generator.plan = common.plan(variant, block=2 if variant == "subsamples" else 0)
        if variant == "whole":  # one step: nothing grows
            config.sample.guidance_shape = "constant"
    elif variant == "scales":
        config.tokenizer = tokenizers.pyramid((1, 2, 4))
        config.generator.plan = common.plan("scales")
    elif variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        imagenet(config, *SIZES[variant.split("_")[1]])
    return config


def generator(**sizes):
    """Two stacks with adaLN per cell, rotary and learned positions; the network is a velocity."""
    options = dict(
        depth=2, decoder_depth=2, activation="gelu", gated=True, mlp_hidden=341, norm="rms",
        norm_eps=1e-6, norm_affine=False, bias=True, mlp_bias=True, init="xavier",
        adaln_gain=(1.0, 1.0), positions=("learned", "rope"), condition=("adaln",),
        start_vector=False, null_class=True, embed_norm="rms", final_norm="rms",
        embed_init="normal02",
    )  # fmt: skip
    return common.section(
        plan=common.plan("cells", block=2),
        context=common.section(name="noise"),
        head=common.section(name="flow", steps=25, solver="sde"),
        backbone=common.backbone("encoder_decoder", **(options | sizes)),
        class_dropout=0.1,
    )


def imagenet(config, width, depth, head_dim, hidden, steps, guidance):
    """A released model: 800 epochs of 2,048 images.

    The release holds the learning rate until epoch 600; here its cosine starts after warm-up.
    """
    common.imagenet(config)
    config.tokenizer = tokenizers.kl_f16()
    config.generator = generator(
        width=width, depth=depth, decoder_depth=depth, head_dim=head_dim, mlp_hidden=hidden,
        remat=True, dropout_on=("weights", "attention", "hidden", "mlp"),
    )  # fmt: skip
    config.generator.head.steps = steps
    config.sample.guidance = guidance
    config.train.generator.update(
        steps=500_000, batch_size=2048, learning_rate=4e-4, final_learning_rate=1e-5,
        weight_decay=0.02, b2=0.96, warmup=62_500, ema=0.9999,
    )  # fmt: skip
