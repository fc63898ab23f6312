"""ReCAP: masked models compute only what they are about to draw, most of the time.

Consecutive steps are merged into groups. The first step of a group computes all positions and keeps
their keys and values; the others compute only the positions that the group draws. (Liu et al.,
"Plug-and-Play Context Feature Reuse for Efficient Masked Generation", 2025.) It is an
approximation, for which the paper states no bound; groups of one step are the base sampler.
"""

from nexttok.config import check


def groups(sizes: tuple[int, ...], whole: int, local: int) -> tuple[tuple[int, ...], ...]:
    """Steps of these sizes, merged.

    Args:
      sizes: of the steps.
      whole: steps in front that stay alone.
      local: steps that follow the first of a group.

    Raises:
      ConfigError: more steps alone than there are.
    """
    check(0 <= whole <= len(sizes), "sampler.whole", whole, f"0 .. {len(sizes)} steps")
    merged = [(size,) for size in sizes[:whole]]
    rest = sizes[whole:]
    merged += [rest[i : i + local + 1] for i in range(0, len(rest), local + 1)]
    return tuple(merged)
