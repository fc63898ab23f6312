"""One table of finished runs, from their files.

    python -m nexttok.evals.table runs/llamagen runs/var ... [--write=README.md]

Prints Markdown; with --write it replaces what stands between the two "systems" comments of a file.
"""

import argparse
import json
import pathlib
import sys

from nexttok.config import ConfigError, check
from nexttok.evals.results import write_text

START = "<!-- systems: written by python -m nexttok.evals.table -->"
END = "<!-- end of systems -->"
COLUMNS = (
    "system", "tokenizer", "plan", "context", "head", "tokens", "network calls",
    "class agreement", "Fréchet distance", "images/s",
)  # fmt: skip


def row(workdir: str) -> list[str]:
    """The cells of one run.

    Raises:
      ConfigError: the workdir has no results of samples.
    """
    root = pathlib.Path(workdir)
    files = [root / name for name in ("config.json", "results.json", "speed.json")]
    check(all(f.is_file() for f in files), "workdir", workdir, "the workdir of a finished run")
    config, results, speed = (json.loads(f.read_text()) for f in files)
    check("samples" in results, "workdir", workdir, "a run with a generator")
    parts, samples = config["generator"], results["samples"]
    last = samples["prefixes"][-1]
    tokenizer = config["tokenizer"]
    parted = "bottleneck" in tokenizer
    return [
        results["name"],
        f"{tokenizer['encoder']['name']}, {tokenizer['bottleneck']['name']}"
        if parted
        else tokenizer["name"],
        *(parts[p]["name"] for p in ("plan", "context", "head")),
        str(last["tokens"]),
        str(samples["network_calls"]),
        f"{last['class_agreement']:.3f}" if "class_agreement" in last else "",
        f"{last['frechet_distance']:.2f}",
        f"{speed['images_per_second']:.3g}",
    ]


def table(workdirs: list[str]) -> str:
    """A Markdown table, one row per workdir."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(row, workdirs)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(path: str, text: str) -> None:
    """Puts the table between the comments START and END of a file.

    Raises:
      ConfigError: the file lacks them.
    """
    file = pathlib.Path(path)
    old = file.read_text() if file.is_file() else ""
    check(START in old and END in old, "write", path, f"a file with {START} and {END}")
    head, _, rest = old.partition(START)
    write_text(file, f"{head}{START}\n{text}\n{END}{rest.partition(END)[2]}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.evals.table", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--write", default="", help="a file with the two comments")
    args = parser.parse_args(argv)
    try:
        text = table(args.workdirs)
        if args.write:
            write(args.write, text)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
