"""What a compiled program needs of a device, against what the device has."""

import re
from typing import Any

from nexttok import chips
from nexttok.aot.hlo import Collective, Costs, parse

GIB = 2**30


def of(compiled: Any, mesh: Any, model_flops: float) -> dict:
    """Numbers of one program, per device unless their name says otherwise.

    Memory is XLA's own account. `seconds` is a roofline: the longest of all products at the peak,
    all bytes at the memory's bandwidth, and all collectives on the links and, between slices, the
    network, each as if the others were hidden behind it; `mfu_bound` is the model's FLOPs against
    what the devices could have done in that time. Both are left out for devices whose peaks are not
    known.
    """
    memory = compiled.memory_analysis()
    slices = {getattr(device, "slice_index", 0) for device in mesh.devices.flat}
    costs = parse(compiled.as_text(), len(slices))
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "bytes": used,
        "flops": costs.flops,
        "model_flops_of_all": model_flops,
        "memory_traffic": costs.bytes,
        "collectives": kinds(costs),
        "unknown_loops": costs.unknown_loops,
    }
    chip = chips.find(mesh.devices.flat[0].device_kind)
    if chip is None:
        return found
    return found | {"capacity": chip.memory, "fits": used <= chip.memory} | roofline(
        costs, chip, torus(mesh), model_flops / mesh.size
    )  # fmt: skip


def kinds(costs: Costs) -> dict:
    """Bytes sent inside slices and between them, and calls, of every kind of collective."""
    found: dict[str, dict[str, float]] = {}
    for c in costs.collectives:
        kind = found.setdefault(c.kind, {"bytes": 0.0, "network_bytes": 0.0, "calls": 0.0})
        for name, more in zip(kind, (c.bytes, c.network, c.count), strict=True):
            kind[name] += more
    return found


def roofline(costs: Costs, chip: chips.Chip, sides: list[int], asked: float) -> dict:
    """Best possible seconds, their parts, and the bound of the model's FLOPs utilization.

    Args:
      costs: per device.
      chip: its peaks; where it states no links, collectives count as free.
      sides: of the slice's torus, longest first.
      asked: FLOPs of the model per device.
    """
    sent = sum(
        c.bytes / (chip.link * axes(c, sides)) + c.network / chip.network
        for c in costs.collectives
        if chip.link
    )
    parts = {
        "compute_seconds": costs.flops / chip.flops,
        "memory_seconds": costs.bytes / chip.bandwidth,
        "collective_seconds": sent,
    }
    seconds = max(parts.values())
    return parts | {
        "seconds": seconds,
        "collective_share": sent / seconds,
        "mfu_bound": asked / (chip.flops * seconds),
    }


def torus(mesh: Any) -> list[int]:
    """Devices along the axes of the slice, longest first; one device is an axis of 1."""
    where = [getattr(d, "coords", (d.id,)) for d in mesh.devices.flat]
    return sorted((max(c) + 1 for c in zip(*where, strict=True)), reverse=True)


def axes(collective: Collective, sides: list[int]) -> int:
    """Axes of the torus that a group needs at least, and so the links that it can use."""
    reach = 1
    for used, side in enumerate(sides, start=1):
        reach *= side
        if reach >= collective.group:
            return used
    return len(sides)


NUMBER = r"([\d.]+)([KMGT]?)"
REFUSALS = (  # of XLA's compiler for TPUs
    rf"\({NUMBER}\) exceeds available HBM \({NUMBER}\)",
    rf"Used {NUMBER} of {NUMBER} hbm",
)


def excess(error: str) -> dict | None:
    """What XLA says of a program that does not fit: bytes it needs at least, and has; None for
    other errors."""
    found = next(filter(None, (re.search(pattern, error) for pattern in REFUSALS)), None)
    if found is None:
        return None
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    used, capacity = (float(found[i]) * scale[found[i + 1]] for i in (1, 3))
    return {"bytes": used, "capacity": capacity}


def line(row: dict) -> str:
    """The same in one line."""
    memory = f"{row['bytes'] / GIB:.2f} GiB"
    if "capacity" in row:
        memory += f" of {row['capacity'] / GIB:.1f}"
    if not row.get("fits", True):
        return f"{memory}: does not fit"
    if "seconds" not in row:
        return memory
    return (f"{memory}, at best {row['seconds'] * 1e3:.2f} ms, MFU at most {row['mfu_bound']:.2f}, "
            f"collectives {row['collective_share']:.0%} of it")  # fmt: skip


def table(row: dict) -> str:
    """A program's numbers for people."""
    mesh = " ".join(f"{name}={size}" for name, size in row["mesh"].items()) or "one device"
    head = f"{row['program']}: {row['parameters']:,} parameters, batch {row['batch']:,}"
    lines = [f"{head}, {row['devices']} x {row['kind']}, {mesh}"]
    limit = f" of {row['capacity'] / GIB:.1f}" if "capacity" in row else ""
    if "flops" not in row:
        over = (row["bytes"] - row["capacity"]) / GIB
        lines.append(f"  memory        {row['bytes'] / GIB:.2f}{limit} GiB: "
                     f"does not fit, by {over:.2f} GiB or more")  # fmt: skip
        return "\n".join(lines)
    kinds_of = {"arguments": "argument", "temporaries": "temporary", "output": "output"}
    parts = ", ".join(f"{said} {row[f'{name}_bytes'] / GIB:.2f}" for said, name in kinds_of.items())
    lines.append(f"  memory        {row['bytes'] / GIB:.2f}{limit} GiB ({parts})")
    lines.append(
        f"  FLOPs         {row['flops']:.3e}, "
        f"the model's {row['model_flops_of_all'] / row['devices']:.3e}"
    )
    for kind, sent in row["collectives"].items():
        away = sent["network_bytes"]
        between = f" and {away / GIB:.3f} GiB between slices" if away else ""
        lines.append(
            f"  {kind:13s} {sent['bytes'] / GIB:.3f} GiB{between} in {sent['calls']:,.0f} calls"
        )
    if "seconds" in row:
        parts = ", ".join(f"{name} {row[f'{name}_seconds'] * 1e3:.2f}"
                          for name in ("compute", "memory", "collective"))  # fmt: skip
        lines.append(f"  at best       {row['seconds'] * 1e3:.2f} ms ({parts}), "
                     f"so MFU at most {row['mfu_bound']:.2f}")  # fmt: skip
    lines.append(f"  compiled in   {row['compile_seconds']:.1f} s")
    return "\n".join(lines)
