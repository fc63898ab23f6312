"""LARP: "LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior" (Wang et al.,
2024).

    python -m nexttok.main --config=configs/larp.py --workdir=runs/larp

Variants (`--config=configs/larp.py:<variant>`):
  shapes       (default) 8 frames of 16 x 16 moving shapes as 64 codes of 512 in no grid.
  tiny         seconds: the whole path.
  k600_l_long  the released LARP-L-long: 16 frames of 128 x 128 as 1,024 codes of 8,192, of class
               folders of animated pictures (--config.data.source=folder:<path>); trained by its
               authors on Kinetics-600 and UCF-101.

    python -m nexttok.interop --system=larp --checkpoint=model.safetensors --out=runs/larp_l

Training draws codes and a small transformer learns to foretell them, which orders them; tokens are
the nearest codes. The adversary of the released size is here a PatchGAN of frames with hinge
losses, trained at every step; the paper's is a transformer over the clip with noisily smoothed
targets, trained at every fifth. Nor are clips mirrored in training. The paper's generator is
another, larger transformer, which is not among its variants; --config.stages=tokenizer,generator
adds the small one of the other tokenizers.
"""

from configs import common, tokenizers

VARIANTS = ("shapes", "tiny", "k600_l_long")


def get_config(variant="shapes"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("larp")
    tokenizers.shapes(config)
    config.data.resolution = 16
    config.train.tokenizer.update(steps=1400, batch_size=16)
    config.tokenizer = tokenizer(
        network((4, 4, 4), 128, 4, 64), prior(64, 64, 2, ramp=420, channels=8, size=512),
        reconstruction="l2", reconstruction_weight=4.0,
    )  # fmt: skip
    if variant == "tiny":
        config.tokenizer = tokenizer(
            network((4, 8, 8), 32, 1, 8), prior(8, 32, 1, ramp=18, channels=8, size=64),
            reconstruction="l2", reconstruction_weight=4.0,
        )  # fmt: skip
        tokenizers.tiny(config)
    elif variant != "shapes":
        kinetics(config)
    return config


def network(patch, width, depth, registers, **changes):
    """timm's blocks over patches and registers, whose latents are not normalized."""
    return tokenizers.transformer(
        patch, width, depth, registers=registers, positions="sincos_sum", norm_affine=True,
        bias=True, qkv_bias=False, activation="gelu", final_norm=False, **changes,
    )  # fmt: skip


def prior(length, width, depth, ramp, head_dim=32, **codes):
    """Drawn unit codes, whose losses the trainer weighs by 0.1, and the prior over them."""
    book = dict(temperature=0.03, beta=0.025, beta_codebook=0.1, init_codes="kaiming")
    return dict(
        name="prior", codes=tokenizers.codes(**book, **codes), length=length, width=width,
        depth=depth, head_dim=head_dim, dropout=0.1, weight=0.06, rounds=2, replaced=0.5, ramp=ramp,
    )  # fmt: skip


def tokenizer(network, bottleneck, **losses):
    """The decoder normalizes at its end and starts from pictures of zeros."""
    return tokenizers.autoencoder(
        network, bottleneck, dict(final_norm=True, zero_output=True), **losses
    )


def kinetics(config):
    """The released sizes and optimizer; pixels lie in [-1, 1], so half the paper's L1 is 0.5."""
    common.imagenet(config, 128)
    config.data.update(source="folder:kinetics600", frames=16, num_classes=600, augment="none")
    config.tokenizer = tokenizer(
        network((4, 8, 8), 768, 12, 1024, head_dim=64, remat=True),
        prior(1024, 384, 12, ramp=141_000, head_dim=64, channels=16, size=8192),
        reconstruction="l1", reconstruction_weight=0.5, perceptual_weight=1.0,
        adversarial_weight=0.3, lecam_weight=1e-6,  # the authors' loss takes their 0.001 twice
    )  # fmt: skip
    config.train.tokenizer.update(
        steps=470_000, batch_size=128, optimizer="adam", learning_rate=1e-4,
        final_learning_rate=1e-6, warmup=25_000, b1=0.5, b2=0.9, clip=0.0, ema=0.0,
        rates=("quantizer/prior:50", "discriminator:0.3"),
    )  # fmt: skip
