"""VAR by FoundationVision/VAR: --official=<checkout>, in an environment with torch.

The pictures are not decoded: what is timed ends with the tokens, as on our side.
"""

import torch

from benchmarks.official import pytorch, serve
from benchmarks.sizes import Size


def model(size: Size):
    """The VAR of the checkout; of its tokenizer only the quantizer is used."""
    pytorch.absent("huggingface_hub", PyTorchModelHubMixin=object)
    torch.distributed.get_world_size = lambda *_, **__: 1
    from models.var import VAR
    from models.vqvae import VQVAE

    vae = VQVAE(vocab_size=size.var_vocab, z_channels=32, ch=32, v_patch_nums=size.scales).eval()
    vae.fhat_to_img = lambda f_hat: f_hat
    return VAR(
        vae, num_classes=size.classes, depth=size.depth, embed_dim=size.width,
        num_heads=size.heads, norm_eps=1e-6, attn_l2_norm=True, patch_nums=size.scales,
        drop_path_rate=0.1 * size.depth / 24,
    )  # fmt: skip


def train(size: Size):
    """A training step on random ids and inputs."""
    words, net = pytorch.setup(), model(size)
    length = sum(side**2 for side in size.scales)
    ids = torch.randint(0, size.var_vocab, (size.batch * length,))
    inputs, label = torch.randn(size.batch, length - 1, 32), torch.arange(size.batch) % size.classes

    def loss():
        return torch.nn.functional.cross_entropy(net(label, inputs).flatten(0, 1), ids)

    return pytorch.trainer(net, loss), words


def generate(size: Size):
    """All scales, guided at 1.5, top-k 900 and top-p 0.96 as released."""
    words, net = pytorch.setup(), model(size).eval()
    label, kept = torch.arange(size.batch) % size.classes, min(900, size.var_vocab // 2)
    return (
        lambda: net.autoregressive_infer_cfg(size.batch, label, cfg=1.5, top_k=kept, top_p=0.96),
        words,
    )


if __name__ == "__main__":
    serve.serve({"train": train, "generate": generate})
