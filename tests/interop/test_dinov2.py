"""DINOv2 weights: official names in, the official forward pass out."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf, softmax

from nexttok.config import ConfigError
from nexttok.interop import dinov2
from nexttok.nn import vit
from nexttok.nn.vit import ViT, ViTConfig

D, DEPTH, HEAD, PATCH, STORED = 12, 3, 4, 2, 3
CONFIG = ViTConfig(D, DEPTH, HEAD, PATCH, side=6, stored_grid=STORED)


def state_dict(registers=0):
    """Random entries under the names of the official checkpoints."""
    draw = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, 1 + STORED**2, D),
        "mask_token": (1, D),
        "patch_embed.proj.weight": (D, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (D,),
        "norm.weight": (D,),
        "norm.bias": (D,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, D)
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.norm1.weight": (D,),
            f"blocks.{i}.norm1.bias": (D,),
            f"blocks.{i}.attn.qkv.weight": (3 * D, D),
            f"blocks.{i}.attn.qkv.bias": (3 * D,),
            f"blocks.{i}.attn.proj.weight": (D, D),
            f"blocks.{i}.attn.proj.bias": (D,),
            f"blocks.{i}.ls1.gamma": (D,),
            f"blocks.{i}.norm2.weight": (D,),
            f"blocks.{i}.norm2.bias": (D,),
            f"blocks.{i}.mlp.fc1.weight": (4 * D, D),
            f"blocks.{i}.mlp.fc1.bias": (4 * D,),
            f"blocks.{i}.mlp.fc2.weight": (D, 4 * D),
            f"blocks.{i}.mlp.fc2.bias": (D,),
            f"blocks.{i}.ls2.gamma": (D,),
        }
    return {k: draw.normal(0, 0.4, s).astype(np.float32) for k, s in shapes.items()}


def sample(table, i, n):
    """Cubic sample i of n along axis 0: the published coefficients, edges repeated."""
    at = (i + 0.5) * len(table) / (n + 0.1) - 0.5
    base, t, a = int(np.floor(at)), at - np.floor(at), -0.75

    def near(x):
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x):
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    rows = [table[np.clip(base + k - 1, 0, len(table) - 1)] for k in range(4)]
    return sum(w * r for w, r in zip(weights, rows, strict=True))


def positions(table, h, w):
    if (h, w) == table.shape[:2]:
        return table
    tall = np.stack([sample(table, i, h) for i in range(h)])
    return np.stack([sample(tall.swapaxes(0, 1), j, w) for j in range(w)], axis=1)


def reference(state, x):
    """The official forward pass on one picture [H, W, 3], in float64 loops over patches, heads."""
    s = {k: v.astype(np.float64) for k, v in state.items()}

    def dense(name, y):
        return y @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(name, y):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        return y * s[f"{name}.weight"] + s[f"{name}.bias"]

    h, w = x.shape[0] // PATCH, x.shape[1] // PATCH
    kernel = s["patch_embed.proj.weight"]
    tokens = np.zeros((h, w, D))
    for i, j in np.ndindex(h, w):
        patch = x[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
        tokens[i, j] = np.einsum("ochw,hwc->o", kernel, patch) + s["patch_embed.proj.bias"]
    table = s["pos_embed"][0]
    tokens += positions(table[1:].reshape(STORED, STORED, D), h, w)
    registers = s.get("register_tokens", np.zeros((1, 0, D)))[0]
    y = np.concatenate([s["cls_token"][0] + table[:1], registers, tokens.reshape(-1, D)])
    for n in range(DEPTH):
        block = f"blocks.{n}"
        q, k, v = np.split(dense(f"{block}.attn.qkv", norm(f"{block}.norm1", y)), 3, axis=-1)
        heads = [slice(a, a + HEAD) for a in range(0, D, HEAD)]
        mixed = [softmax(q[:, a] @ k[:, a].T / HEAD**0.5, axis=-1) @ v[:, a] for a in heads]
        y = y + s[f"{block}.ls1.gamma"] * dense(f"{block}.attn.proj", np.concatenate(mixed, -1))
        hidden = dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", y))
        hidden = 0.5 * hidden * (1 + erf(hidden / 2**0.5))
        y = y + s[f"{block}.ls2.gamma"] * dense(f"{block}.mlp.fc2", hidden)
    return norm("norm", y)[1 + len(registers) :].reshape(h, w, D)


@pytest.mark.parametrize(
    ("registers", "grid"), [(0, (3, 3)), (0, (2, 5)), (2, (3, 3))], ids=["own", "resized", "reg"]
)
def test_forward_pass_equals_the_official_one(registers, grid):
    config = dataclasses.replace(CONFIG, registers=registers)
    state = state_dict(registers)
    params = dinov2.convert(state, config)
    x = np.random.default_rng(1).normal(size=(2, grid[0] * PATCH, grid[1] * PATCH, 3))
    features = ViT(config).apply({"params": params}, jnp.asarray(x, jnp.float32))
    expected = np.stack([reference(state, picture) for picture in x])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 2])
def test_converted_parameters_have_the_structure_of_init(registers):
    config = dataclasses.replace(CONFIG, registers=registers)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))["params"]
    got = dinov2.convert(state_dict(registers), config)
    assert jax.tree.map(np.shape, got) == jax.tree.map(lambda s: s.shape, shapes)


def test_every_wrong_entry_is_named():
    state = state_dict()
    del state["norm.bias"]
    state["head.weight"] = np.zeros((1, D), np.float32)
    state["blocks.1.ls2.gamma"] = np.zeros((D + 1,), np.float32)
    with pytest.raises(ConfigError) as error:
        dinov2.convert(state, CONFIG)
    assert "missing norm.bias" in str(error.value)
    assert "unknown head.weight" in str(error.value)
    assert "blocks.1.ls2.gamma is (13,) instead of (12,)" in str(error.value)
    with pytest.raises(ConfigError, match="missing register_tokens"):
        dinov2.convert(state_dict(), dataclasses.replace(CONFIG, registers=4))


def test_files_are_read_in_float32(tmp_path, monkeypatch):
    monkeypatch.setitem(vit.PRESETS, "tiny", CONFIG)
    path = str(tmp_path / "tiny.safetensors")
    state = state_dict()
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in state.items()}, path)
    params = dinov2.load(path, "tiny")
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(params["cls_token"], state["cls_token"][0], rtol=1e-2)


def test_bad_files_and_presets_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ConfigError, match=r"features\.checkpoint = .*weights\.safetensors"):
        dinov2.load(str(path), "small")
    path.write_bytes(b"no weights here")
    with pytest.raises(ConfigError, match=r"features\.checkpoint = .*weights\.safetensors"):
        dinov2.load(str(path), "small")
    with pytest.raises(ConfigError, match=r"features\.preset = 'huge': expected small \| base"):
        dinov2.load(str(path), "huge")
