"""DINO's ViT-S/16 (facebookresearch/dino, dino_deitsmall16_pretrain.pth), for the discriminator."""

import jax
import numpy as np

from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, pick, read, stacked
from nexttok.interop.releases import Release
from nexttok.nn.dino import DinoConfig

RELEASES = (
    Release(
        "ViT-S/16", "dino_deitsmall16_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain",
        ("--config.tokenizer.losses.discriminator=dino",
         "--config.tokenizer.losses.discriminator_checkpoint=dino_deitsmall16_pretrain.pth"),
    ),
)  # fmt: skip


def _block(reader: Converter, name: str, width: int) -> dict:
    attention = blocks.vit_attention(reader, f"{name}.attn", width)
    del attention["wk"]["bias"]  # it changes no attention weight
    return {
        "norm1": reader.norm(f"{name}.norm1", width),
        "attn": attention,
        "norm2": reader.norm(f"{name}.norm2", width),
        "mlp": blocks.mlp(reader, width, 4 * width, fc1=f"{name}.mlp.fc1", fc2=f"{name}.mlp.fc2"),
    }


def convert(state: dict[str, np.ndarray], config: DinoConfig) -> dict:
    """Official entries -> parameters of nn.dino.readouts; the last norm is not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader, width = Converter(state, "DINO checkpoint"), config.width
    reader.ignore(r"norm\.")
    patch = reader.conv("patch_embed.proj", 3, width, config.patch)
    return reader.finish({
        "patch_embed": {"kernel": patch["kernel"].reshape(-1, width), "bias": patch["bias"]},
        "cls_token": reader.take("cls_token", (1, 1, width))[0],
        "positions": reader.take("pos_embed", (1, 1 + config.patches, width))[0],
        "blocks": stacked(lambda i: _block(reader, f"blocks.{i}", width), config.depth),
    })  # fmt: skip


def shapes() -> dict:
    """The parameters as shapes, for which no file is needed."""
    return jax.eval_shape(DinoConfig().init, jax.random.key(0))


def load(path: str) -> dict:
    """Reads the file.

    Raises:
      ConfigError: no such file, a file that cannot be read, or entries that do not fit.
    """
    found = read(path, "tokenizer.losses.discriminator_checkpoint")
    return convert(pick(found, "teacher"), DinoConfig())
