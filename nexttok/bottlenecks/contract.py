"""What a bottleneck is to a tokenizer.

A bottleneck's maths are functions over arrays; its file also holds a small frozen dataclass, made
from a config section by the file's `make(section, where)`, that hands them to any encoder and
decoder:

    bottleneck.inputs               channels that an encoder must give
    bottleneck.spec(grid)           what tokens of a grid of latents are (TokenSpec)
    bottleneck.init(key)            parameters, {} for none
    bottleneck.quantize(params, z, rng, train) -> Coded, of latents z [B, *grid, inputs]
    bottleneck.encode(params, z, rng) -> Tokens
    bottleneck.decode(params, tokens, grid, keep) -> what a decoder takes, [B, *grid, channels]
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from nexttok.config import check
from nexttok.tokens import Tokens, TokenSpec


class Coded(NamedTuple):
    """A bottleneck's answer in training.

    Attributes:
      values: what the decoder takes, with the gradient that the encoder gets, [B, *grid, c].
      ids: codes, [B, *grid] or with several per position [B, *grid, K]; None without a codebook.
      loss: weighted auxiliary losses, a scalar or [B].
      metrics: scalars to log.
      moves: changes of parameters that no gradient gives, {} for none.
    """

    values: Float[Array, "B *g c"]
    ids: Int[Array, "B *g"] | None
    loss: Array
    metrics: dict
    moves: dict


class Codes:
    """A bottleneck whose tokens are its ids, position by position.

    Attributes:
      channels: of what the decoder takes.
      size: values of an id.
    """

    channels: int
    size: int
    where: str

    @property
    def inputs(self) -> int:
        """As many as the decoder takes."""
        return self.channels

    @property
    def vocab(self) -> int:
        """Values of an id."""
        return self.size

    def check(self, name: str, condition: bool, allowed: str) -> None:
        """Raises ConfigError for a field unless `condition`."""
        check(condition, f"{self.where}.{name}", getattr(self, name), allowed)

    def check_least(self, **least: float) -> None:
        """Raises ConfigError unless every named field has at least its value."""
        for name, value in least.items():
            self.check(name, getattr(self, name) >= value, f"at least {value}")

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of codes."""
        return TokenSpec(grid, self.vocab, self.channels)

    def init(self, key: Array) -> dict:
        """No parameters."""
        del key
        return {}

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module."""
        raise NotImplementedError

    def ids_to_values(self, params: dict, ids: Array) -> Array:
        """What the decoder takes for ids."""
        raise NotImplementedError

    def encode(self, params: dict, z: Array, rng: Array | None = None) -> Tokens:
        """Ids [B, N(, K)] in row-major order and their values [B, N, c]; rng is not used."""
        del rng
        ids = self.quantize(params, z, None, False).ids
        ids = ids.reshape(len(z), -1, *ids.shape[z.ndim - 1 :])
        return Tokens(ids=ids, values=self.ids_to_values(params, ids))

    def decode(
        self, params: dict, tokens: Tokens, grid: tuple[int, ...], keep: Any = None
    ) -> Array:
        """Values of ids where there are any, else the given values; keep is not used."""
        del keep
        values = tokens.values
        if tokens.ids is not None:
            values = self.ids_to_values(params, tokens.ids)
        return values.reshape(-1, *grid, self.channels)
