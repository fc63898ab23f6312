"""DINOv2 weights (facebookresearch/dinov2, vit_*14) from a checkpoint file."""

import jax
import numpy as np

from nexttok.config import check
from nexttok.interop.checkpoints import Converter, pick, read
from nexttok.interop.releases import Release
from nexttok.nn.vit import PRESETS, ViTConfig

RELEASES = tuple(
    Release(
        f"ViT-{size}", f"dinov2_vit{size}14{suffix}_pretrain.pth",
        f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14",
        (f"--config.features.preset={preset}",
         f"--config.features.checkpoint=dinov2_vit{size}14{suffix}_pretrain.pth"),
    )
    for size, suffix, preset in (
        ("s", "", "small"), ("b", "", "base"), ("l", "", "large"),
        ("l", "_reg4", "large_registers"), ("b", "_reg4", "base_registers_third_last"),
    )
)  # fmt: skip


def convert(state: dict[str, np.ndarray], config: ViTConfig) -> dict:
    """Official entries -> float32 parameters of nexttok.nn.vit.ViT; `mask_token` and
    blocks that the config leaves unread are not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader, d, p = Converter(state, "DINOv2 checkpoint"), config.width, config.patch
    last = [config.depth + i for i in range(config.unread)]
    reader.ignore("|".join(["mask_token$", *[rf"blocks\.{i}\." for i in last]]))

    def stack(read):
        layers = [read(f"blocks.{i}.") for i in range(config.depth)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)

    def attention(block):
        fused = reader.linear(f"{block}attn.qkv", d, 3 * d)
        thirds = {k: np.split(v, 3, axis=-1) for k, v in fused.items()}
        names = {"wq": 0, "wk": 1, "wv": 2}
        split = {n: {k: v[i] for k, v in thirds.items()} for n, i in names.items()}
        return split | {"proj": reader.linear(f"{block}attn.proj", d, d)}

    patch = reader.conv("patch_embed.proj", 3, d, p)
    params = {
        "patch_embed": {"kernel": patch["kernel"].reshape(-1, d), "bias": patch["bias"]},
        "cls_token": reader.take("cls_token", (1, 1, d))[0],
        "positions": reader.take("pos_embed", (1, 1 + config.stored_grid**2, d))[0],
        "blocks": {
            "norm1": stack(lambda b: reader.norm(f"{b}norm1", d)),
            "norm2": stack(lambda b: reader.norm(f"{b}norm2", d)),
            "attn": stack(attention),
            "fc1": stack(lambda b: reader.linear(f"{b}mlp.fc1", d, 4 * d)),
            "fc2": stack(lambda b: reader.linear(f"{b}mlp.fc2", 4 * d, d)),
            "ls1/gamma": stack(lambda b: reader.take(f"{b}ls1.gamma", (d,))),
            "ls2/gamma": stack(lambda b: reader.take(f"{b}ls2.gamma", (d,))),
        },
        "norm": reader.norm("norm", d),
    }
    if config.registers:
        params["register_tokens"] = reader.take("register_tokens", (1, config.registers, d))[0]
    return reader.finish(params)


def load(path: str, preset: str) -> dict:
    """Reads a checkpoint file of official names.

    Raises:
      ConfigError: unknown preset, no such file, a file that cannot be read, or entries that do
        not fit the preset.
    """
    check(preset in PRESETS, "features.preset", preset, " | ".join(PRESETS))
    return convert(pick(read(path, "features.checkpoint")), PRESETS[preset])
