"""Runs side by side on one page that needs nothing but itself.

    python -m nexttok.evals.gallery runs/flextok runs/var ... [--out=gallery.html]

Numbers of all runs in one table, quality against speed and rate against distortion where there is
something to compare, then the same picture of every run: generation step by step, samples, growing
prefixes, edits, reconstructions, plans and attention masks, training curves.
"""

import argparse
import collections
import pathlib
import sys

from matplotlib.figure import Figure

from nexttok.config import ConfigError
from nexttok.evals import page, report, tokenizers
from nexttok.evals.results import write_text
from nexttok.evals.table import numbers


def labels(workdirs: list[str]) -> dict[str, str]:
    """Short names of workdirs: their last folder, the whole path where two share one."""
    times = collections.Counter(pathlib.Path(w).resolve().name for w in workdirs)
    names = ((w, pathlib.Path(w).resolve().name) for w in workdirs)
    return {w: name if times[name] == 1 else w for w, name in names}


def speed_figure(rows: dict[str, dict]) -> Figure:
    """Fréchet distance of samples against images a second."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, row in rows.items():
        axes.scatter(row["images/s"], row["Fréchet distance"], color="#2f6fde")
        axes.annotate(
            name, (row["images/s"], row["Fréchet distance"]), xytext=(5, 4),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("images a second")
    axes.set_ylabel("Fréchet distance of samples")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return figure


def charts(workdirs: dict[str, str], rows: dict[str, dict]) -> str:
    """Quality against speed, rate against distortion; each where two runs or more have it."""
    found = ""
    sampled = {n: r for n, r in rows.items() if r["images/s"] and r["Fréchet distance"] != ""}
    if len(sampled) > 1:
        found += report.svg(speed_figure(sampled), "quality against speed")
    coded = [tokenizers.read(w) | {"name": n} for w, n in workdirs.items() if rows[n]["bits"]]
    if len(coded) > 1:
        found += report.svg(tokenizers.rate_figure(coded), "rate against distortion")
    return found


def curves(workdir: str) -> str:
    """A run's training curves, folded."""
    series = report.read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    each = (f"<h4>{s}</h4>{report.curves_svg(s, x)}" for s, x in series.items())
    return f"<details><summary>{', '.join(series)}</summary>{''.join(each)}</details>"


def gallery(workdirs: list[str]) -> str:
    """The page.

    Raises:
      ConfigError: a workdir holds no finished run.
    """
    names = labels(workdirs)
    rows = {name: numbers(w) for w, name in names.items()}
    sections = {"Numbers": page.table([{"run": n} | row for n, row in rows.items()])}
    sections["Charts"] = charts(names, rows)
    for file, (title, _) in report.PICTURES.items():
        found = {name: report.shown(w, file) for w, name in names.items()}
        found = {name: body for name, body in found.items() if body}
        sections[title] = page.cards(found) if found else ""
    sections["Training"] = page.cards({name: curves(w) for w, name in names.items()})
    sections = {title: body for title, body in sections.items() if body}
    return page.document("nexttok: runs side by side", ", ".join(rows), sections)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.evals.gallery", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--out", default="gallery.html", help="the page (gallery.html)")
    args = parser.parse_args(argv)
    try:
        text = gallery(list(dict.fromkeys(args.workdirs)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(args.out, text)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
