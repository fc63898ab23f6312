"""Lines of a compiled program's text: arrays and instructions."""

import dataclasses
import math
import re

# Bits of the types whose names do not tell them.
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program: element type, sizes, and whether it lives in high-bandwidth memory."""

    kind: str
    sizes: tuple[int, ...]
    remote: bool

    @property
    def bytes(self) -> float:
        """Its size."""
        bits = BITS.get(self.kind)
        if bits is None:  # f32, s4, f8e4m3fn, ...
            bits = int(re.match(r"[a-z]+(\d+)", self.kind)[1])
        return bits / 8 * math.prod(self.sizes)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; a tuple has several shapes."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Names of computations under attributes such as body=."""
        found = []
        for key in keys:
            for one, several in re.findall(
                rf"\b{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes
            ):
                found += [one] if one else re.findall(r"%([\w.\-]+)", several)
        return found


def _balanced(text: str, start: int) -> int:
    """Index just past the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += text[i] in "([{"
        depth -= text[i] in ")]}"
        if not depth:
            return i + 1
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def shapes_of(text: str) -> tuple[Shape, ...]:
    """Arrays in the text of a type; memory space 0 is high-bandwidth memory."""
    found = []
    for kind, sizes, layout in ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(s) for s in sizes.split(",") if s)
        found.append(Shape(kind, sizes, not space or space[1] == "0"))
    return tuple(found)


def instruction(line: str) -> Instruction | None:
    """Reads "%name = type opcode(operands), attributes"; None for another line."""
    head, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals or not head.startswith("%"):
        return None
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    kinds, rest = rest[:end], rest[end:].strip()
    open_ = rest.find("(")
    close = _balanced(rest, open_)
    argument = rest[open_ + 1 : close - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(head[1:], shapes_of(kinds), rest[:open_], operands, argument, rest[close:])
