"""report.html: one self-contained page with a run's numbers, pictures and training curves."""

import base64
import html
import io
import json
import os
import pathlib

from matplotlib.figure import Figure

from nexttok.evals.results import write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #20242c; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem; border-bottom: 1px solid #dde1e7; text-align: right; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
img, svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #5a6270; font-size: .92rem; }
pre { background: #f5f6f8; padding: 1rem; overflow-x: auto; font-size: .82rem; }
"""


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def table(rows: list[dict]) -> str:
    """Rows of one shape as an HTML table."""
    heads = "".join(f"<th>{html.escape(str(k).replace('_', ' '))}</th>" for k in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_number(v)}</td>" for v in row.values()) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def results_html(results: dict, level: int = 2) -> str:
    """Nested results: scalars as a two-column table, lists of rows as tables, the rest nested."""
    parts, scalars = [], []
    for key, value in results.items():
        name = html.escape(str(key).replace("_", " "))
        if isinstance(value, dict):
            parts.append(f"<h{level}>{name}</h{level}>" + results_html(value, min(6, level + 1)))
        elif isinstance(value, list):
            parts.append(table(value))
        else:
            scalars.append({"name": str(key).replace("_", " "), "value": value})
    return (table(scalars) if scalars else "") + "".join(parts)


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
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": stage})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_report(
    path: str | os.PathLike,
    title: str,
    config_text: str,
    results: dict,
    pictures: list[tuple[str, str, str]],
    metrics_path: str | os.PathLike,
) -> None:
    """Writes the page, whole or not at all; it refers to nothing outside itself.

    Args:
      path: where.
      title: heading.
      config_text: the config, shown verbatim.
      results: what results.json holds.
      pictures: (title, caption, PNG or GIF file).
      metrics_path: metrics.jsonl, for the curves.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, caption, file in pictures:
        file = pathlib.Path(file)
        data = base64.b64encode(file.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(name)}</h2><figure><img alt='{html.escape(name)}' "
            f"src='data:image/{file.suffix[1:]};base64,{data}'><figcaption>{html.escape(caption)}</figcaption>"
            "</figure>"
        )
    parts.append(results_html(results))
    for stage, series in read_metrics(metrics_path).items():
        parts.append(f"<h2>training: {html.escape(stage)}</h2>{curves_svg(stage, series)}")
    parts.append(f"<h2>config</h2><pre>{html.escape(config_text)}</pre>")
    write_text(
        path,
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        + "".join(parts)
        + "</body></html>\n",
    )
