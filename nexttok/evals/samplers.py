"""One table of the samplers of trained models, from the files of `--mode=samplers`.

    python -m nexttok.evals.samplers runs/llamagen runs/mar ... [--write=README.md]

Prints Markdown; with --write it replaces what stands between the two "samplers" comments of a file.
"""

import json
import pathlib
import sys

from nexttok.config import check
from nexttok.evals.markdown import Table, significant

COLUMNS = (
    "system", "sampler", "network calls", "others", "class agreement", "Fréchet distance",
    "images/s, batch 8", "speed-up",
)  # fmt: skip
OTHERS = {
    "rounds": "a sample", "accepted": "guesses kept", "head_calls": "of the head",
    "selector_calls": "of the selector", "local_calls": "local", "rows": "rows a sample",
    "judged": "judged", "revoked": "revoked",
}  # fmt: skip


def rows(workdir: str) -> list[list[str]]:
    """The cells of one run's samplers.

    Raises:
      ConfigError: the workdir has no comparison.
    """
    file = pathlib.Path(workdir) / "samplers.json"
    check(file.is_file(), "workdir", workdir, "a workdir after --mode=samplers")
    found = json.loads(file.read_text())

    def cells(row):
        others = [f"{round(row[k], 1):g} {word}" for k, word in OTHERS.items() if k in row]
        agreement = row.get("class_agreement")
        return [
            found["name"], row["sampler"], f"{round(row['network_calls'], 1):g}",
            ", ".join(others), "" if agreement is None else f"{agreement:.3f}",
            f"{row['frechet_distance']:.2f}", significant(row["images_per_second"]),
            f"{row['speedup']:.2f}",
        ]  # fmt: skip

    return [cells(row) for row in found["rows"]]


TABLE = Table("samplers", "nexttok.evals.samplers", __doc__, COLUMNS, rows)


if __name__ == "__main__":
    sys.exit(TABLE.main())
