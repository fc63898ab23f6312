"""MAR by LTH14/mar: --official=<checkout>, in an environment with torch and timm."""

from functools import partial

import torch

from benchmarks.official import pytorch, serve
from benchmarks.sizes import Size


def model(size: Size):
    """The MAR of the checkout; attention dropout left out (see Size.dropout)."""
    from models.mar import MAR

    half = dict.fromkeys(("encoder_depth", "decoder_depth"), size.depth // 2)
    heads = dict.fromkeys(("encoder_num_heads", "decoder_num_heads"), size.heads)
    widths = dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), size.width)
    return MAR(
        img_size=16 * size.side, class_num=size.classes, buffer_size=size.mar_prefix,
        diffloss_d=size.mar_layers, diffloss_w=size.mar_head, attn_dropout=0.0,
        proj_dropout=size.dropout, num_sampling_steps=str(size.mar_denoise),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), **half, **heads, **widths,
    )  # fmt: skip


def train(size: Size):
    """A training step on random latents."""
    words, net = pytorch.setup(), model(size)
    latents = torch.randn(size.batch, 16, size.side, size.side)
    label = torch.arange(size.batch) % size.classes
    return pytorch.trainer(net, lambda: net(latents, label)), words


def generate(size: Size):
    """All tokens in `mar_steps` steps of `mar_denoise` denoising steps, guidance growing to 2.9."""
    words, net = pytorch.setup(), model(size).eval()
    label = torch.arange(size.batch) % size.classes

    @torch.no_grad()
    def run():
        return net.sample_tokens(size.batch, size.mar_steps, 2.9, "linear", label)

    return run, words


if __name__ == "__main__":
    serve.serve({"train": train, "generate": generate})
