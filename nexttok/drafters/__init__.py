"""What is trained for the samplers of a frozen generator: `config.drafter` (see contract.py)."""

import dataclasses

from nexttok import views
from nexttok.config import build, check, check_unread
from nexttok.drafters.contract import Drafting
from nexttok.drafters.eagle import Eagle
from nexttok.drafters.early_exit import EarlyExit
from nexttok.drafters.lookahead import Lookahead
from nexttok.drafters.selector import Selector
from nexttok.generator import Generator

# the options that each reads
READS = {"": (), "pass": ("guesses",), "eesd": ("layers",), "eagle": (), "tcts": ("layers",)}
OFF = {"layers": 0, "guesses": 0}


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """`config.drafter`; 0 is a drafter's own choice.

    Attributes:
      name: pass (lookahead.py), eesd (early_exit.py), eagle (eagle.py), which guess; tcts
        (selector.py), which chooses; '' for none.
      layers: eesd: first layers of the generator that draft (own: a quarter); tcts: of the selector
        (own: half as many as the generator's).
      guesses: pass: tokens that are guessed behind the next one (own: 4).
    """

    name: str
    layers: int
    guesses: int

    def __post_init__(self):
        named = " | ".join(("''", *tuple(READS)[1:]))
        check(self.name in READS, "drafter.name", self.name, named)
        check_unread(self, OFF, READS[self.name], "drafter", f"drafter {self.name!r}")
        for name in OFF:
            value = getattr(self, name)
            check(value >= 0, f"drafter.{name}", value, "at least 0 (0 for its own)")


def make(section, gen: Generator | None) -> Drafting | Selector | None:
    """What `config.drafter` adds to a generator, None for nothing.

    Raises:
      ConfigError: a bad option, or a generator whose samplers cannot use it.
    """
    cfg = build(DrafterConfig, section, "drafter")
    if not cfg.name:
        return None
    check(gen is not None, "drafter.name", cfg.name, "'' without a generator")
    refusal = views.masked_refusal(gen) if cfg.name == "tcts" else views.causal_refusal(gen)
    kind = gen.kind.__name__.split(".")[-1]
    refusal = refusal or ("" if kind == "decoder" else f"backbone {kind} is no decoder")
    check(not refusal, "drafter.name", cfg.name, f"'', as {refusal}")
    depth, most = gen.backbone.depth, gen.plan.length - 1
    if cfg.name == "eesd":
        check(cfg.layers <= depth, "drafter.layers", cfg.layers, f"0 .. {depth}")
        return EarlyExit(gen, cfg.layers or max(depth // 4, 1))
    if cfg.name == "tcts":
        check(cfg.layers <= 2 * depth, "drafter.layers", cfg.layers, f"0 .. {2 * depth}")
        return Selector(gen, cfg.layers or max(depth // 2, 1))
    if cfg.name == "eagle":
        return Eagle(gen)
    check(cfg.guesses <= most, "drafter.guesses", cfg.guesses, f"0 .. {most}")
    return Lookahead(gen, cfg.guesses or min(4, most))
