"""Which sampler generates: `config.sampler`."""

import dataclasses

from nexttok.config import check, check_unread
from nexttok.samplers.annealing import SHAPES, annealed
from nexttok.samplers.drafts.jacobi import INITS
from nexttok.samplers.reuse import groups
from nexttok.samplers.zipar import Wavefront, wavefront

# the options that each sampler reads, one file each; "plan" is the executor
READS = {
    "plan": (),
    "jacobi": ("window", "init"),
    "zipar": ("window",),
    "disa": ("solver_steps", "anneal"),
    "recap": ("whole", "local"),
}
CAUSAL = ("jacobi", "zipar")  # they see the generator as a causal model
OFF = {"window": 0, "init": "", "solver_steps": (), "anneal": "", "whole": 0, "local": 0}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """`config.sampler`.

    Attributes:
      name: plan (the executor follows the plan), disa (it does, in fewer solver steps), recap (in
        steps that compute less), or what takes its place: jacobi, zipar.
      window: jacobi: guesses of a call, 0 for 15; zipar: by how many columns a row is behind the
        one above it, 0 for a third of them.
      init: jacobi: what a guess starts as (drafts/jacobi.py), '' for random.
      solver_steps: disa: of the first and of the last step, () for a half and a twentieth of the
        head's own, as its paper; anneal: how they fall (annealing.py), '' for linear.
      whole: recap: steps in front that stay alone; local: steps after each later one that compute
        only what is about to be drawn (reuse.py), 0 for 1.
    """

    name: str
    window: int
    init: str
    solver_steps: tuple[int, ...]
    anneal: str
    whole: int
    local: int

    def __post_init__(self):
        check(self.name in READS, "sampler.name", self.name, " | ".join(READS))
        check_unread(self, OFF, READS[self.name], "sampler", f"sampler {self.name}")
        check(self.window >= 0, "sampler.window", self.window, "at least 0 (0 for its own)")
        allowed = "'' for random, " + " | ".join(INITS)
        check(self.init in ("", *INITS), "sampler.init", self.init, allowed)

        shapes = "'' for linear, " + " | ".join(SHAPES)
        check(self.anneal in ("", *SHAPES), "sampler.anneal", self.anneal, shapes)
        for name in ("whole", "local"):
            value = getattr(self, name)
            check(value >= 0, f"sampler.{name}", value, "at least 0")
        two = len(self.solver_steps) in (0, 2) and all(2 <= n <= 1000 for n in self.solver_steps)
        check(
            two,
            "sampler.solver_steps",
            self.solver_steps,
            "two numbers of 2 .. 1000, () for its own",
        )

    def check_fits(
        self,
        grid: tuple[int, ...],
        refusal: str,
        solver: bool,
        masked: bool,
        sizes: tuple[int, ...],
    ) -> None:
        """Raises ConfigError where the generator cannot be sampled so.

        Args:
          grid: of its tokens.
          refusal: why it does not draw one discrete token after another; "" where it does.
          solver: whether its head integrates; masked: whether its context is mask.
          sizes: of the steps.
        """
        if self.name == "disa":
            check(solver, "sampler.name", self.name, "another, as the head draws in a single step")
        if self.name == "recap":
            check(masked, "sampler.name", self.name, "another, as the context is not mask")
            self.merged(sizes)
        if self.name not in CAUSAL:
            return
        check(not refusal, "sampler.name", self.name, f"another, as {refusal}")
        flat = len(grid) == 2
        if self.name == "zipar":
            check(flat, "sampler.name", self.name, "another, as these tokens have no rows")
            self.wavefront(grid)
        above = not self.init.endswith("above") or flat
        check(above, "sampler.init", self.init, "one without 'above', as these tokens have no rows")

    def solving(self, steps: int, own: int) -> tuple[int, ...]:
        """Solver steps of each of `steps` steps, of a head whose own number is `own`."""
        if self.name != "disa":
            return ()
        first, last = self.solver_steps or (max(own // 2, 2), max(own // 20, 2))
        return annealed(first, last, steps, self.anneal or "linear")

    def merged(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Groups of recap, () without it."""
        return groups(sizes, self.whole, self.local or 1) if self.name == "recap" else ()

    def wavefront(self, grid: tuple[int, ...]) -> Wavefront:
        """The calls of zipar on a grid."""
        rows, columns = grid
        return wavefront(rows, columns, self.window or max(columns // 3, 1))
