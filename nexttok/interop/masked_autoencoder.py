"""MAR and xAR in: two stacks of ViT blocks (LTH14/mar, OliverRensu/xAR)."""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release

DROPBOX = "https://www.dropbox.com/scl/fi"
MAR = tuple(
    Release(f"MAR-{size[0].upper()}", f"mar_{size}/checkpoint-last.pth", f"{DROPBOX}/{link}&dl=0",
            (f"mar:imagenet256_{size[0]}",))
    for size, link in (
        ("base", "f6dpuyjb7fudzxcyhvrhk/checkpoint-last.pth?rlkey=a6i4bo71vhfo4anp33n9ukujb"),
        ("large", "pxacc5b2mrt3ifw4cah6k/checkpoint-last.pth?rlkey=m48ovo6g7ivcbosrbdaz0ehqt"),
        ("huge", "1qmfx6fpy3k7j9vcjjs3s/checkpoint-last.pth?rlkey=4lae281yzxb406atp32vzc83o"),
    )
)  # fmt: skip
XAR = tuple(
    Release(f"xAR-{size.upper()}", f"xAR-{size.upper()}.pth", f"{HUB}/OliverRen/xAR",
            (f"xar:imagenet256_{size}",))
    for size in "blh"
)  # fmt: skip


def _positions(reader, name, slots, width):
    return reader.take(f"{name}_pos_embed_learned", (1, slots, width))[0]


def mar(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of MAR, diffusion head included.

    Args:
      state: the released state dict ("model_ema" of the file).
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "MAR's checkpoint")
    c, n = gen.backbone, gen.spec.length
    width, slots = c.width, c.prefix + n

    def stack(root, depth):
        def block(i):
            name = f"{root}_blocks.{i}"
            fc1, fc2 = f"{name}.mlp.fc1", f"{name}.mlp.fc2"
            return {
                "norm1": reader.norm(f"{name}.norm1", width),
                "attn": blocks.vit_attention(reader, f"{name}.attn", width),
                "norm2": reader.norm(f"{name}.norm2", width),
                "mlp": blocks.mlp(reader, width, c.mlp_hidden, fc1=fc1, fc2=fc2),
            }

        return {"blocks": stacked(block, depth)}

    classes = reader.take("class_emb.weight", (gen.num_classes, width))
    null = reader.take("fake_latent", (1, width))
    output = _positions(reader, "diffusion", n, width)
    backbone = {
        "embed": {
            "project": reader.linear("z_proj", gen.spec.channels, width),
            "class_embedding": np.concatenate([classes, null]),
            "positions": _positions(reader, "encoder", slots, width),
            "embed_norm": reader.norm("z_proj_ln", width),
        },
        "encoder": stack("encoder", c.depth),
        "encoder_norm": {"norm": reader.norm("encoder_norm", width)},
        "bridge": reader.linear("decoder_embed", width, width),
        "mask_token": reader.take("mask_token", (1, 1, width))[0],
        "positions": _positions(reader, "decoder", slots, width),
        "decoder": stack("decoder", c.decoder_depth),
        "decoder_norm": {"norm": reader.norm("decoder_norm", width)},
        # class slots have hidden states too, which nothing reads
        "output_positions": np.pad(output, ((c.prefix, 0), (0, 0))),
    }
    return reader.finish({"backbone": backbone, "head": _denoiser(reader, gen.head)})


def _denoiser(reader, head):
    wide, net = head.width, "diffloss.net"

    def linear(name, inputs, outputs):
        return reader.linear(f"{net}.{name}", inputs, outputs)

    params = {
        "project": linear("input_proj", head.channels, wide),
        "time1": linear("time_embed.mlp.0", 256, wide),
        "time2": linear("time_embed.mlp.2", wide, wide),
        "bridge": linear("cond_embed", head.hidden, wide),
        "adaln": linear("final_layer.adaLN_modulation.1", wide, 2 * wide),
        "moments": linear("final_layer.linear", wide, 2 * head.channels),
    }
    for i in range(head.depth):
        name = f"res_blocks.{i}"
        params |= {
            f"block{i}_norm": reader.norm(f"{net}.{name}.in_ln", wide),
            f"block{i}_adaln": linear(f"{name}.adaLN_modulation.1", wide, 3 * wide),
            f"block{i}_fc1": linear(f"{name}.mlp.0", wide, wide),
            f"block{i}_fc2": linear(f"{name}.mlp.2", wide, wide),
        }
    return params


def xar(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of xAR.

    Args:
      state: the released state dict ("model_ema" of the file).
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "xAR's checkpoint")
    reader.ignore(r"mask$|.*\.rope\.freqs")
    c, n = gen.backbone, gen.spec.length
    width = c.width

    def stack(root, depth):
        def block(i):
            name = f"{root}_blocks.{i}"
            parts = {"fc1": "fc1_g", "fc3": "fc1_x", "fc2": "fc2"}
            names = {k: f"{name}.mlp.{v}" for k, v in parts.items()}
            return {
                "attn": blocks.vit_attention(reader, f"{name}.attn", width),
                "mlp": blocks.mlp(reader, width, c.mlp_hidden, **names),
                "adaln": blocks.adaln(reader, f"{name}.ada_lin.1", width),
            }

        return {"blocks": stacked(block, depth)}

    backbone = {
        "embed": {
            "project": reader.linear("z_proj", gen.spec.channels, width),
            "class_embedding": reader.take("class_emb.weight", (gen.num_classes + 1, width)),
            "positions": _positions(reader, "encoder", n, width),
            "embed_norm": blocks.scale(reader, "z_proj_ln", width),
            "time1": reader.linear("time_embed.mlp.0", 256, width),
            "time2": reader.linear("time_embed.mlp.2", width, width),
        },
        "encoder": stack("encoder", c.depth),
        "encoder_norm": {"norm": blocks.scale(reader, "encoder_norm", width)},
        "bridge": reader.linear("decoder_embed", width, width),
        "positions": _positions(reader, "decoder", n, width),
        "decoder": stack("decoder", c.decoder_depth),
        "decoder_norm": {"norm": blocks.scale(reader, "decoder_norm", width)},
    }
    head = {"velocity": reader.linear("pred", width, gen.spec.channels)}
    return reader.finish({"backbone": backbone, "head": head})
