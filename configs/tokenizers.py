"""Sections of the tokenizers that several papers share, released sizes included; and what configs
of tokenizers alone share."""

from configs import common
from configs.common import section

LOSSES = dict(
    reconstruction="l2",  # l2 | l1
    reconstruction_weight=1.0,
    perceptual_weight=0.0,
    perceptual_checkpoint="",  # LPIPS and VGG16 files; "" for a Laplacian pyramid
    adversarial_weight=0.0,
    adaptive_weight=False,
    discriminator="patch",  # patch | dino
    discriminator_checkpoint="",  # the file of DINO's ViT-S/16
    discriminator_start=0,
    discriminator_width=64,
    discriminator_layers=3,
    discriminator_norm="batch",  # batch | group
    lecam_weight=0.0,
    align_weight=0.0,  # of the decoder's features with config.features
    align_layer=0,
    warm_start=0,  # steps in which a decoder of two halves also draws the encoder's map
)

DIGITS = dict(
    name="conv", width=32, multipliers=(1, 2, 2), blocks=1, attention=(), groups=8, z_channels=0,
    quant_kernel=1,
)  # fmt: skip
F16 = dict(
    name="conv", width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), groups=32,
    z_channels=0, quant_kernel=1,
)  # fmt: skip
POOLED_F16 = dict(name="pooled_conv", width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, groups=32)
UNIT_CODES = dict(
    name="vq", channels=8, size=256, normalize=True, beta=0.25, beta_codebook=1.0,
    entropy_weight=0.0, gradient="straight", update="gradient", decay=0.99, revive="none",
    revive_below=0.0, init_codes="uniform", temperature=0.0,
)  # LlamaGen's # fmt: skip
ADVERSARY = dict(perceptual_weight=1.0, adversarial_weight=0.5)


def autoencoder(network, bottleneck, decoder=None, **losses):
    """Both networks of one kind, unless the decoder is told otherwise."""
    return section(
        name="autoencoder",
        encoder=section(**network),
        decoder=section(**(network | (decoder or {}))),
        bottleneck=section(**bottleneck),
        losses=section(**(LOSSES | losses)),
    )


def codes(**changes):
    """A codebook; 256 unit codes of 8 channels, trained by gradient."""
    return UNIT_CODES | changes


def restarted(channels, size, below=1.0):
    """Moving averages, the first from the first batch; a code used less than `below` times a batch
    is replaced."""
    return codes(
        channels=channels, size=size, normalize=False, update="ema", init_codes="kmeans",
        revive="random", revive_below=below,
    )  # fmt: skip


def hierarchy(inputs, networks, codes, combine="concat", dropout=0.0):
    """Codes of several levels; networks join each level to the coarser one, coarse to fine."""
    joins = {f"level{k + 1}": section(**network) for k, network in enumerate(networks)}
    return dict(
        name="hierarchy", inputs=inputs, combine=combine, dropout=dropout,
        networks=section(**joins), codes=section(**codes),
    )  # fmt: skip


def config(name):
    """Of a tokenizer of digits. Its codes can be generated: --config.stages=tokenizer,generator."""
    found = common.base()
    found.name, found.stages = name, ("tokenizer",)
    found.generator = section(
        plan=common.plan("raster"), context=section(name="shift"), head=common.categorical(),
        backbone=common.backbone(), class_dropout=0.1,
    )  # fmt: skip
    common.digits(found)
    found.train.tokenizer.update(steps=600, optimizer="muon", learning_rate=4e-3)
    return found


def photos(found):
    """32 x 32 crops of photographs, without classes."""
    found.data.update(source="photos", resolution=32, channels=3, num_classes=1, augment="none")
    found.train.tokenizer.update(steps=1000, batch_size=32)
    found.eval.images = 200


def shapes(found):
    """8 frames of 32 x 32 moving shapes; a class is the kind of the one large shape."""
    found.data.update(
        source="shapes", frames=8, resolution=32, channels=3, num_classes=6, augment="none"
    )
    found.train.tokenizer.batch_size = 32


def tiny(found):
    """As everywhere (common.tiny), with networks of transformers narrow as well."""
    common.tiny(found)
    for part in ("encoder", "decoder"):
        network = found.tokenizer[part]
        if network.name == "vit":
            network.update(width=32, depth=1, head_dim=16, mlp_hidden=64)
        elif network.name == "strided":
            network.update(width=32, blocks=1, residual=16)
    if found.tokenizer.bottleneck.name == "hierarchy":
        found.tokenizer.bottleneck.inputs = 32
        for network in found.tokenizer.bottleneck.networks.values():
            network.update(width=32, blocks=1)


def vqgan():
    """LlamaGen's VQGAN at digits size: f4, 256 unit codes of 8 channels."""
    return autoencoder(DIGITS, UNIT_CODES)


