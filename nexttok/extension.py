"""Parts of one's own, outside the library: files that join its packages, and plans.

    mine/heads/focal.py            --config.generator.head.name=focal
    mine/bottlenecks/ternary.py    config.tokenizer.bottleneck.name = "ternary"

A config file of one's own that says `import nexttok; nexttok.extend("mine")` takes them along.
"""

import importlib
import pathlib
from collections.abc import Callable

from nexttok import plans
from nexttok.config import ConfigError

PACKAGES = ("tokenizers", "bottlenecks", "contexts", "heads", "nn/networks", "nn/backbones")


def extend(folder: str) -> list[str]:
    """Adds the files of folder/<package>/ to the packages of the library.

    A file has what the library's own files of that package have: a `make`, of contexts also a
    `refusal`.

    Returns:
      The packages that have grown.

    Raises:
      ConfigError: no such folder, or one without a folder named after a package.
    """
    root = pathlib.Path(folder).resolve()
    found = [name for name in PACKAGES if (root / name).is_dir()]
    if not found:
        allowed = " | ".join(PACKAGES)
        raise ConfigError(f"extend({folder!r}): expected a folder with some of {allowed}")
    for name in found:
        package = importlib.import_module(f"nexttok.{name.replace('/', '.')}")
        if str(root / name) not in package.__path__:
            package.__path__.append(str(root / name))
    return found


def add_plan(plan: Callable, reads: tuple[str, ...] = ()) -> None:
    """Adds a plan, a function (PlanConfig, TokenSpec) -> Plan, under its own name.

    Args:
      plan: see nexttok/plans.py.
      reads: options of config.generator.plan and config.sample that it reads.

    Raises:
      ConfigError: another plan has that name.
    """
    name = plan.__name__
    taken = name in plans.PLANS and plans.PLANS[name].__module__ == plans.__name__
    if taken:
        raise ConfigError(f"add_plan({name}): expected another name, as the library has this plan")
    plans.READS[plan] = reads
    plans.PLANS[name] = plan
