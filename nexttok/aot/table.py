"""One table of what was compiled for which slice, from compile.json of workdirs.

    python -m nexttok.aot.table runs/var_imagenet256_d30 ... [--write=README.md]

Prints Markdown; with --write it replaces what stands between the two "slices" comments of a file.
"""

import json
import pathlib
import sys

from nexttok.aot.report import GIB
from nexttok.config import check
from nexttok.evals.markdown import Table

COLUMNS = (
    "config", "slice", "program", "parameters", "batch", "mesh", "GiB per device",
    "best time", "collectives", "MFU bound", "compiled in",
)  # fmt: skip


def rows(workdir: str) -> list[list[str]]:
    """The cells of one workdir.

    Raises:
      ConfigError: nothing was compiled there.
    """
    path = pathlib.Path(workdir) / "compile.json"
    check(path.is_file(), "workdir", workdir, "a workdir of --mode=compile")
    found = json.loads(path.read_text())
    return [
        cells(pathlib.Path(workdir).name, name, r) for name, part in found.items() for r in part
    ]


def cells(config: str, name: str, row: dict) -> list[str]:
    """The cells of one program."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items()) or "1"
    memory = f"{row['bytes'] / GIB:.1f}"
    if "capacity" in row:
        memory += f" of {row['capacity'] / GIB:.0f}"
    head = [config, name, row["program"], f"{row['parameters'] / 1e6:,.0f} M", f"{row['batch']:,}",
            mesh, memory]  # fmt: skip
    if "seconds" not in row:
        return [*head, "does not fit" if not row.get("fits", True) else "", "", "", ""]
    return [
        *head, f"{row['seconds'] * 1e3:,.1f} ms",
        f"{row['collective_seconds'] / row['seconds']:.0%}", f"{row['mfu_bound']:.2f}",
        f"{row['compile_seconds']:.0f} s",
    ]  # fmt: skip


TABLE = Table("slices", "nexttok.aot.table", __doc__, COLUMNS, rows)


if __name__ == "__main__":
    sys.exit(TABLE.main())
