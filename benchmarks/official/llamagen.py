"""LlamaGen by FoundationVision/LlamaGen: --official=<checkout>, in an environment with torch."""

import torch

from benchmarks.official import pytorch, serve
from benchmarks.sizes import Size


def model(size: Size):
    """The Transformer of the checkout."""
    from autoregressive.models.gpt import ModelArgs, Transformer

    drop = dict.fromkeys(("token_dropout_p", "resid_dropout_p", "ffn_dropout_p"), size.dropout)
    return Transformer(
        ModelArgs(
            dim=size.width, n_layer=size.depth, n_head=size.heads, num_classes=size.classes,
            vocab_size=size.vocab, block_size=size.tokens, **drop,
        )
    )  # fmt: skip


def train(size: Size):
    """A training step on random ids."""
    words, net = pytorch.setup(), model(size)
    ids = torch.randint(0, size.vocab, (size.batch, size.tokens))
    label = torch.arange(size.batch) % size.classes
    return pytorch.trainer(net, lambda: net(ids[:, :-1], label, targets=ids)[1]), words


def generate(size: Size):
    """All tokens with the cache, guided at 2."""
    from autoregressive.models.generate import generate as official

    words, net = pytorch.setup(), model(size).eval()
    label = torch.arange(size.batch) % size.classes
    return lambda: official(net, label, size.tokens, cfg_scale=2.0), words


if __name__ == "__main__":
    serve.serve({"train": train, "generate": generate})
