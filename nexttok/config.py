"""Config sections: named, typed, checked before anything runs or is written.

A section of a config (`config.tokenizer`, `config.train.generator`, ...) becomes one frozen
dataclass whose fields are the allowed keys. `build` refuses unknown keys, missing keys and wrong
types with one error that names the field, its value and what is allowed.
"""

import dataclasses
import difflib
import importlib
import json
import pathlib
import pkgutil
import typing
from types import ModuleType

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """Bad input, told in one line: the field, its value, and what is allowed."""


def check(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises ConfigError("config.<field> = <value>: expected <allowed>") unless `condition`."""
    if not condition:
        raise ConfigError(f"config.{field} = {value!r}: expected {allowed}")


def read_json(path: pathlib.Path, field: str, allowed: str) -> dict:
    """The object in a JSON file of config.<field>.

    Raises:
      ConfigError: no such file, or one that holds anything else; it names what is `allowed`.
    """
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        said = f"{path} holds no object"
    except (OSError, ValueError, RecursionError) as error:
        said = str(error)
    raise ConfigError(f"config.{field} = {str(path.parent)!r}: expected {allowed} ({said})")


def tuples(value: object) -> object:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def check_unread(section: object, off: dict, read: tuple[str, ...], where: str, by: str) -> None:
    """Raises ConfigError for an option that is on although nothing reads it.

    Args:
      section: holds the options as attributes.
      off: name of an option -> the value that does nothing.
      read: names of the options that are read.
      where: dotted path used in messages.
      by: what does not read the others, for example "plan raster".
    """
    for key, value in off.items():
        found = getattr(section, key)
        check(key in read or found == value, f"{where}.{key}", found,
              f"{value!r}, as {by} does not read it")  # fmt: skip


def check_keys(section: ConfigDict, allowed, where: str) -> None:
    """Raises ConfigError when `section` (at config.<where>) lacks a key or has one too many."""
    prefix = f"config.{where}" if where else "config"
    if not isinstance(section, ConfigDict):
        raise ConfigError(f"{prefix} = {section!r}: expected a section with {sorted(allowed)}")
    for key in section:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"{prefix}.{key} = {section[key]!r}: unknown key{hint}; "
                f"allowed are {', '.join(sorted(allowed))}"
            )
    for key in allowed:
        if key not in section:
            raise ConfigError(f"{prefix}.{key} is missing")


def _matches(value, kind) -> bool:
    origin = typing.get_origin(kind)
    if origin is tuple:
        element = typing.get_args(kind)[0]
        return isinstance(value, tuple | list) and all(_matches(v, element) for v in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def build(cls, section: ConfigDict, where: str, named: bool = False, **given):
    """Makes the dataclass `cls` from a config section, checking every key and type.

    Args:
      cls: a dataclass; its fields of type int, float, bool, str or tuple[...] are the keys.
      section: the ConfigDict found at `config.<where>`.
      where: dotted path used in messages, for example "tokenizer".
      named: the section has a key `name` (the component's file), which is no field.
      given: fields that come from elsewhere (a token spec, a data spec), not from the section; a
        field `where` is the path.

    Returns:
      An instance of `cls`.

    Raises:
      ConfigError: unknown or missing key, or a value of the wrong type.
    """
    kinds = typing.get_type_hints(cls)
    if "where" in kinds:
        given["where"] = where
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in given]
    check_keys(section, [*names, "name"] if named else names, where)
    values = {}
    for key in names:
        value, kind = section[key], kinds[key]
        described = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
        check(_matches(value, kind), f"{where}.{key}", value, f"a value of type {described}")
        if typing.get_origin(kind) is tuple:
            value = tuple(value)
        values[key] = float(value) if kind is float else value
    return cls(**values, **given)


def names(package: ModuleType) -> list[str]:
    """The components of a package: its files with a `make`."""
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return [n for n in found if hasattr(component(package, n), "make")]


def part(package: ModuleType, section, where: str) -> ModuleType:
    """The module of `package` that `section.name` names; a component's name is its file.

    Raises:
      ConfigError: no such module.
    """
    check("name" in section, f"{where}.name", None, "the name of a component")
    check(section.name in names(package), f"{where}.name", section.name,
          " | ".join(names(package)))  # fmt: skip
    return component(package, section.name)


def component(package: ModuleType, name: str) -> ModuleType:
    """The file `name` of a package."""
    return importlib.import_module(f"{package.__name__}.{name}")
