"""One table of runs of one config: what differs in their configs, and what was measured.

python -m nexttok.evals.sweeps runs/vqvae_sweep/* [--out=sweep.md]
"""

import argparse
import json
import sys

from nexttok.config import ConfigError
from nexttok.evals.markdown import markdown
from nexttok.evals.results import read_run, write_text
from nexttok.evals.table import numbers

MEASURES = (
    "bits", "PSNR", "SSIM", "bits per token", "agreement", "Fréchet distance", "calls", "images/s",
    "parameters",
)  # fmt: skip


def flat(config: dict, prefix: str = "") -> dict:
    """Nested keys as {"a.b": value}."""
    found = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def varied(configs: list[dict]) -> list[str]:
    """The keys in which configs differ, in the order of their names."""
    rows = [flat(config) for config in configs]
    keys = sorted(set().union(*rows))
    return [k for k in keys if len({json.dumps(row.get(k)) for row in rows}) > 1]


def short(value) -> str:
    """A cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def table(workdirs: list[str]) -> str:
    """Markdown: a row per run.

    Raises:
      ConfigError: a workdir holds no finished run.
    """
    configs = [read_run(w)[0] for w in workdirs]
    keys, measured = varied(configs), [numbers(w) for w in workdirs]
    shown = [m for m in MEASURES if any(row[m] != "" for row in measured)]
    rows = [
        [*(short(flat(c).get(k, "")) for k in keys), *(short(row[m]) for m in shown)]
        for c, row in zip(configs, measured, strict=True)
    ]
    return markdown([*keys, *shown], rows)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.evals.sweeps", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--out", default="", help="a file for the table")
    args = parser.parse_args(argv)
    try:
        text = table(args.workdirs)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out:
        write_text(args.out, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
