"""nexttok: tokenizers and autoregressive objectives of visual and multimodal generation in JAX."""