def vqgan_f16():
    """LlamaGen's released VQ-16 with its losses."""
    codes = UNIT_CODES | dict(size=16384)
    return autoencoder(F16 | dict(z_channels=256), codes, **ADVERSARY, discriminator_start=20_000)


def maskgit_f16():
    """MaskGIT's released tokenizer, of 256 and of 512 pixels; its adversary here is a PatchGAN."""
    codes = UNIT_CODES | dict(channels=256, size=1024, normalize=False, entropy_weight=0.1)
    return autoencoder(POOLED_F16, codes, perceptual_weight=0.1, adversarial_weight=0.1)


def posterior(**changes):
    """A KL bottleneck of 4 channels of about unit variance."""
    keys = dict(name="kl", channels=4, kl_weight=1e-2, scaling_factor=1.0, sample_posterior=True)
    return keys | changes


def kl():
    """A KL autoencoder at digits size: f4."""
    return autoencoder(DIGITS, posterior())


def gumbel(**changes):
    """A discrete VAE's bottleneck: 256 codes of 64 channels, cooled in 400 steps."""
    keys = dict(
        name="gumbel", channels=64, size=256, temperature=1.0, final_temperature=0.1, anneal=400,
        hard=False, kl_weight=0.0,
    )  # fmt: skip
    return keys | changes


def pyramid(sides):
    """Its latents as maps of growing side."""
    return autoencoder(DIGITS, posterior(name="pyramid", sides=sides))


def kl_f16():
    """MAR's kl16: stride 16, 16 channels, latents times 0.2325."""
    latents = posterior(channels=16, scaling_factor=0.2325, kl_weight=1e-6)
    return autoencoder(
        F16, latents, dict(attention=()), **ADVERSARY, adaptive_weight=True,
        discriminator_start=50_000,
    )  # fmt: skip


def givt_f16(kl_weight):
    """GIVT's released beta-VAE: MaskGIT's network, 16 channels not scaled; losses as of kl_f16."""
    latents = posterior(channels=16, kl_weight=kl_weight)
    return autoencoder(
        POOLED_F16, latents, **ADVERSARY, adaptive_weight=True, discriminator_start=50_000
    )


def maps(**changes):
    """VAR's bottleneck at digits size: maps of side 1, 2, 3, 4."""
    keys = dict(
        name="multiscale", channels=16, size=256, normalize=False, beta=0.25, sides=(1, 2, 3, 4),
        phis=4, phi_ratio=0.5, resize="area",
    )  # fmt: skip
    return keys | changes


def multiscale():
    """VAR's multi-scale residual VQ at digits size: f4."""
    return autoencoder(DIGITS | dict(quant_kernel=3), maps())


def multiscale_f16(sides):
    """VAR's released vae_ch160v4096z32."""
    return autoencoder(
        F16 | dict(width=160, quant_kernel=3), maps(channels=32, size=4096, sides=sides),
        **ADVERSARY, discriminator_start=20_000,
    )  # fmt: skip


def transformer(patch, width, depth, **changes):
    """Sizes of a plain vision transformer."""
    keys = dict(
        name="vit", patch=patch, width=width, depth=depth, head_dim=32, mlp_hidden=4 * width,
        gated=False, activation="gelu_tanh", bias=False, qkv_bias=True, norm_affine=False,
        final_norm=True, zero_output=False, positions="sincos", registers=0, visible="all",
        group=1, class_token=False, pre_norm=False, scrambled=False, remat=False,
    )  # fmt: skip
    return keys | changes


def video():
    """Codes of the moving shapes: 1,024 unit codes, each of 2 x 8 x 8 pixels.

    Patches and a transformer, as convolutions in three dimensions are slow on CPUs.
    """
    network = transformer((2, 8, 8), 144, 4) | dict(head_dim=36)
    return autoencoder(network, UNIT_CODES | dict(size=1024), reconstruction_weight=4.0)


def videogpt(**changes):
    """VideoGPT's 3D convolutions at the size of the moving shapes."""
    network = dict(
        name="video", width=48, stride=(2, 8, 8), blocks=1, heads=2, groups=8, causal=False
    )
    return autoencoder(network | changes, UNIT_CODES, reconstruction_weight=4.0)


def magvit2():
    """Next Block Prediction's released tokenizer: 64,000 codes, each of 4 x 8 x 8 pixels."""
    network = dict(
        name="magvit2", width=128, multipliers=(1, 2, 2, 4), blocks=4, time_levels=2, groups=32
    )
    codes = dict(name="fsq", levels=(8, 8, 8, 5, 5, 5), printed=True)
    return autoencoder(network, codes, reconstruction="l1")
