"""Pages that need nothing but themselves: light and dark, usable by keyboard, no scripts."""

import base64
import html
import itertools
import json
import pathlib
import re

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #586072; --line: #d9dde5; --paper: #fff;
  --card: #f5f6f9; --accent: #2558c9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #a3abba; --line: #343b48;
  --paper: #14171d; --card: #1d222b; --accent: #8db1ff; } .curves svg { filter: invert(.88)
  hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 78rem; margin: 0 auto; padding: 1.5rem 1.2rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: .4rem 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3, h4 { font-size: 1rem; margin: 1.1rem 0 .3rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .6rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
  font-size: .92rem; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
.cards { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .9rem 1rem; min-width: 0; } .card > :first-child { margin-top: 0; }
figure { margin: .6rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; vertical-align: top; }
.curves svg { max-width: 100%; height: auto; }
pre { background: var(--card); padding: 1rem; overflow-x: auto; font-size: .82rem;
  border-radius: 8px; }
summary { cursor: pointer; color: var(--accent); }
fieldset { border: 0; padding: 0; margin: .6rem 0; min-width: 0; }
.film { position: relative; display: flex; flex-wrap: wrap; gap: .3rem; }
.film label { display: contents; cursor: pointer; }
.film input { position: absolute; opacity: 0; }
.film b { display: inline-block; min-width: 2.1rem; padding: .15rem .4rem; text-align: center;
  border: 1px solid var(--line); border-radius: 6px; background: var(--paper); font-weight: 500;
  font-size: .85rem; }
.film input:checked + b { background: var(--accent); color: var(--paper);
  border-color: var(--accent); }
.film input:focus-visible + b { outline: 3px solid var(--accent); outline-offset: 2px; }
.film i { display: none; order: -1; flex: 0 0 100%; font-style: normal; }
.film input:checked ~ i { display: block; }
.shot, .sheet { display: block; background-repeat: no-repeat; background-size: 100% auto;
  border-radius: 6px; }
.shot { aspect-ratio: var(--wide) / var(--high); max-width: calc(var(--wide) * 1px); }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
"""
KINDS = {".png": "png", ".gif": "gif"}
_numbers = itertools.count()


def data_of(file: pathlib.Path) -> str:
    """A picture file as a data address."""
    text = base64.b64encode(file.read_bytes()).decode()
    return f"data:image/{KINDS[file.suffix]};base64,{text}"


def anchor(title: str) -> str:
    """A title as the address of its section."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def number(value) -> str:
    """A cell: numbers short, text escaped."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def table(rows: list[dict], label: str = "numbers") -> str:
    """Rows as an HTML table with the keys of the first; it scrolls where it is too wide."""
    heads = "".join(
        f"<th scope='col'>{html.escape(str(k).replace('_', ' '))}</th>" for k in rows[0]
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{number(row.get(k, ''))}</td>" for k in rows[0]) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll' role='region' tabindex='0' aria-label='{html.escape(label)}'>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(title: str, caption: str, file: pathlib.Path) -> str:
    """A picture with its caption."""
    return (
        f"<figure><img alt='{html.escape(title)}' src='{data_of(file)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def film(file: pathlib.Path) -> str:
    """A generation (evals/film.py) to step through: a row of buttons, which arrow keys walk along,
    and the frame of the chosen one; behind them all frames at once."""
    told = json.loads(file.with_suffix(".json").read_text())
    frames, name = told["frames"], f"film{next(_numbers)}"
    buttons = []
    for i, at in enumerate(frames):
        say = f"Step {at['step']} of {told['steps']} draws {at['new']}: {at['known']} of "
        say += f"{told['tokens']} tokens are known."
        place = 100 * i / max(len(frames) - 1, 1)
        buttons.append(
            f"<label><input type='radio' name='{name}' aria-label='{say}'"
            f"{' checked' if i == len(frames) - 1 else ''}><b>{at['step']}</b>"
            f"<i><span class='shot {name}' style='background-position:0 {place:.4f}%'></span>"
            f"<span class='soft'>{say}</span></i></label>"
        )
    ratio = f"{told['width']} / {told['height'] * len(frames)}"
    return (
        f"<style>.{name}{{background-image:url({data_of(file)})}}</style>"
        f"<fieldset><legend class='soft'>Blue: drawn in this step; light blue: known before. Arrow "
        f"keys walk through the steps.</legend><div class='film' style='--high:{told['height']};"
        f"--wide:{told['width']}'>{''.join(buttons)}</div></fieldset>"
        f"<details><summary>All steps at once</summary><span class='sheet {name}' role='img' "
        f"aria-label='all steps, from top to bottom' style='max-width:{told['width']}px;"
        f"aspect-ratio:{ratio}'></span></details>"
    )


def section(title: str, body: str) -> str:
    """A part of a page with a heading that links reach."""
    return f"<section id='{anchor(title)}'><h2>{html.escape(title)}</h2>{body}</section>"


def cards(bodies: dict[str, str]) -> str:
    """Titled pieces side by side, as many as fit."""
    each = (f"<div class='card'><h3>{html.escape(t)}</h3>{b}</div>" for t, b in bodies.items())
    return f"<div class='cards'>{''.join(each)}</div>"


def document(title: str, subtitle: str, sections: dict[str, str]) -> str:
    """A whole page of titled sections, with links to them on top."""
    links = "".join(f"<a href='#{anchor(t)}'>{html.escape(t)}</a>" for t in sections)
    body = "".join(section(t, b) for t, b in sections.items())
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><p class='soft'>{html.escape(subtitle)}</p></header>"
        f"<nav aria-label='sections'>{links}</nav><main>{body}</main></body></html>\n"
    )
