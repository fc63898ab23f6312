"""Pieces that several checkpoints share: of PyTorch transformers, and flax layers."""

import numpy as np

from nexttok.interop.checkpoints import Converter

# Modulations come as (gate, gate, scale, scale, shift, shift); nn/transformer.py wants
# (gate, gate, shift, scale, shift, scale).
ORDER = (0, 1, 4, 2, 5, 3)


def modulation(values: np.ndarray) -> np.ndarray:
    """Reorders the six parts of the last axis."""
    parts = np.split(values, 6, axis=-1)
    return np.concatenate([parts[i] for i in ORDER], axis=-1)


def adaln(reader: Converter, name: str, width: int) -> dict:
    """The linear layer of six modulations."""
    return {k: modulation(v) for k, v in reader.linear(name, width, 6 * width).items()}


def fused(reader: Converter, name: str, width: int, bias: bool) -> dict:
    """{wq, wk, wv} of one layer whose outputs are ordered q, k, v."""
    layer = reader.linear(name, width, 3 * width, bias)
    parts = {k: np.split(v, 3, axis=-1) for k, v in layer.items()}
    return {w: {k: v[i] for k, v in parts.items()} for i, w in enumerate(("wq", "wk", "wv"))}


def vit_attention(reader: Converter, name: str, width: int) -> dict:
    """timm's attention: qkv and proj, with biases."""
    proj = {"proj": reader.linear(f"{name}.proj", width, width)}
    return fused(reader, f"{name}.qkv", width, True) | proj


def packed_attention(reader: Converter, name: str, width: int) -> dict:
    """torch.nn.MultiheadAttention: queries, keys and values in one matrix, with biases."""
    joint = {
        "kernel": reader.take(f"{name}.in_proj_weight", (3 * width, width)).T,
        "bias": reader.take(f"{name}.in_proj_bias", (3 * width,)),
    }
    parts = {k: np.split(v, 3, axis=-1) for k, v in joint.items()}
    params = {w: {k: v[i] for k, v in parts.items()} for i, w in enumerate(("wq", "wk", "wv"))}
    return params | {"proj": reader.linear(f"{name}.out_proj", width, width)}


def mlp(reader: Converter, width: int, hidden: int, bias: bool = True, **names: str) -> dict:
    """{fc1, fc2[, fc3]}: `names` gives the entry of each."""
    sizes = {"fc1": (width, hidden), "fc3": (width, hidden), "fc2": (hidden, width)}
    return {k: reader.linear(name, *sizes[k], bias) for k, name in names.items()}


def scale(reader: Converter, name: str, width: int) -> dict:
    """{scale} of an RMS norm."""
    return {"scale": reader.take(f"{name}.weight", (width,))}


def flax_layer(reader: Converter, name: str, *shape: int, bias: bool = True) -> dict:
    """{kernel of `shape`, bias} of a flax layer, whose layout is ours; outputs come last."""
    layer = {"kernel": reader.take(f"{name}/kernel", shape)}
    return layer | ({"bias": reader.take(f"{name}/bias", shape[-1:])} if bias else {})


def flax_norm(reader: Converter, name: str, width: int) -> dict:
    """{scale, bias} of a flax normalization."""
    return {part: reader.take(f"{name}/{part}", (width,)) for part in ("scale", "bias")}
