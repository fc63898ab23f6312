"""DetailFlow: 1D Coarse-to-Fine Autoregressive Image Generation via Next-Detail Prediction
(Liu et al., 2025).

    python -m nexttok.main --config=configs/detailflow.py --workdir=runs/detailflow

Variants (`--config=configs/detailflow.py:<variant>`):
  digits   (default) 16 codes of 256 in groups of 4, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs as 64 codes of 1,024 in groups of 8.
  tiny     seconds: the whole path.
  imagenet256_16 | imagenet256_32 | imagenet256_64
           the released sizes: 128, 256 or 512 unit codes of 8,192 in groups of 8, for ImageNet
           through TFDS, with the paper's GPT-L. Here networks start at random, where the paper
           starts its encoder from SigLIP 2; DINOv2 stands for SigLIP 2 in the alignment, a PatchGAN
           for the DINO discriminator with its augmentations, and LPIPS counts from the first step.

The tokenizer trains alone unless `--config.stages=tokenizer,generator` adds the generator: the
first group token by token, then a group a step. It learns from clean codes; the corrected sequences
that the paper adds (`DetailFlow.corrected`) are not among its training data yet.
"""

from configs import common, tokenizers

TOKENS = {"16": (128, 1.45), "32": (256, 1.5), "64": (512, 1.32)}  # and guidance, by steps
VARIANTS = (
    "digits", "photos", "tiny", "imagenet256_16", "imagenet256_32", "imagenet256_64",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("detailflow")
    group = 4 if variant in ("digits", "tiny") else 8
    config.tokenizer = tokenizer(network((4, 4), 128, 4, 16), tokenizers.codes(), group)
    config.generator.plan = common.plan("blocks", block=group, lead=True)
    config.generator.context.name = "block"
    if variant == "photos":
        tokenizers.photos(config)
        codes = tokenizers.codes(size=1024)
        config.tokenizer = tokenizer(network((4, 4), 128, 4, 64), codes, group)
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant != "digits":
        imagenet(config, *TOKENS[variant.split("_")[1]])
    return config


def network(patch, width, depth, registers, **changes):
    """SigLIP's blocks with registers, learned positions."""
    return tokenizers.transformer(
        patch, width, depth, registers=registers, positions="learned", norm_affine=True, bias=True,
        **changes,
    )  # fmt: skip


def tokenizer(sizes, codes, group, decoder=None, **losses):
    """The encoder's registers are causal by groups; both networks of one size unless told."""
    section = tokenizers.autoencoder(sizes, codes, decoder, **losses)
    section.name = "detailflow"
    section.encoder.update(visible="causal", group=group)
    section.update(
        degrade=0.2,  # share of batches drawn from fewer than all tokens
        power=1.5,  # how resolution grows with them
        correct=True,  # self-correction
        neighbours=50,  # nearest codes among which a disturbed one is drawn
        align_weight=0.0,  # of the first token's alignment to config.features
        align_hidden=1024,
    )
    return section


def imagenet(config, tokens, guidance):
    """The released sizes and the optimizer of their code: Adam at 1e-4, 250 epochs."""
    common.imagenet(config)
    config.features.update(name="dinov2", preset="large", checkpoint="dinov2_vitl14.safetensors")
    encoder = network((16, 16), 1152, 12, tokens, head_dim=72, mlp_hidden=4304, remat=True)
    decoder = dict(width=768, head_dim=64, mlp_hidden=3072)
    config.tokenizer = tokenizer(
        encoder, tokenizers.codes(size=8192), 8, decoder, perceptual_weight=1.0,
        adversarial_weight=0.2, discriminator_start=40_000, lecam_weight=0.001,
    )  # fmt: skip
    config.tokenizer.align_weight = 1.0
    config.generator.backbone = common.llama(
        width=1024, depth=24, head_dim=64, mlp_hidden=2816, remat=True
    )
    config.sample.guidance = guidance
    config.train.tokenizer.update(
        steps=1_250_000, batch_size=256, optimizer="adam", final_learning_rate=1e-5, ema=0.0
    )
    config.train.generator.update(
        steps=750_000 if tokens < 512 else 1_500_000, batch_size=512 if tokens < 512 else 256,
        learning_rate=1e-4,
    )  # fmt: skip
