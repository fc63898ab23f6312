"""Plans: which tokens are predicted together, and in which order.

A plan is an order of the token indices and a list of step sizes; attention masks, network calls
and the decode loop all follow from it. Plans are host-side and static under jit; only a random
order, drawn per sample, is traced.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from nexttok.config import check, check_unread
from nexttok.tokens import TokenSpec

ORDERS = ("fixed", "random", "confidence")


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """`config.generator.plan`; what a plan does not read (READS) must be off.

    Attributes:
      name: a function of this module.
      block: tokens per step where the plan has equal steps of free size; 0 elsewhere. Of cells and
        subsamples: pieces along each axis.
      steps: steps of a scheduled plan (random, confidence); 0 for one token a step.
      schedule: how sizes grow: '' | cosine | arccos | randar.
      lead: blocks only: the first block is predicted one token at a time (NBP's hybrid).
      given: blocks only: so many blocks in front are never predicted but always known (NBP's pure
        model, which continues a video).
    """

    name: str
    block: int
    steps: int
    schedule: str
    lead: bool
    given: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Tokens in order of generation, cut into steps.

    Attributes:
      order: int32 [N], a permutation; the first sizes[0] of them are predicted in step 0, ...
      sizes: tokens per step; they sum to N.
      kind: "fixed", "random" (an order is drawn per sample; `order` is one example) or
        "confidence" (the sampler chooses, step by step).
      config: what the plan was made of, for `after`.
      given: steps in front that predict nothing, as their tokens are known.
    """

    order: Int[np.ndarray, "N"]
    sizes: tuple[int, ...]
    kind: str = "fixed"
    config: PlanConfig | None = None
    given: int = 0

    def __post_init__(self):
        n = len(self.order)
        whole = np.array_equal(np.sort(self.order), np.arange(n))
        check(
            whole, "generator.plan", self.order, f"an order that is a permutation of 0 .. {n - 1}"
        )
        fits = sum(self.sizes) == n and all(s >= 1 for s in self.sizes)
        check(fits, "generator.plan", self.sizes, f"positive step sizes that sum to {n} tokens")
        check(self.kind in ORDERS, "generator.plan", self.kind, " | ".join(ORDERS))
        some = 0 <= self.given < len(self.sizes)
        check(some, "generator.plan.given", self.given, f"0 .. below {len(self.sizes)} steps")

    @property
    def length(self) -> int:
        """Number of tokens N."""
        return len(self.order)

    @property
    def calls(self) -> int:
        """Steps that predict; each is one network call, except where a head or solver says more."""
        return len(self.sizes) - self.given

    @property
    def known(self) -> int:
        """Tokens of the given steps."""
        return sum(self.sizes[: self.given])

    @property
    def step_of_slot(self) -> Int[np.ndarray, "N"]:
        """Step that predicts the i-th token of the order."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes).astype(np.int32)

    @property
    def step_of_token(self) -> Int[np.ndarray, "N"]:
        """Step that predicts token index t."""
        steps = np.empty_like(self.step_of_slot)
        steps[self.order] = self.step_of_slot
        return steps

    def prefix(self, tokens: int) -> "Plan":
        """The plan of the first `tokens` tokens of the order, cutting the last step if need be.

        Raises:
          ConfigError: unless tokens <= N and one of them is predicted, or the kept order is not a
            prefix of the indices.
        """
        least = self.known + 1
        check(least <= tokens <= self.length, "sample.tokens", tokens, f"{least} .. {self.length}")
        ends = np.minimum(np.cumsum(self.sizes), tokens)
        sizes = np.diff(ends, prepend=0)
        kept = tuple(int(s) for s in sizes if s)
        return Plan(self.order[:tokens], kept, self.kind, self.config, self.given)

    def giving(self, steps: int) -> "Plan":
        """The plan with so many steps given, where it gives some already; 0 is no change.

        Raises:
          ConfigError: fewer than it gives, or a plan that gives none or would predict none.
        """
        least, most = self.given, len(self.sizes) - 1
        allowed = f"0, or {least} .. {most} steps" if least else "0, as generator.plan gives none"
        check(not steps or 0 < least <= steps <= most, "sample.given", steps, allowed)
        return dataclasses.replace(self, given=steps or self.given)

    def after(self, given: int) -> "Plan":
        """The plan when the first `given` tokens of a free order are known: one step gives them,
        the schedule, of at most as many steps as tokens are left, the rest.

        Raises:
          ConfigError: the order is fixed, or nothing is left.
        """
        if not given:
            return self
        check(self.kind != "fixed" and given < self.length, "sample.mask", given,
              f"fewer than {self.length} known tokens, and a plan of free order")  # fmt: skip
        left = self.length - given
        steps = min(self.config.steps or self.length, left)
        rest = scheduled(dataclasses.replace(self.config, steps=steps), left)
        return Plan(self.order, (given, *rest), self.kind, self.config)


def raster(config: PlanConfig, spec: TokenSpec) -> Plan:
    """One token a step, row-major; for 1D tokens, from the first to the last.

    0 1 2
    3 4 5
    """
    del config
    return equal(spec.length, 1)


def scales(config: PlanConfig, spec: TokenSpec) -> Plan:
    """One map of a coarse-to-fine pyramid a step (VAR). Sides 1, 2:  0 | 1 1
    1 1
    """
    del config
    allowed = "raster, random or confidence, as this tokenizer has no scales"
    check(len(spec.scales) > 0, "generator.plan.name", "scales", allowed)
    return Plan(np.arange(spec.length, dtype=np.int32), tuple(s * s for s in spec.scales))


def rows(config: PlanConfig, spec: TokenSpec) -> Plan:
    """One row of the grid a step (NBP's released block).

    0 0 0
    1 1 1
    """
    return blocks(dataclasses.replace(config, block=spec.grid[-1]), spec)


def frames(config: PlanConfig, spec: TokenSpec) -> Plan:
    """One frame of a (T, H, W) grid a step."""
    check(len(spec.grid) == 3, "generator.plan.name", "frames", "another plan, as this is no video")
    return blocks(dataclasses.replace(config, block=math.prod(spec.grid[1:])), spec)


def blocks(config: PlanConfig, spec: TokenSpec) -> Plan:
    """`block` consecutive tokens a step; with `lead`, the first block token by token.

    block 2:  0 0 1 1 2 2      with lead:  0 1 2 2 3 3      given 1:  - - 1 1 2 2
    """
    n, size = spec.length, config.block
    fits = size >= 1 and n % size == 0
    check(fits, "generator.plan.block", size, f"a divisor of the {n} tokens")
    check(not (config.lead and config.given), "generator.plan.given", config.given,
          "0 with lead, which predicts the first block")  # fmt: skip
    whole = (size,) * (n // size)
    sizes = (1,) * size + whole[1:] if config.lead else whole
    return Plan(np.arange(n, dtype=np.int32), sizes, given=config.given)


def cells(config: PlanConfig, spec: TokenSpec) -> Plan:
    """Square cells, `block` along each axis, one a step (xAR).

    block 2:  0 0 1 1
              2 2 3 3
    """
    high, wide = _square(config, spec)
    y, x = np.divmod(np.arange(spec.length), spec.grid[1])
    return _grouped((y // high) * config.block + x // wide, config.block**2)


def subsamples(config: PlanConfig, spec: TokenSpec) -> Plan:
    """Interleaved grids, `block` along each axis, one a step (xAR).

    block 2:  0 1 0 1
              2 3 2 3
    """
    _square(config, spec)
    y, x = np.divmod(np.arange(spec.length), spec.grid[1])
    return _grouped((y % config.block) * config.block + x % config.block, config.block**2)


def whole(config: PlanConfig, spec: TokenSpec) -> Plan:
    """Everything in one step."""
    del config
    return equal(spec.length, spec.length)


def random(config: PlanConfig, spec: TokenSpec) -> Plan:
    """A random order per sample, in the steps of a schedule (RandAR, ARPG, MAR)."""
    sizes = scheduled(config, spec.length)
    return Plan(np.arange(spec.length, dtype=np.int32), sizes, "random", config)


def confidence(config: PlanConfig, spec: TokenSpec) -> Plan:
    """The surest tokens first, in the steps of a schedule (MaskGIT)."""
    sizes = scheduled(config, spec.length)
    return Plan(np.arange(spec.length, dtype=np.int32), sizes, "confidence", config)


def equal(tokens: int, size: int) -> Plan:
    """`tokens` tokens in index order, `size` a step."""
    return Plan(np.arange(tokens, dtype=np.int32), (size,) * (tokens // size))


def _square(config, spec):
    n = config.block
    fits = len(spec.grid) == 2 and n >= 1 and all(side % n == 0 for side in spec.grid)
    check(fits, "generator.plan.block", n, f"a divisor of both sides of a 2D grid, not {spec.grid}")
    return spec.grid[0] // n, spec.grid[1] // n


def _grouped(step, count):
    order = np.argsort(step, kind="stable").astype(np.int32)
    return Plan(order, (len(step) // count,) * count)


def scheduled(config: PlanConfig, tokens: int) -> tuple[int, ...]:
    """Step sizes of a schedule over `tokens` tokens.

    cosine: floor(N cos(pi (s+1) / 2K)) stay hidden after step s (MaskGIT, MAR, ARPG); arccos: floor
    of N arccos((s+1)/K) / (pi/2) (ARPG); at least one token is predicted and, before the last step,
    one stays. randar: 1, then so that int((1 - cos(pi (s+1) / 2K)) N + 1) are known after step s.

    Raises:
      ConfigError: unknown schedule, or more steps than tokens.
    """
    count = config.steps or tokens
    check(1 <= count <= tokens, "generator.plan.steps", count, f"0 .. {tokens} tokens")
    allowed = ("", *SCHEDULES)
    check(
        config.schedule in allowed, "generator.plan.schedule", config.schedule, " | ".join(allowed)
    )
    if count == tokens or not config.schedule:
        sizes = np.diff(np.linspace(0, tokens, count + 1).round().astype(int))
        return tuple(int(s) for s in sizes)
    return SCHEDULES[config.schedule](tokens, count)


def _hidden(ratio):
    def sizes(tokens, count):
        left, out = tokens, []
        for step in range(count):
            kept = max(1, min(left - 1, int(tokens * ratio((step + 1) / count))))
            out.append(left if step == count - 1 else left - kept)
            left = kept
        return tuple(out)

    return sizes


def _randar(tokens, count):
    known, out = 1, [1]
    while known < tokens:
        share = 1.0 - math.cos(math.pi / 2 * (len(out) + 1) / count)
        new = min(max(min(tokens, int(share * tokens + 1)) - known, 1), tokens - known)
        out.append(new)
        known += new
    return tuple(out)


SCHEDULES = {
    "cosine": _hidden(lambda r: math.cos(math.pi / 2 * r)),
    "arccos": _hidden(lambda r: math.acos(r) / (math.pi / 2)),
    "randar": _randar,
}

# Every plan, and the options of config.generator.plan and config.sample that it reads.
READS = {
    raster: (),
    scales: (),
    rows: ("lead", "given"),
    frames: ("lead", "given"),
    blocks: ("block", "lead", "given"),
    cells: ("block",),
    subsamples: ("block",),
    whole: (),
    random: ("steps", "schedule"),
    confidence: ("steps", "schedule", "confidence"),
}
PLANS = {plan.__name__: plan for plan in READS}
OFF = {"block": 0, "steps": 0, "schedule": "", "lead": False, "given": 0}


def reads(name: str) -> tuple[str, ...]:
    """The options that the plan of a name reads."""
    return READS[PLANS[name]]


def make(config: PlanConfig, spec: TokenSpec) -> Plan:
    """The plan of a config section for the tokens of a tokenizer.

    Raises:
      ConfigError: no such plan, one that does not fit the tokens, or an option it does not read.
    """
    check(config.name in PLANS, "generator.plan.name", config.name, " | ".join(PLANS))
    check_unread(config, OFF, reads(config.name), "generator.plan", f"plan {config.name}")
    return PLANS[config.name](config, spec)
