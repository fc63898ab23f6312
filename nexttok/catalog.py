"""What configs say of themselves: parts, paper and variants (`--list`)."""

import itertools
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from nexttok.config_files import load_module, papers

COLUMNS = ("config", "tokenizer", "plan", "context", "head", "sampler", "paper and variants")


def parts(config: ConfigDict | dict) -> dict[str, str]:
    """Names of the parts that a config (or a run's config.json) puts together.

    Returns:
      {tokenizer, plan, context, head, sampler}; "-" where no generator is trained.
    """
    tokenizer = config["tokenizer"]
    names = [tokenizer["name"]]
    if "bottleneck" in tokenizer and "encoder" in tokenizer:
        names = [tokenizer["encoder"]["name"], tokenizer["bottleneck"]["name"]]
    found = {"tokenizer": ", ".join(names)}
    generated = "generator" in config["stages"]
    for part in ("plan", "context", "head"):
        found[part] = config["generator"][part]["name"] if generated else "-"
    return found | {"sampler": config["sampler"]["name"] if generated else "-"}


def brief(variants: Sequence[str]) -> str:
    """The names, what they share in front said once: a_b a_c -> a_b|c."""
    found = []
    for stem, group in itertools.groupby(variants, lambda name: name.rpartition("_")[0]):
        names = list(group)
        rest = [name.removeprefix(f"{stem}_") for name in names[1:]]
        found.append(("|" if stem else " ").join([names[0], *rest]))
    return " ".join(found)


def row(path: str) -> tuple[str, ...]:
    """A config file's cells of COLUMNS; parts are those of its default variant."""
    module, _ = load_module(path)
    title = re.sub(r"\s+", " ", (module.__doc__ or "").partition("\n\n")[0]).rstrip(".")
    found = parts(module.get_config())
    return (path, *found.values(), f"{title}: {brief(module.VARIANTS)}")


def listing(word: str = "") -> str:
    """One line per config of the library that has the word, in columns."""
    rows = [row(path) for path in papers()]
    rows = [COLUMNS, *(r for r in rows if word.lower() in " ".join(r).lower())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, cells, widths)) for cells in rows)
    return "\n".join(line.rstrip() for line in lines)
