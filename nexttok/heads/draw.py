"""How a head draws; the sampling options that it reads are named by its `reads`."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampling options.

    Attributes:
      warp: logits -> logits: temperature and truncation of discrete tokens.
      temperature: of continuous tokens: what noise or standard deviations are multiplied by.
    """

    warp: Callable[[Array], Array]
    temperature: float
