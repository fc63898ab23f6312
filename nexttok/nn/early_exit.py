"""A decoder that stops early: its first layers, one more of its own, final norm (EESD).

(Liu et al., "Speculative Decoding via Early-exiting for Faster LLM Inference with Thompson Sampling
Control Mechanism", 2024.)
"""

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.decoder import Decoder, init_cache

__all__ = ["init_cache", "make"]


def make(config: BackboneConfig, inputs: Inputs, dtype: str) -> Decoder:
    """The network of config.depth layers, of which the last stands apart."""
    return Decoder(config, inputs, dtype, apart=1)
