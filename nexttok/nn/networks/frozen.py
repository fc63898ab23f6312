"""The encoder of tokens that are clusters of frozen features (DiGIT: Zhu et al., "Stabilize the
Latent Space for Image Autoregressive Modeling: A Unified Perspective", 2024): config.features.
"""

import dataclasses
from typing import Any

from nexttok.config import build, check


@dataclasses.dataclass(frozen=True)
class FrozenSizes:
    """A feature provider as encoder; it trains nothing and has no decoder.

    Attributes:
      provider: of the features (nn/features.py), set by the tokenizer that is given one.
    """

    provider: Any = None
    dtype: str = "float32"
    where: str = "tokenizer.encoder"

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """The provider's; see networks/__init__.py."""
        del image_shape
        given = self.provider is not None
        check(given, f"{self.where}.name", "frozen", "a network with a decoder")
        return self.provider.grid

    def of(self, provider: Any) -> "FrozenSizes":
        """These, with the provider.

        Raises:
          ConfigError: there is none.
        """
        allowed = f"dinov2 | patches, for config.{self.where}"
        check(provider is not None, "features.name", "", allowed)
        return dataclasses.replace(self, provider=provider)


def make(section, dtype: str, where: str) -> FrozenSizes:
    """The sizes in a config section, which has none; raises ConfigError for other keys."""
    return build(FrozenSizes, section, where, named=True, provider=None, dtype=dtype)
