"""MaskGIT by google-research/maskgit (JAX): --official=<checkout>, in an environment with flax.

The release has no PyTorch code; a training step is compared with the same transformer out of
stock torch.nn modules, in an environment with torch, without a checkout.
"""

import math
import os

from benchmarks.official import serve
from benchmarks.sizes import Size


def generate(size: Size):
    """All tokens in `maskgit_steps` steps, without guidance, which the release lacks; one jit."""
    import jax
    import jax.numpy as jnp

    jnp.DeviceArray = jax.Array  # the release names types of an older jax
    from maskgit.libml import parallel_decode
    from maskgit.nets.maskgit_transformer import Transformer

    vocab, length = size.maskgit_vocab, size.tokens + 1
    net = Transformer(
        vocab_size=vocab + size.classes + 1, hidden_size=size.width, num_hidden_layers=size.depth,
        num_attention_heads=size.heads, intermediate_size=4 * size.width,
        max_position_embeddings=length,
    )  # fmt: skip
    mask = vocab + size.classes
    start = jnp.full((size.batch, length), mask).at[:, 0].set(vocab + jnp.arange(size.batch))
    variables = net.init(jax.random.PRNGKey(0), start)

    @jax.jit
    def sample(variables, rng):
        def logits(ids):
            return net.apply(variables, ids, deterministic=True)[..., :vocab]

        return parallel_decode.decode(
            start, rng, logits, mask_token_id=mask, num_iter=size.maskgit_steps,
            choice_temperature=4.5,
        )[:, -1, 1:]  # fmt: skip

    rng = jax.random.PRNGKey(1)
    words = f"JAX {jax.__version__}, {len(os.sched_getaffinity(0))} cores"
    return lambda: sample(variables, rng).block_until_ready(), words


def train(size: Size):
    """A training step of a stock PyTorch twin: BERT over ids, cross-entropy of the hidden ones."""
    import torch
    from torch import nn

    from benchmarks.official import pytorch

    words = pytorch.setup() + ", stock torch.nn modules"
    vocab, mask = size.maskgit_vocab, size.maskgit_vocab + size.classes

    class Bert(nn.Module):
        """Post-norm encoder with tied logits over the codes."""

        def __init__(self):
            super().__init__()
            width, hidden = size.width, 4 * size.width
            self.embed = nn.Embedding(mask + 1, width)
            self.places = nn.Parameter(0.02 * torch.randn(size.tokens + 1, width))
            self.norm, self.drop = nn.LayerNorm(width, 1e-12), nn.Dropout(size.dropout)
            layer = nn.TransformerEncoderLayer(
                width, size.heads, hidden, size.dropout, nn.GELU(approximate="tanh"), 1e-12, True
            )
            layer.self_attn.dropout = 0.0
            self.layers = nn.TransformerEncoder(layer, size.depth, enable_nested_tensor=False)
            self.head = nn.Sequential(
                nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.LayerNorm(width, 1e-12)
            )
            self.offset = nn.Parameter(torch.zeros(vocab))

        def forward(self, ids):
            x = self.layers(self.drop(self.norm(self.embed(ids) + self.places)))[:, 1:]
            return self.head(x) @ self.embed.weight[:vocab].T + self.offset

    net, ids = Bert(), torch.randint(0, vocab, (size.batch, size.tokens))
    label = vocab + torch.arange(size.batch)[:, None] % size.classes
    cross_entropy = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)

    def loss():
        share = torch.cos(0.5 * math.pi * torch.rand(size.batch, 1))
        hidden = torch.rand(ids.shape).argsort(1).argsort(1) < (share * size.tokens).ceil()
        logits = net(torch.cat([label, torch.where(hidden, mask, ids)], 1))
        each = cross_entropy(logits.flatten(0, 1), ids.flatten())
        return (each * hidden.flatten()).sum() / hidden.sum()

    return pytorch.trainer(net, loss), words


if __name__ == "__main__":
    serve.serve({"train": train, "generate": generate})
