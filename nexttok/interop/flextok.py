"""FlexTok in: apple/ml-flextok, and the AutoencoderKL of diffusers under it.

One released file (EPFL-VILAB/flextok_d18_d28_in1k, ...) holds both networks and the autoencoder;
the latter is also a file of its own (EPFL-VILAB/flextok_vae_c16), with the same names.
"""

import re

import numpy as np

from nexttok.config import check
from nexttok.interop import blocks, vqgan
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.nn.flextok import TIME_FREQUENCIES, patch_positions
from nexttok.nn.transformer import TransformerConfig
from nexttok.tokenizers.autoencoder import Autoencoder
from nexttok.tokenizers.flextok import FlexTok

RELEASES = tuple(
    Release(f"{size}, {data}", f"flextok_{size}_{suffix}/model.safetensors",
            f"{HUB}/EPFL-VILAB/flextok_{size}_{suffix}",
            (f"flextok:imagenet256_{size}",))
    for size, data, suffix in (
        ("d12_d12", "ImageNet", "in1k"), ("d18_d18", "ImageNet", "in1k"),
        ("d18_d28", "DFN", "dfn"),  # which EPFL-VILAB/search-over-tokens takes by default
        ("d18_d28", "ImageNet", "in1k"),
    )
)  # fmt: skip
VAE_RELEASES = (
    Release("f8 c16", "flextok_vae_c16/diffusion_pytorch_model.safetensors",
            f"{HUB}/EPFL-VILAB/flextok_vae_c16",
            tuple(f"flextok:imagenet256_{size}" for size in ("d12_d12", "d18_d18", "d18_d28"))),
)  # fmt: skip

ENCODER, DECODER, VAE = "encoder.module_dict.enc_", "decoder.module_dict.dec_", "vae.vae."

# From the names of CompVis, which interop/vqgan.py reads, to those of diffusers.
RENAMES = (
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


class _Diffusers(Converter):
    """Takes entries by their CompVis names from a file with diffusers' ones."""

    def __init__(self, state: dict[str, np.ndarray], what: str, prefix: str, levels: int):
        super().__init__(state, what)
        self.prefix, self.levels = prefix, levels

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The entry as float32, in the shape that CompVis gives it."""
        for pattern, theirs in RENAMES:
            name = re.sub(pattern, theirs, name)
        name = name.replace(".down.", ".down_blocks.")
        deepest_first = lambda found: f".up_blocks.{self.levels - 1 - int(found[1])}."
        name = re.sub(r"\.up\.(\d+)\.", deepest_first, name)
        linear = ".attentions." in name and len(shape) == 4  # 1 x 1 convolutions elsewhere
        return super().take(self.prefix + name, shape[:2] if linear else shape).reshape(shape)


def convert_vae(state: dict[str, np.ndarray], model: Autoencoder | None) -> dict:
    """Parameters {encoder, decoder} of the autoencoder, from either released file.

    Args:
      state: entries of an AutoencoderKL, alone or as `vae.vae.*` of a tokenizer's file.
      model: the autoencoder of the config.

    Raises:
      ConfigError: the config has none, or entries are missing, unknown or mis-shaped.
    """
    check(model is not None, "latent", None, "the autoencoder that this file is for")
    prefix = VAE if any(name.startswith(VAE) for name in state) else ""
    what, levels = "FlexTok's autoencoder", len(model.encoder_sizes.multipliers)
    reader = _Diffusers(state, what, prefix, levels)
    if prefix:
        reader.ignore(r"(encoder|decoder)\.module_dict\.")
    return reader.finish(vqgan.networks(reader, model, "taming"))


def convert(state: dict[str, np.ndarray], model: FlexTok) -> dict:
    """Parameters {encoder, decoder} of the tokenizer.

    No release holds the projector of the alignment loss, which only training reads. Position
    tables, which the file keeps as entries, are compared with the computed ones. The autoencoder's
    entries (`vae.*`) are left to `convert_vae`.

    Args:
      state: the released state dict.
      model: the tokenizer of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "FlexTok's checkpoint")
    reader.ignore(r"vae\.")
    params = {"encoder": _encoder(reader, model), "decoder": _decoder(reader, model)}
    return reader.finish(params)


def _encoder(reader, model):
    width, features = model.encoder_width, model.patch**2 * model.latent_shape[-1]
    _check_positions(reader, f"{ENCODER}posemb_module.posembs", model, width)
    return {
        "patch_embed": reader.linear(f"{ENCODER}patch_emb.patch_proj", features, width),
        "registers": reader.take(f"{ENCODER}register_module.registers", (model.registers, width)),
        "trunk": _trunk(reader, f"{ENCODER}transformer", model.encoder.config),
        "to_latents": reader.linear(f"{ENCODER}to_latents.proj", width, len(model.levels)),
    }


def _decoder(reader, model):
    width, features = model.decoder_width, model.patch**2 * model.latent_shape[-1]
    time, head = f"{DECODER}time_embedder.mlp", f"{DECODER}to_patches"
    _check_positions(reader, f"{DECODER}patches_posemb_module.posembs", model, width)
    positions = reader.take(
        f"{DECODER}registers_posemb_module.posembs", (1, 1, width, model.registers)
    )
    mask = reader.take(f"{DECODER}nested_dropout.dropout_mask_token", (width,))
    null = reader.take(f"{DECODER}latent_dropout.nullcond", (width,))
    return {
        "from_latents": reader.linear(f"{DECODER}from_latents.proj", len(model.levels), width),
        "positions": positions[0, 0].T,
        "mask_token": mask[None],
        "null_token": null[None],
        "patch_embed": reader.linear(f"{DECODER}noise_patch_emb.patch_proj", features, width),
        "time1": reader.linear(f"{time}.0", TIME_FREQUENCIES, width),
        "time2": reader.linear(f"{time}.2", width, width),
        "trunk": _trunk(reader, f"{DECODER}transformer", model.decoder.config),
        "adaln": reader.linear(f"{head}.adaLN_modulation.1", width, 2 * width),
        "to_patches": reader.linear(f"{head}.proj", width, features),
    }


def _trunk(reader: Converter, root: str, c: TransformerConfig) -> dict:
    def block(i):
        name = f"{root}.blocks.{i}"
        projections = ("wq", "wk", "wv", "proj")
        parts = {fc: f"{name}.mlp.{fc}" for fc in ("fc1", "fc2", "fc3")}
        params = {
            "attn": {w: reader.linear(f"{name}.attn.{w}", c.width, c.width, False)
                     for w in projections},
            "mlp": blocks.mlp(reader, c.width, c.mlp_hidden, False, **parts),
        }  # fmt: skip
        if c.adaln:
            outputs = c.adaln * 6 * c.width
            params["adaln"] = reader.linear(f"{name}.adaLN_modulation.1", c.width, outputs)
        return params

    return {"blocks": stacked(block, c.depth)}


def _check_positions(reader, name, model, width):
    """Notes a problem unless the file's fixed table is the one the network computes."""
    grid = tuple(side // model.patch for side in model.latent_shape[:2])
    before = len(reader.problems)
    table = reader.take(name, (1, width, *grid)).reshape(width, -1).T
    same = np.allclose(table, patch_positions(grid, width, model.positions), atol=1e-2)
    if len(reader.problems) == before and not same:
        reader.problems.append(f"{name} is not config.tokenizer.positions = {model.positions!r}")
