"""One table of finished runs, from their files.

    python -m nexttok.evals.table runs/llamagen runs/var ... [--write=README.md]

Prints Markdown; with --write it replaces what stands between the two "systems" comments of a file.
"""

import json
import pathlib
import sys

from nexttok.catalog import parts
from nexttok.config import check
from nexttok.evals.markdown import Table, significant
from nexttok.evals.results import read_run

COLUMNS = (
    "system", "tokenizer", "plan", "context", "head", "tokens", "network calls",
    "class agreement", "Fréchet distance", "images/s",
)  # fmt: skip


def numbers(workdir: str) -> dict:
    """What a run measured at its full number of tokens, and its parts; "" for what it has not.

    Raises:
      ConfigError: the workdir holds no finished run.
    """
    config, results = read_run(workdir)
    coded = results["reconstruction"]["prefixes"][-1]
    samples = results.get("samples", {"prefixes": [{}]})
    drawn = samples["prefixes"][-1]
    file = pathlib.Path(workdir) / "speed.json"
    speed = json.loads(file.read_text()) if file.is_file() else {}
    return {
        "PSNR": coded["psnr"],
        "SSIM": coded["ssim"],
        "bits per token": results.get("likelihood", {}).get("bits_per_token", ""),
        "agreement": drawn.get("class_agreement", ""),
        "Fréchet distance": drawn.get("frechet_distance", ""),
        "images/s": speed.get("images_per_second", ""),
        "calls": samples.get("network_calls", ""),
        "tokens": drawn.get("tokens", coded["tokens"]),
        "bits": round(coded["bits"]) if "bits" in coded else "",
        "parameters": f"{sum(results['parameters'].values()) / 1e6:.2f} M",
        "data": f"{config['data']['source']} {config['data']['resolution']}",
        **parts(config),
    }


def row(workdir: str) -> list[str]:
    """The cells of one run.

    Raises:
      ConfigError: the workdir has no results of samples.
    """
    found = numbers(workdir)
    check(found["Fréchet distance"] != "", "workdir", workdir, "a run with a generator")
    return [
        read_run(workdir)[1]["name"],
        *(found[part] for part in ("tokenizer", "plan", "context", "head")),
        str(found["tokens"]),
        f"{round(found['calls'], 1):g}",
        f"{found['agreement']:.3f}" if found["agreement"] != "" else "",
        f"{found['Fréchet distance']:.2f}",
        significant(found["images/s"]) if found["images/s"] != "" else "",
    ]


TABLE = Table("systems", "nexttok.evals.table", __doc__, COLUMNS, lambda workdir: [row(workdir)])


if __name__ == "__main__":
    sys.exit(TABLE.main())
