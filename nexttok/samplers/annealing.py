"""DiSA: ever fewer solver steps of a diffusion or flow head as a generation goes on.

(Zhao et al., "DiSA: Diffusion Step Annealing in Autoregressive Image Generation", 2025: the more
tokens are known, the narrower is the law of the next, and the fewer steps it takes.) It is an
approximation, for which the paper states no bound; a first number that is the last, and the head's
own, is the base sampler.
"""

import math

SHAPES = ("linear", "cosine", "two_stage")


def annealed(first: int, last: int, steps: int, shape: str) -> tuple[int, ...]:
    """Solver steps of each of `steps` steps, from `first` to `last`, rounded down.

    Args:
      shape: linear, cosine, or two_stage: `first` in the first half, `last` in the second.
    """
    found = []
    for i in range(steps):
        x = i / max(steps - 1, 1)
        share = {
            "linear": 1.0 - x,
            "cosine": (1.0 + math.cos(math.pi * x)) / 2.0,
            "two_stage": float(x < 0.5),
        }[shape]
        found.append(last + int(share * (first - last)))
    return tuple(found)
