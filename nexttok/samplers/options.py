"""Which sampler generates: `config.sampler`."""

import dataclasses

from nexttok.config import check, check_unread
from nexttok.samplers.drafts.jacobi import INITS
from nexttok.samplers.zipar import Wavefront, wavefront

# the options that each sampler reads, one file each; "plan" is the executor
READS = {
    "plan": (),
    "jacobi": ("window", "init"),
    "zipar": ("window",),
}
OFF = {"window": 0, "init": ""}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """`config.sampler`.

    Attributes:
      name: plan (the executor follows the plan), or what takes its place: jacobi, zipar.
      window: jacobi: guesses of a call, 0 for 15; zipar: by how many columns a row is behind the
        one above it, 0 for a third of them.
      init: jacobi: what a guess starts as (drafts/jacobi.py), '' for random.
    """

    name: str
    window: int
    init: str

    def __post_init__(self):
        check(self.name in READS, "sampler.name", self.name, " | ".join(READS))
        check_unread(self, OFF, READS[self.name], "sampler", f"sampler {self.name}")
        check(self.window >= 0, "sampler.window", self.window, "at least 0 (0 for its own)")
        allowed = "'' for random, " + " | ".join(INITS)
        check(self.init in ("", *INITS), "sampler.init", self.init, allowed)

    def check_fits(self, grid: tuple[int, ...], refusal: str) -> None:
        """Raises ConfigError where the generator cannot be sampled so.

        Args:
          grid: of its tokens.
          refusal: why it does not draw one discrete token after another; "" where it does.
        """
        if self.name == "plan":
            return
        check(not refusal, "sampler.name", self.name, f"plan, as {refusal}")
        flat = len(grid) == 2
        if self.name == "zipar":
            check(flat, "sampler.name", self.name, "plan | jacobi, as these tokens have no rows")
            self.wavefront(grid)
        above = not self.init.endswith("above") or flat
        check(above, "sampler.init", self.init, "one without 'above', as these tokens have no rows")

    def wavefront(self, grid: tuple[int, ...]) -> Wavefront:
        """The calls of zipar on a grid."""
        rows, columns = grid
        return wavefront(rows, columns, self.window or max(columns // 3, 1))
