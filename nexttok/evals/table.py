"""One table of finished runs, from their files.

    python -m nexttok.evals.table runs/llamagen runs/var ... [--write=README.md]

Prints Markdown; with --write it replaces what stands between the two "systems" comments of a file.
"""

import json
import pathlib
import sys

from nexttok.catalog import parts
from nexttok.config import check
from nexttok.evals.markdown import Table

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
    samples, named = results["samples"], parts(config)
    last = samples["prefixes"][-1]
    return [
        results["name"],
        *(named[part] for part in ("tokenizer", "plan", "context", "head")),
        str(last["tokens"]),
        f"{round(samples['network_calls'], 1):g}",
        f"{last['class_agreement']:.3f}" if "class_agreement" in last else "",
        f"{last['frechet_distance']:.2f}",
        f"{speed['images_per_second']:.3g}",
    ]


TABLE = Table("systems", "nexttok.evals.table", __doc__, COLUMNS, lambda workdir: [row(workdir)])


if __name__ == "__main__":
    sys.exit(TABLE.main())
