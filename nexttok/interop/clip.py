"""CLIP's image tower from Hugging Face's names (openai/clip-vit-large-patch14-336)."""

import numpy as np

from nexttok.interop.checkpoints import Converter, pick, read, stacked
from nexttok.interop.releases import Release
from nexttok.nn.clip import ClipConfig

RELEASES = (
    Release(
        "ViT-L/14 at 336", "model.safetensors",
        "https://huggingface.co/openai/clip-vit-large-patch14-336",
        ("--metrics=cmmd", "--clip=model.safetensors"),
    ),
)  # fmt: skip


def _block(reader: Converter, name: str, width: int) -> dict:
    layers = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "proj": "out_proj"}
    return {
        "norm1": reader.norm(f"{name}.layer_norm1", width),
        "norm2": reader.norm(f"{name}.layer_norm2", width),
        "attn": {k: reader.linear(f"{name}.self_attn.{v}", width, width)
                 for k, v in layers.items()},
        "fc1": reader.linear(f"{name}.mlp.fc1", width, 4 * width),
        "fc2": reader.linear(f"{name}.mlp.fc2", 4 * width, width),
    }  # fmt: skip


def convert(state: dict[str, np.ndarray], config: ClipConfig) -> dict:
    """`vision_model.*` and `visual_projection.weight` -> parameters of nn.clip.ClipImages.

    What belongs to the text tower is not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader, d, p = Converter(state, "CLIP checkpoint"), config.width, config.patch
    reader.ignore(r"text_model\.|text_projection\.|logit_scale$|.*\.position_ids$")
    top = "vision_model"
    patch = reader.conv(f"{top}.embeddings.patch_embedding", 3, d, p, bias=False)
    table = f"{top}.embeddings.position_embedding.weight"
    return reader.finish({
        "patch_embed": {"kernel": patch["kernel"].reshape(-1, d)},
        "cls_token": reader.take(f"{top}.embeddings.class_embedding", (d,))[None],
        "positions": reader.take(table, (1 + config.patches, d)),
        "norm_in": reader.norm(f"{top}.pre_layrnorm", d),
        "blocks": stacked(
            lambda i: _block(reader, f"{top}.encoder.layers.{i}", d), config.depth
        ),
        "norm_out": reader.norm(f"{top}.post_layernorm", d),
        "projection": reader.linear("visual_projection", d, config.embedding, bias=False),
    })  # fmt: skip


def load(path: str) -> dict:
    """Reads a file of ViT-L/14 at 336 pixels.

    Raises:
      ConfigError: no such file, a file that cannot be read, or entries that do not fit.
    """
    return convert(pick(read(path, "clip")), ClipConfig())
