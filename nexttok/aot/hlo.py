"""What a compiled program costs, counted from its text.

XLA's own cost analysis counts the body of a loop once; here every loop counts as often as it runs,
so that scanned layers, decode steps and micro-batches cost what they cost. Bytes are those of
high-bandwidth memory: operands that XLA keeps on the chip's own memory are free, and of an array of
which a fusion reads or writes a slice only the slice counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from nexttok.aot.text import Instruction, instruction
from nexttok.flops import attention, meetings

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# Instructions that move nothing: names, control, and the second halves of asynchronous pairs.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "domain",
)  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
GOES_ON = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')  # -1 where it starts
BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')  # of what the host sends


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and group: what one chip sends, and how often.

    Attributes:
      kind: of COLLECTIVES.
      group: chips of a slice that it joins; 1 where it joins slices.
      slices: that it joins.
      bytes: sent inside the slice.
      network: bytes sent to other slices.
      count: of calls.
    """

    kind: str
    group: int
    slices: int
    bytes: float
    network: float
    count: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one chip in one run of a program; the branches of a condition are equally likely.

    Attributes:
      flops: of matrix products, convolutions, and kernels that state theirs.
      bytes: of high-bandwidth memory, read or written.
      collectives: by kind and group.
      unknown_loops: loops whose number of rounds the text does not tell; they count once.
    """

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    unknown_loops: int


class Program:
    """Computations of a compiled program by name.

    Attributes:
      computations: name -> instructions by name, in order.
      entry: name of the one that runs.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry, here = "", ""
        text = re.sub(r"kernel_metadata=\{\n.*?\n\}", "kernel_metadata={}", text, flags=re.DOTALL)
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
            if header:
                here = header[2]
                self.computations[here] = {}
                self.entry = here if header[1] else self.entry
            elif here and line.startswith("  "):
                found = instruction(line)
                if found is not None:
                    self.computations[here][found.name] = found
                    if line.startswith("  ROOT "):
                        self.roots[here] = found

    def costs(self, slices: int = 1) -> Costs:
        """Of one run on so many slices."""
        flops, moved, unknown = 0.0, 0.0, 0
        sent: dict[tuple[str, int, int], list[float]] = {}
        for name, times, fused, known in self._runs(self.entry, 1.0, False):
            unknown += not known
            here = self.computations[name]
            for x in here.values():
                flops += times * _flops(x, here)
                if not fused:
                    moved += times * self._moved(x, here)
                found = _collective(x, here, slices, name)
                if found is not None:
                    total = sent.setdefault(found[:3], [0.0, 0.0, 0.0])
                    for i, more in enumerate((*found[3:], 1.0)):
                        total[i] += times * more
        collectives = tuple(Collective(*key, *sent[key]) for key in sorted(sent))
        return Costs(flops, moved, collectives, unknown)

    def _runs(
        self, name: str, times: float, fused: bool, known: bool = True
    ) -> Iterator[tuple[str, float, bool, bool]]:
        """(computation, how often it runs, whether inside a fusion, whether that is certain)."""
        yield name, times, fused, known
        for x in self.computations[name].values():
            if x.opcode == "while":
                rounds = self._rounds(x)
                for body in x.called("body"):
                    yield from self._runs(body, times * (rounds or 1), fused, rounds is not None)
            elif x.opcode == "conditional":
                branches = x.called("branch_computations", "true_computation", "false_computation")
                for branch in branches:
                    yield from self._runs(branch, times / len(branches), fused)
            elif x.opcode in ("fusion", "call", "async-start"):
                inside = fused or x.opcode == "fusion"
                for called in x.called("calls", "to_apply"):
                    yield from self._runs(called, times, inside)

    def _rounds(self, loop: Instruction) -> int | None:
        """Rounds of a loop: as XLA states them, or by the bound and the steps of its counter."""
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if stated:
            return int(stated[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        test, *sides = self._expression(condition, self.roots[condition].name)
        if test.opcode != "compare" or "direction=LT" not in test.attributes or len(sides) != 2:
            return None
        counter, bound = sides
        if counter.opcode != "get-tuple-element" or bound.opcode != "constant":
            return None
        place = int(re.search(r"\bindex=(\d+)", counter.attributes)[1])
        grown, *terms = self._expression(body, self.roots[body].operands[place])
        steps = [int(x.argument) for x in terms if x.opcode == "constant"]
        if grown.opcode != "add" or len(steps) != 1 or steps[0] < 1:
            return None
        return -(-int(bound.argument) // steps[0])

    def _expression(self, name: str, of: str) -> list[Instruction]:
        """An instruction of a computation and its operands, each as it is outside of fusions."""

        def found(name, of, given):
            x = self.computations[name][of]
            if x.opcode == "parameter" and given is not None:
                return given[int(x.argument)]
            if x.opcode == "fusion":
                (inner,) = x.called("calls")
                outer = [found(name, o, given) for o in x.operands]
                return found(inner, self.roots[inner].name, outer)
            return x, name, given

        x, name, given = found(name, of, None)
        return [x, *(found(name, o, given)[0] for o in x.operands)]

    def _moved(self, x: Instruction, here: dict[str, Instruction]) -> float:
        """Bytes of high-bandwidth memory that an instruction reads and writes."""
        if x.opcode in FREE or x.opcode.endswith("-done"):
            return 0.0
        read = [here[o].shapes for o in x.operands if o in here]
        written = sum(s.bytes for s in x.shapes if s.remote)
        if x.opcode in SLICES:
            return 2 * written if any(s.remote for s in read[0]) else written
        if x.opcode == "dynamic-update-slice":
            return 2 * sum(s.bytes for s in read[1]) if x.shapes[0].remote else 0.0
        if x.opcode.endswith("-start"):
            return sum(s.bytes for s in read[0] if s.remote)
        total = 0.0
        inner = next(iter(x.called("calls")), "") if x.opcode == "fusion" else ""
        if inner:
            written = self._written(inner, x)
        for i, shapes in enumerate(read):
            whole = sum(s.bytes for s in shapes if s.remote)
            total += min(whole, self._used(inner, i)) if inner and whole else whole
        return total + written

    def _used(self, name: str, index: int) -> float:
        """Bytes of its operand that a fusion reads: of slices, where it only takes slices."""
        body = self.computations[name]
        for p in body.values():
            if p.opcode == "parameter" and p.argument == str(index):
                break
        else:
            return math.inf
        handed = self._handed_on(name)
        total, names = 0.0, [p.name]
        for x in body.values():
            if not set(names) & set(x.operands) or x.name in handed:
                continue
            if x.opcode == "bitcast":
                names.append(x.name)
            elif x.opcode in SLICES and x.operands[0] in names:
                total += sum(s.bytes for s in x.shapes)
            elif x.opcode == "fusion":
                (inner,) = x.called("calls")
                total += sum(self._used(inner, i) for i, o in enumerate(x.operands) if o in names)
            elif x.opcode != "dynamic-update-slice" or x.operands[0] not in names:
                return math.inf  # and what is written in place is not read
        return total

    def _handed_on(self, name: str) -> set[str]:
        """A fusion's own names of a collective that goes on beside it, and of its outputs; it
        neither reads nor writes that collective's arrays, but hands them on."""
        body, root = self.computations[name].values(), self.roots[name]
        going = {x.name for x in body if GOES_ON.search(x.attributes)}
        return going | {root.name} if going and root.opcode == "tuple" else going

    def _written(self, name: str, fusion: Instruction) -> float:
        """Bytes that a fusion writes: of the slice, where it updates one in place."""
        body, root, handed = self.computations[name], self.roots[name], self._handed_on(name)
        whole = sum(s.bytes for s in fusion.shapes if s.remote)
        if handed and root.opcode == "tuple":
            whole = sum(
                shape.bytes for shape, made in zip(fusion.shapes, root.operands, strict=True)
                if shape.remote and made not in handed and body[made].opcode != "parameter"
            )  # fmt: skip
        updates = [x for x in body.values() if x.opcode == "dynamic-update-slice"]
        for x in updates:
            target = sum(s.bytes for s in x.shapes)
            if any(s.remote and s.bytes == target for s in fusion.shapes):
                whole -= target - sum(s.bytes for s in body[x.operands[1]].shapes)
        return max(whole, 0.0)


def parse(text: str, slices: int = 1) -> Costs:
    """Costs of the text of a compiled program, `compiled.as_text()`, on so many slices."""
    return Program(text).costs(slices)


def _flops(x: Instruction, here: dict[str, Instruction]) -> float:
    if x.opcode == "dot":
        (left, *_), out = here[x.operands[0]].shapes, x.shapes[0]
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.attributes)[1]
        inner = math.prod(left.sizes[int(a)] for a in axes.split(",") if a)
        return 2.0 * math.prod(out.sizes) * inner
    if x.opcode == "convolution":
        return _convolution(x, *(here[o].shapes[0].sizes for o in x.operands))
    if x.opcode == "custom-call":
        stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', x.attributes)
        if stated:
            return float(stated[1])
        named = re.search(r'op_name="([^"]*)"', x.attributes)
        return attention(named[1], [s.sizes for s in x.shapes], "area") if named else 0.0
    return 0.0


def _convolution(x: Instruction, image: tuple[int, ...], kernel: tuple[int, ...]) -> float:
    """Products of pixels that exist: padding and the holes of dilation cost nothing."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", x.attributes)
    options = dict(o.split("=") for o in window[1].split()) if window else {}
    sizes = x.shapes[0].sizes
    groups = re.search(r"batch_group_count=(\d+)", x.attributes)
    total = 2.0 * kernel[right.index("i")] * sizes[out.index("f")] * sizes[out.index("b")]
    spatial = sorted(c for c in out if c.isdigit())
    for k, c in enumerate(spatial):

        def option(name, default, k=k):
            found = options.get(name)
            return found.split("x")[k] if found else default

        low = int(option("pad", "0_0").split("_")[0])
        stride, spread = int(option("stride", 1)), int(option("lhs_dilate", 1))
        step = int(option("rhs_dilate", 1))
        side, taps, places = image[left.index(c)], kernel[right.index(c)], sizes[out.index(c)]
        total *= meetings(side, taps, places, stride, low, spread, step)
    return total / (int(groups[1]) if groups else 1)


def _collective(
    x: Instruction, here: dict[str, Instruction], slices: int, name: str
) -> tuple[str, int, int, float, float] | None:
    """(kind, chips, slices, bytes that one chip sends inside its slice, to others), of an
    instruction of the computation `name`.

    XLA for TPUs overlaps a collective with the fusions that follow its start, and repeats it in
    each of them; a scattered sum is a fusion of a sum and a slice; what goes to other slices is
    handed to the host.
    """
    kind = x.opcode.removesuffix("-start")
    away = BETWEEN.search(x.attributes) if kind == "send" else None
    if (kind not in COLLECTIVES and not away) or GOES_ON.search(x.attributes):
        return None
    given = sum(s.bytes for o in x.operands for s in here[o].shapes)
    if away:
        kind = away[1].lower().replace("_", "-")
        return kind, 1, slices, 0.0, _sent(kind, given, slices)
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    group = group_size(x.attributes)
    return kind, group, 1, _sent(kind, given, group), 0.0


def _sent(kind: str, given: float, group: int) -> float:
    """Bytes that one of a group sends in the best ring."""
    share = (group - 1) / group
    factors = {"all-gather": group - 1, "all-reduce": 2 * share, "reduce-scatter": share,
               "all-to-all": share, "ragged-all-to-all": share}  # fmt: skip
    return given * factors.get(kind, 1.0)


def group_size(attributes: str) -> int:
    """Chips that one collective joins; 2 for a permutation, whose pairs it lists.

    Raises:
      ValueError: they are not told in a way that is known.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([\w',:()]*)\}", attributes)
    if mesh:  # of an axis its whole size, or a part: 'x':(2)4 is the 4 behind the first 2
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if tiled:
        return int(tiled[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    if "source_target_pairs" in attributes:
        return 2
    raise ValueError(f"no groups in {attributes[:200]!r}")
