"""What tokenizers and generators exchange: Tokens at run time, TokenSpec at config time."""

import dataclasses

import flax.struct
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Tokens:
    """A batch of tokens.

    Attributes:
      ids: discrete codes, int32 [B, N], or [B, N, M] when a position holds M codes, or None.
      values: continuous latents or dequantized codes, float [B, N, C], or None.
    """

    ids: Int[Array, "B N"] | Int[Array, "B N M"] | None = None
    values: Float[Array, "B N C"] | None = None


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """Static description of tokens: published by a tokenizer, demanded by a generator.

    Attributes:
      grid: token grid, row-major; (N,) for 1D tokens, (H, W), or (T, H, W).
      vocab: number of ids, 0 when tokens are continuous only.
      channels: width of `Tokens.values`.
      nested: True when every prefix of the tokens decodes (nested dropout).
    """

    grid: tuple[int, ...]
    vocab: int
    channels: int
    nested: bool = False

    @property
    def length(self) -> int:
        """Number of tokens N."""
        n = 1
        for side in self.grid:
            n *= side
        return n
