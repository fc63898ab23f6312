"""Which sampler generates: `config.sampler`."""

import dataclasses
import math

from nexttok.config import check, check_unread
from nexttok.samplers.annealing import SHAPES, annealed
from nexttok.samplers.drafts import model as drafts
from nexttok.samplers.drafts.jacobi import INITS
from nexttok.samplers.reuse import groups
from nexttok.samplers.scaling import FEATURES, POTENTIALS, REWARDS, schedule
from nexttok.samplers.zipar import Wavefront, wavefront

RELAXED = ("relax", "relative", "neighbours")
TREE = ("branches", "beams")
# the options that each sampler reads; "plan" is the executor
READS = {
    "plan": (),
    "jacobi": ("window", "init"),
    "self_speculative": ("window", "layers", "control", *TREE, *RELAXED),
    "draft": ("draft", "window", "control", *TREE, *RELAXED),
    "ngram": ("branches",),
    "pass": ("window", *RELAXED),
    "eesd": ("window", "control", *RELAXED),
    "eagle": ("window", "control", *RELAXED),
    "zipar": ("lag", "adaptive"),
    "lpd": ("orders",),
    "disa": ("solver_steps", "anneal"),
    "recap": ("whole", "local"),
    "parallel": ("threshold", "factor"),
    "tts_var": ("particles", "early", "features", "reward", "potential", "strength"),
    "revocable": ("persistent",),
    "tcts": ("persistent",),
    "beam": ("beams",),
    "diverse_beam": ("beams", "groups", "penalty"),
    "stochastic_beam": ("beams",),
    "contrastive_search": ("candidates", "alpha"),
}
GUESSING = ("pass", "eesd", "eagle")  # they guess by what `config.drafter` adds to a generator
TRAINED = (*GUESSING, "tcts")  # all that need what it adds
# they see the generator as a causal model
CAUSAL = ("jacobi", "self_speculative", "draft", "ngram", "zipar", *GUESSING)
SEARCHES = ("beam", "diverse_beam", "stochastic_beam", "contrastive_search")  # and so do these
OFF = {
    "draft": "", "window": 0, "lag": 0.0, "init": "", "relax": 0.0, "relative": False,
    "neighbours": 0, "layers": (), "control": "", "adaptive": False, "orders": 0,
    "solver_steps": (), "anneal": "", "whole": 0, "local": 0, "threshold": 0.0, "factor": 0.0,
    "branches": (), "particles": (), "early": 0, "features": "", "reward": "", "potential": "",
    "strength": 0.0, "beams": 0, "groups": 0, "penalty": 0.0, "candidates": 0, "alpha": 0.0,
    "persistent": False,
}  # fmt: skip
CONTROLS = ("fixed", "threshold", "thompson")
NUMBERS = tuple(name for name, off in OFF.items() if type(off) in (int, float))
WORDS = {
    "init": INITS, "anneal": SHAPES, "control": CONTROLS, "features": FEATURES,
    "reward": tuple(REWARDS), "potential": POTENTIALS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """What samplers ask of an experiment.

    Attributes:
      grid, vocab: of the tokens.
      refusal: why the generator does not draw one discrete token after another; "" where it does.
      solver: its head integrates; masked: its context is mask.
      sizes, kind: of the plan; depth: of the backbone.
      codebook: the tokens are the codes of one codebook.
      scaled: its context is upsample.
      drafter: `config.drafter.name`; ahead: tokens that it guesses at once.
    """

    grid: tuple[int, ...]
    vocab: int
    refusal: str
    solver: bool
    masked: bool
    sizes: tuple[int, ...]
    kind: str
    depth: int
    codebook: bool
    scaled: bool
    drafter: str
    ahead: int


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """`config.sampler`; 0, '' and () are a sampler's own choice.

    Attributes:
      name: plan (the executor follows the plan), lpd (it does, in orders of its own), disa (in
        fewer solver steps), recap (in steps that compute less), or what takes its place: jacobi,
        self_speculative, draft, ngram, zipar, parallel, revocable, tts_var, beam, diverse_beam,
        stochastic_beam, contrastive_search, and those that guess, or choose, by what
        `config.drafter` trained, which has their name: pass, eesd, eagle, tcts.
      draft: draft: workdir of the run whose generator guesses; it draws the same tokens.
      window: guesses of a call (own: 15 of jacobi, 4 of the others); pass: behind the next token
        (own: all that are trained).
      lag: zipar: the window, by how many columns a row is behind the one above it (own: 0.4 of
        them); 1.5 is by 2 and 1 in turn; with adaptive the least one, and whole.
      init: jacobi: what a guess starts as (drafts/jacobi.py; own: random).
      layers: self_speculative: the layers that guess (own: every other one, the first included).
      control: how many guesses a model makes (drafts/model.py; own: thompson of eesd, else fixed).
      branches: children of a guess, by depth, of a tree without replacement (RSD-C) in place of a
        chain; ngram: the most frequent successors in the training data (own: 3, 2, 1).
      relax, relative, neighbours: budget of LANTERN and whether it is relative, and how many codes
        are looked at (lantern.py; own: 1,000).
      orders: lpd: size of the pool (own: 64).
      solver_steps: disa: of the first and of the last step (own: a half and a twentieth of the
        head's, as its paper); anneal: how they fall (annealing.py; own: linear).
      whole: recap: steps in front that stay alone; local: steps after each later one that compute
        only what is about to be drawn (reuse.py; own: 1).
      threshold, factor: parallel: which tokens a call reveals (parallel.py; own: 0.9, no factor).
      particles: tts_var: of a sample at each scale (own: the paper's, stretched over the scales).
      early: tts_var: after so many scales in front those that go on differ, later they are drawn by
        reward (own: half); features: by which they differ: the accumulated latent along its
        principal direction (pca, own) or its mean (pooled), a classifier's (class), or none.
      reward: tts_var: a classifier's log-probability of the class (class, own), or its certainty;
        potential, strength: what is made of rewards (scaling.py; own: value, 10).
      beams: strings of a search (own: 4); self_speculative, draft: the best paths of a tree
        without replacement (RSD-S), `window` deep; groups, penalty: diverse_beam: of beams that
        avoid each other's tokens (own: one a beam, 0.5).
      persistent: revocable, tcts: tokens of low frequency stay once they are drawn (revocable.py).
      candidates, alpha: contrastive_search: likeliest tokens, weight of unlikeness (own: 5, 0.6).
    """

    name: str
    draft: str
    window: int
    lag: float
    init: str
    relax: float
    relative: bool
    neighbours: int
    layers: tuple[int, ...]
    control: str
    branches: tuple[int, ...]
    adaptive: bool
    orders: int
    solver_steps: tuple[int, ...]
    anneal: str
    whole: int
    local: int
    threshold: float
    factor: float
    particles: tuple[int, ...]
    early: int
    features: str
    reward: str
    potential: str
    strength: float
    beams: int
    groups: int
    penalty: float
    candidates: int
    alpha: float
    persistent: bool

    def __post_init__(self):
        check(self.name in READS, "sampler.name", self.name, " | ".join(READS))
        check_unread(self, OFF, READS[self.name], "sampler", f"sampler {self.name}")
        for name in NUMBERS:
            value = getattr(self, name)
            check(value >= 0, f"sampler.{name}", value, "at least 0")
        for name, words in WORDS.items():
            value = getattr(self, name)
            check(value in ("", *words), f"sampler.{name}", value, "'' | " + " | ".join(words))
        lost = self.relax == 0 and (self.relative or self.neighbours > 0)
        check(not lost, "sampler.relax", self.relax, "above 0 with relative or neighbours")
        for name in ("control", "relax") if self.tree else ():
            value = getattr(self, name)
            check(value == OFF[name], f"sampler.{name}", value, f"{OFF[name]!r} with a tree")
        for name in ("beams", "window") if self.branches else ():
            value = getattr(self, name)
            check(value == 0, f"sampler.{name}", value, "0 with sampler.branches")
        asked = bool(self.draft) or self.name != "draft"
        check(asked, "sampler.draft", self.draft, "the workdir of a run whose generator guesses")
        two = len(self.solver_steps) in (0, 2) and all(2 <= n <= 1000 for n in self.solver_steps)
        check(two, "sampler.solver_steps", self.solver_steps, "two numbers of 2 .. 1000, or ()")
        for name in ("reward", "strength"):
            value = getattr(self, name)
            read = value == OFF[name] or self.potential != "none"
            check(read, f"sampler.{name}", value, f"{OFF[name]!r}, as potential none reads it not")
        even = (self.beams or 4) % (self.groups or 1) == 0
        check(even, "sampler.groups", self.groups, f"a divisor of {self.beams or 4} beams")
        check(self.alpha <= 1, "sampler.alpha", self.alpha, "0 .. 1")

    def check_fits(self, asked: Asked) -> None:
        """Raises ConfigError where the generator cannot be sampled so."""

        def need(fits, why):
            check(fits, "sampler.name", self.name, f"another, as {why}")

        flat = len(asked.grid) == 2
        if self.name in (*CAUSAL, *SEARCHES):
            need(not asked.refusal, asked.refusal)
        if self.name in ("zipar", "lpd"):
            need(flat, "these tokens have no rows")
        if self.name == "zipar":
            self.wavefront(asked.grid)
            whole = not self.adaptive or float(self.lag).is_integer()
            check(whole, "sampler.lag", self.lag, "a whole number with sampler.adaptive")
        elif self.name == "lpd":
            need(asked.kind == "random", "the plan's order is not random")
        elif self.name == "tts_var":
            need(asked.scaled, "the context is not upsample")
            steps = len(schedule(self.particles, len(asked.sizes)))
            check(self.early <= steps, "sampler.early", self.early, f"0 .. {steps} scales")
        elif self.name == "disa":
            need(asked.solver, "the head draws in a single step")
        elif self.name == "recap":
            need(asked.masked, "the context is not mask")
            self.merged(asked.sizes)
        elif self.name in TRAINED:
            need(asked.drafter == self.name, f"config.drafter.name is {asked.drafter!r}")
        elif self.name in ("parallel", "revocable"):
            need(
                asked.masked and asked.vocab > 0,
                "the model does not predict masked discrete tokens",
            )
        known = self.candidates <= asked.vocab or self.name != "contrastive_search"
        check(known, "sampler.candidates", self.candidates, f"0 .. {asked.vocab}")
        wide = max(self.branches, default=0) <= asked.vocab and min(self.branches, default=1) >= 1
        check(wide, "sampler.branches", self.branches, f"numbers of 1 .. {asked.vocab}, or ()")
        fits = not self.tree or self.beams <= asked.vocab
        check(fits, "sampler.beams", self.beams, f"0 .. {asked.vocab}")
        pairs = self.name != "ngram" or asked.vocab**2 < 2**31
        check(pairs, "sampler.name", self.name, "another, as there are too many pairs of tokens")
        far = self.name == "pass" and self.window > asked.ahead
        check(not far, "sampler.window", self.window, f"0 .. {asked.ahead}, as many are trained")
        above = not self.init.endswith("above") or flat
        check(above, "sampler.init", self.init, "one without 'above', as these tokens have no rows")
        codes = self.relax == 0 or asked.codebook
        check(codes, "sampler.relax", self.relax, "0, as these tokens are not codes of a codebook")
        most = asked.vocab - 1
        few = self.neighbours <= most or self.relax == 0
        check(few, "sampler.neighbours", self.neighbours, f"0 .. {most}")
        rising = list(self.layers) == sorted(set(self.layers))
        rising = rising and set(self.layers) <= set(range(asked.depth))
        check(rising, "sampler.layers", self.layers, f"rising numbers of 0 .. {asked.depth - 1}")

    @property
    def judged(self) -> bool:
        """Whether a classifier of the data chooses among particles."""
        several = not self.particles or max(self.particles) > 1
        asks = self.potential != "none" or self.features == "class"
        return self.name == "tts_var" and several and asks

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
        return wavefront(*grid, self.width(grid))

    def width(self, grid: tuple[int, ...]) -> float:
        """The window of zipar on a grid."""
        own = 0.4 * grid[1]
        return self.lag or max(math.floor(own) if self.adaptive else own, 1)

    def controlled(self) -> drafts.Control:
        """How many guesses a model makes."""
        control = self.control or ("thompson" if self.name == "eesd" else "fixed")
        if control == "threshold":
            return drafts.threshold(most=self.guesses)
        return drafts.thompson() if control == "thompson" else drafts.fixed()

    @property
    def tree(self) -> bool:
        """Whether another model guesses trees, not chains."""
        return self.name in ("self_speculative", "draft") and bool(self.branches or self.beams)

    @property
    def successors(self) -> tuple[int, ...]:
        """Children of a guess of ngram, by depth."""
        return self.branches or (3, 2, 1)

    @property
    def guesses(self) -> int:
        """Of a model, at most so many a call."""
        return self.window or 4

    def looked_at(self, vocab: int) -> int:
        """Codes that LANTERN looks at."""
        return self.neighbours or min(1000, vocab - 1)

    def guessing(self, depth: int) -> tuple[int, ...]:
        """The layers, of so many, that guess in self_speculative."""
        return self.layers or tuple(range(0, depth, 2))
