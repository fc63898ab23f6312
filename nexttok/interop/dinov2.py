"""DINOv2 weights (facebookresearch/dinov2, vit_*14) from a .safetensors file."""

import pathlib

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nexttok.config import ConfigError, check
from nexttok.nn.vit import PRESETS, ViTConfig


def expected(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official state dict."""
    d, p = config.width, config.patch
    names = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + config.stored_grid**2, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if config.registers:
        names["register_tokens"] = (1, config.registers, d)
    for i in range(config.depth):
        for part, width in (("attn.qkv", (3 * d, d)), ("attn.proj", (d, d)),
                            ("mlp.fc1", (4 * d, d)), ("mlp.fc2", (d, 4 * d))):  # fmt: skip
            names[f"blocks.{i}.{part}.weight"] = width
            names[f"blocks.{i}.{part}.bias"] = width[:1]
        for part in ("norm1", "norm2"):
            names[f"blocks.{i}.{part}.weight"] = names[f"blocks.{i}.{part}.bias"] = (d,)
        names[f"blocks.{i}.ls1.gamma"] = names[f"blocks.{i}.ls2.gamma"] = (d,)
    return names


def check_names(state: dict[str, np.ndarray], names: dict[str, tuple[int, ...]], what: str) -> None:
    """Raises ConfigError listing every missing, unknown and mis-shaped entry."""
    problems = [f"missing {n}" for n in names if n not in state]
    problems += [f"unknown {n}" for n in state if n not in names]
    problems += [
        f"{n} is {state[n].shape} instead of {s}"
        for n, s in names.items()
        if n in state and state[n].shape != s
    ]
    if problems:
        raise ConfigError(f"{what}: {'; '.join(problems)}")


def convert(state: dict[str, np.ndarray], config: ViTConfig) -> dict:
    """Official entries -> float32 parameters of nexttok.nn.vit.ViT; `mask_token` is not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    state = {k: v.astype(np.float32) for k, v in state.items() if k != "mask_token"}
    check_names(state, expected(config), "DINOv2 checkpoint")

    def stack(name, change=lambda x: x):
        return np.stack([change(state[f"blocks.{i}.{name}"]) for i in range(config.depth)])

    def linear(name):
        return {"kernel": stack(f"{name}.weight", np.transpose), "bias": stack(f"{name}.bias")}

    def norm(name):
        return {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    def third(i):
        d = config.width
        return {
            "kernel": stack("attn.qkv.weight", lambda x: x[i * d : (i + 1) * d].T),
            "bias": stack("attn.qkv.bias", lambda x: x[i * d : (i + 1) * d]),
        }

    patch = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, config.width)
    params = {
        "patch_embed": {"kernel": patch, "bias": state["patch_embed.proj.bias"]},
        "cls_token": state["cls_token"][0],
        "positions": state["pos_embed"][0],
        "blocks": {
            "norm1": norm("norm1"),
            "norm2": norm("norm2"),
            "attn": {"wq": third(0), "wk": third(1), "wv": third(2), "proj": linear("attn.proj")},
            "fc1": linear("mlp.fc1"),
            "fc2": linear("mlp.fc2"),
            "ls1/gamma": stack("ls1.gamma"),
            "ls2/gamma": stack("ls2.gamma"),
        },
        "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
    }
    if config.registers:
        params["register_tokens"] = state["register_tokens"][0]
    return params


def load(path: str, preset: str) -> dict:
    """Reads a .safetensors file of official names.

    Raises:
      ConfigError: unknown preset, no such file, not safetensors, or entries that do not fit the
        preset.
    """
    check(preset in PRESETS, "features.preset", preset, " | ".join(PRESETS))
    check(pathlib.Path(path).is_file(), "features.checkpoint", path, "a .safetensors file")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"config.features.checkpoint = {path!r}: {error}") from error
    return convert(state, PRESETS[preset])
