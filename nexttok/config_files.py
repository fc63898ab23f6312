"""Config files: where they are, what they say, and assignments to their keys."""

import ast
import importlib.util
import pathlib
import sys
from types import ModuleType

from ml_collections import ConfigDict

from nexttok.config import ConfigError

PACKAGE = pathlib.Path(__file__).parent
# where configs/ is: installed, in the package, as its name is not ours alone; else beside it
LIBRARY = PACKAGE / "papers" if (PACKAGE / "papers").is_dir() else PACKAGE.parent


def papers() -> list[str]:
    """Config files of this folder and of the library, as `--config` takes them: configs/var.py."""
    files = [f for root in (pathlib.Path(), LIBRARY) for f in (root / "configs").glob("*.py")]
    return sorted({f"configs/{f.name}" for f in files if "VARIANTS" in f.read_text()})


def load_module(spec: str) -> tuple[ModuleType, str]:
    """The config file of "path.py[:variant]" as a module, and the variant.

    A path that is no file here is looked for in the library: configs/var.py works anywhere.

    Raises:
      ConfigError: no such file.
    """
    name, _, variant = spec.partition(":")
    path = next((p for p in (pathlib.Path(name), LIBRARY / name) if p.is_file()), None)
    if path is None or path.suffix != ".py":
        known = ", ".join(papers())
        raise ConfigError(f"--config = {spec!r}: expected a config file, such as {known}")
    here = path.resolve().parent
    for root in (LIBRARY, here.parent) if here.name == "configs" else (LIBRARY,):
        if str(root) not in sys.path:  # so that a config finds configs.common
            sys.path.insert(0, str(root))
    loader = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module, variant


def variants_of(path: str) -> tuple[str, ...]:
    """The variants of a config file."""
    return load_module(path)[0].VARIANTS


def load_config(spec: str) -> ConfigDict:
    """Runs get_config(variant) of "path.py[:variant]".

    Raises:
      ConfigError: no such file or variant.
    """
    module, variant = load_module(spec)
    try:
        return module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise ConfigError(f"--config = {spec!r}: {error}") from error


def override(config: ConfigDict, assignment: str) -> None:
    """Applies "a.b=value" in place, typed like the value it replaces.

    Raises:
      ConfigError: no such key, or a value of another type.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--config.{path}: expected --config.{path}=value")
    *parents, last = path.split(".")
    section = config
    for i, part in enumerate([*parents, last]):
        where = ".".join(["config", *parents[:i]])
        if not isinstance(section, ConfigDict) or part not in section:
            keys = sorted(section) if isinstance(section, ConfigDict) else []
            raise ConfigError(
                f"config.{path} = {text!r}: unknown key; {where} has {', '.join(keys) or 'no keys'}"
            )
        if i < len(parents):
            section = section[part]
    section[last] = parse(text, section[last], f"config.{path}")


def parse(text: str, like: object, where: str) -> object:
    """Reads `text` as a value of the type of `like`."""
    kind = type(like)
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(like, tuple):
            return _tuple(text, like)
        if isinstance(like, int | float | str):
            return kind(text)
    except (KeyError, ValueError, SyntaxError) as error:
        expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
        raise ConfigError(f"{where} = {text!r}: expected {expected}, like {like!r}") from error
    raise ConfigError(f"{where} = {text!r}: expected one of its keys, {', '.join(sorted(like))}")


def _tuple(text: str, like: tuple) -> tuple:
    """(8, 5) or 8,5; strings need no quotes."""
    items = [t.strip().strip("'\"") for t in text.strip("()[] ").split(",") if t.strip()]
    if like and isinstance(like[0], str):
        return tuple(items)
    return tuple(ast.literal_eval(t) for t in items)


def describe(config: ConfigDict, prefix: str = "config") -> str:
    """One line per key: --config.a.b=value."""
    lines = []
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            lines.append(describe(value, f"{prefix}.{key}"))
        else:
            lines.append(f"  --{prefix}.{key}={value}")
    return "\n".join(line for line in lines if line)
