"""report.html: one self-contained page with a run's numbers, pictures and training curves."""

import html
import io
import json
import os
import pathlib

from matplotlib.figure import Figure

from nexttok.catalog import parts
from nexttok.evals import page
from nexttok.evals.results import read_run, write_text

FILM = "generation.png"
# pictures of a workdir that pages show, in this order: file -> title, caption
PICTURES = {
    FILM: (
        "Generation, step by step",
        "Beside each map of tokens, what they show by then.",
    ),
    "samples.png": ("Samples", "Generated images, one row per class."),
    "samples.gif": ("Moving samples", "Generated videos, one row per class."),
    "growing.png": ("Growing prefixes", "One generated sequence per class, decoded early."),
    "editing.png": ("Edits", "The source, what is kept of it, and the rest drawn anew by class."),
    "reconstructions.png": (
        "Reconstructions",
        "Held-out images decoded from ever longer prefixes.",
    ),
    "clusters.png": ("Clusters of codes", "Held-out images, and with codes of the same cluster."),
    "plan.png": (
        "Plan and attention",
        "The step that draws every token, and which slots see which others, in the colour of "
        "their steps.",
    ),
}


def numbers(results: dict) -> dict[str, str]:
    """Results as titled pieces: what is not nested, then each part."""
    nested = {k: v for k, v in results.items() if isinstance(v, dict)}
    plain = {k: v for k, v in results.items() if k not in nested}
    return {k.replace("_", " "): results_html(v) for k, v in ({"run": plain} | nested).items()}


def results_html(results: dict, level: int = 4) -> str:
    """Nested results: scalars as a two-column table, lists of rows as tables, the rest nested."""
    inner, scalars = [], []
    for key, value in results.items():
        name = html.escape(str(key).replace("_", " "))
        if isinstance(value, dict):
            inner.append(f"<h{level}>{name}</h{level}>" + results_html(value, min(6, level + 1)))
        elif isinstance(value, list):
            inner.append(page.table(value, name))
        else:
            scalars.append({"name": str(key).replace("_", " "), "value": value})
    return (page.table(scalars) if scalars else "") + "".join(inner)


def read_metrics(path: str | os.PathLike) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """metrics.jsonl as {stage: {name: [(step, value), ...]}}."""
    series: dict = {}
    file = pathlib.Path(path)
    for line in file.read_text().splitlines() if file.is_file() else []:
        row = json.loads(line)
        stage, step = row.pop("stage"), row.pop("step")
        for name, value in row.items():
            series.setdefault(stage, {}).setdefault(name, []).append((step, value))
    return series


def svg(figure: Figure, title: str) -> str:
    """A figure as inline SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    text = buffer.getvalue()
    return f"<div class='curves'>{text[text.index('<svg') :]}</div>"


def curves_svg(stage: str, series: dict[str, list[tuple[int, float]]]) -> str:
    """The stage's curves over steps, one small panel each, as inline SVG."""
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * rows), layout="constrained")
    for i, (name, points) in enumerate(sorted(series.items())):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(*zip(*points, strict=True), color="#2f6fde", linewidth=1.6)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    return svg(figure, stage)


def shown(workdir: str, name: str) -> str:
    """A picture of PICTURES in a workdir as HTML, "" where it is not there."""
    file = pathlib.Path(workdir) / "pictures" / name
    if not file.is_file():
        return ""
    if name == FILM:
        return page.film(file)
    return page.figure(*PICTURES[name], file)


def write_report(workdir: str) -> None:
    """Writes report.html of a finished run from the files of its workdir, whole or not at all; it
    refers to nothing outside itself.

    Raises:
      ConfigError: the workdir holds no finished run.
    """
    config, results = read_run(workdir)
    found = {title: shown(workdir, name) for name, (title, _) in PICTURES.items()}
    found = {title: body for title, body in found.items() if body}
    film = PICTURES[FILM][0]
    sections = {film: found.pop(film)} if film in found else {}
    sections["Pictures"] = page.cards(found)
    sections["Numbers"] = page.cards(numbers(results))
    for stage, series in read_metrics(pathlib.Path(workdir) / "metrics.jsonl").items():
        sections[f"Training: {stage}"] = curves_svg(stage, series)
    text = html.escape(json.dumps(config, indent=2))
    sections["Config"] = f"<details><summary>All keys</summary><pre>{text}</pre></details>"
    subtitle = ", ".join(f"{k} {v}" for k, v in parts(config).items() if v != "-")
    text = page.document(f"nexttok: {results['name']}", subtitle, sections)
    write_text(pathlib.Path(workdir) / "report.html", text)
