"""Sections of small autoencoders, whose parts' keys are changed by name."""

from configs import tokenizers

CONV = dict(
    name="conv", width=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, z_channels=0,
    quant_kernel=1,
)  # fmt: skip
VQ = tokenizers.UNIT_CODES | dict(channels=4, size=16)
KL = dict(name="kl", channels=4, kl_weight=1e-6, scaling_factor=1.0, sample_posterior=True)
MAPS = dict(
    name="multiscale", channels=4, size=16, normalize=False, beta=0.25, sides=(1, 2, 4), phis=3,
    phi_ratio=0.5, resize="area",
)  # fmt: skip
LOSSES = dict(discriminator_width=4, discriminator_layers=2, discriminator_norm="group")


def changed(section, **changes):
    """Sets each key in every part that has it; decoder_<key> in the decoder alone."""
    for name, value in changes.items():
        own = name.startswith("decoder_")
        parts = ("decoder",) if own else ("encoder", "decoder", "bottleneck", "losses")
        key = name.removeprefix("decoder_")
        found = [section[part] for part in parts if key in section[part]]
        assert found, name
        for part in found:
            part[key] = value
    return section


def autoencoder(bottleneck=VQ, network=CONV, **changes):
    """A tiny one, changed."""
    return changed(tokenizers.autoencoder(network, bottleneck, **LOSSES), **changes)
