"""Rate and distortion of trained tokenizers, from the results of their runs.

    python -m nexttok.evals.tokenizers --workdirs runs/vqvae runs/titok ... [--out=tokenizers]

Prints a Markdown table: bits of a picture (or video), PSNR, SSIM, usage and perplexity of the
codes, a row for every prefix that decodes. With --out it also draws them, OUT.png, and writes
OUT.md.
"""

import argparse
import json
import pathlib
import sys

from matplotlib.figure import Figure

from nexttok.config import ConfigError, check
from nexttok.evals.results import write_text

COLUMNS = (
    "tokenizer", "data", "tokens", "bits", "PSNR", "SSIM", "Fréchet distance", "usage",
    "perplexity", "parameters",
)  # fmt: skip
MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "frechet_distance": "Fréchet distance"}


def read(workdir: str) -> dict:
    """{name, data, rows: [{tokens, bits, psnr, ssim[, frechet_distance]}], codebook, parameters}.

    Raises:
      ConfigError: the workdir has no results, or its tokens are continuous and so without a rate.
    """
    root = pathlib.Path(workdir)
    files = root / "config.json", root / "results.json"
    check(all(f.is_file() for f in files), "workdirs", workdir, "workdirs of finished runs")
    config, results = (json.loads(f.read_text()) for f in files)
    found = results["reconstruction"]
    rated = all("bits" in row for row in found["prefixes"])
    check(rated, "workdirs", workdir, "tokenizers with codes: latents have no rate")
    counts = results["parameters"].items()
    parts = {k: v for k, v in counts if k.startswith(("tokenizer/", "latent/"))}
    kept = [v for k, v in parts.items() if not k.endswith(("discriminator", "lecam", "projector"))]
    return {
        "name": results["name"],
        "data": f"{config['data']['source']} {config['data']['resolution']}",
        "rows": found["prefixes"],
        "codebook": found["codebook"],
        "parameters": sum(kept),
    }


def table(runs: list[dict]) -> str:
    """Markdown, a row per prefix; what belongs to the codebook stands in the last of a run."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for run in runs:
        for row in run["rows"]:
            last = row is run["rows"][-1]
            distance = row.get("frechet_distance")
            lines.append([
                run["name"], run["data"], str(row["tokens"]), f"{row['bits']:.0f}",
                f"{row['psnr']:.2f}", f"{row['ssim']:.3f}",
                "" if distance is None else f"{distance:.2f}",
                f"{100 * run['codebook']['usage']:.0f} %" if last else "",
                f"{run['codebook']['perplexity']:.0f}" if last else "",
                f"{run['parameters'] / 1e6:.2f} M" if last else "",
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rate_figure(runs: list[dict]) -> Figure:
    """Every measure against bits; prefixes of one tokenizer are joined by a line."""
    measures = [m for m in MEASURES if any(m in row for run in runs for row in run["rows"])]
    figure = Figure(figsize=(5.2 * len(measures), 4.2), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        for run in runs:
            rows = [row for row in run["rows"] if measure in row]
            axis.plot(
                [row["bits"] for row in rows], [row[measure] for row in rows],
                marker="o", label=f"{run['name']} ({run['data']})",
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xlabel("bits")
        axis.set_ylabel(MEASURES[measure])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return figure


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.evals.tokenizers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--workdirs", nargs="+", required=True)
    parser.add_argument("--out", default="", help="where OUT.png and OUT.md go")
    args = parser.parse_args(argv)
    try:
        runs = [read(workdir) for workdir in args.workdirs]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(runs)
    if args.out:
        pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        rate_figure(runs).savefig(f"{args.out}.png", dpi=130)
        write_text(f"{args.out}.md", text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
