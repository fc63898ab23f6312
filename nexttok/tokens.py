"""What tokenizers and generators exchange: Tokens at run time, TokenSpec at config time."""

import dataclasses
import itertools

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
      nested: True when prefixes of the tokens decode: any of 1D tokens trained with nested dropout,
        whole scales of a pyramid, whole levels of a hierarchy, whole groups.
      scales: sides of a coarse-to-fine pyramid whose maps follow each other in (N,); () for others.
      codes: ids that a position holds, each of `vocab` values.
      group: of nested 1D tokens, how many that follow each other decode together.
      levels: numbers of tokens of the levels of a coarse-to-fine hierarchy, which follow each other
        in (N,); () for others.
    """

    grid: tuple[int, ...]
    vocab: int
    channels: int
    nested: bool = False
    scales: tuple[int, ...] = ()
    codes: int = 1
    group: int = 1
    levels: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens N."""
        n = 1
        for side in self.grid:
            n *= side
        return n

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Prefix lengths that pictures and tables show; the last is N."""
        parts = self.levels or tuple(side * side for side in self.scales)
        if parts:
            return tuple(itertools.accumulate(parts))
        if not self.nested:
            return (self.length,)
        return tuple(self.group * n for n in prefix_lengths(self.length // self.group))


def prefix_lengths(length: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `length` itself."""
    powers = [1 << j for j in range(length.bit_length()) if 1 << j < length]
    return (*powers, length)
