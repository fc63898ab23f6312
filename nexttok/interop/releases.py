"""What authors publish: a row of these stands beside every converter, and --list prints them."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

HUB = "https://huggingface.co"


@dataclasses.dataclass(frozen=True)
class Release:
    """One published file.

    Attributes:
      size: what its authors call it.
      file: its name; several, joined by a comma, where they are read together.
      source: where its authors publish it.
      configs: "<paper>:<variant>" of configs/, all that it is for, the first by default; of a
        frozen network that a loss, an alignment or a metric reads, the flags that name the file.
    """

    size: str
    file: str
    source: str
    configs: tuple[str, ...]


@runtime_checkable
class System(Protocol):
    """See importing.System."""

    stage: str
    releases: tuple[Release, ...]


def conversions(systems: Mapping[str, System], name: str) -> list[tuple[Release, str]]:
    """The files of a system, each with the command that converts it.

    A generator's takes along the other stages' files for the same config, so that a second command
    samples.
    """
    return [(release, _command(systems, name, release)) for release in systems[name].releases]


def _command(systems: Mapping[str, System], name: str, release: Release) -> str:
    config = release.configs[0]
    parts = [(name, release)]
    if systems[name].stage == "generator":
        parts += _companions(systems, config)
    paper, _, variant = config.partition(":")
    return (
        f"python -m nexttok.interop --system={','.join(n for n, _ in parts)} "
        f"--checkpoint={','.join(r.file for _, r in parts)} "
        f"--config=configs/{paper}.py:{variant} --out=runs/{paper}_{variant}"
    )


def _companions(systems: Mapping[str, System], config: str) -> list[tuple[str, Release]]:
    """The first file for this config of every stage below the generator."""
    found = {}
    for name, system in systems.items():
        for release in system.releases if system.stage != "generator" else ():
            if config in release.configs:
                found.setdefault(system.stage, (name, release))
    return list(found.values())


def listing(systems: Mapping[str, System], networks: Mapping[str, tuple[Release, ...]]) -> str:
    """All of them as text, system by system.

    Args:
      systems: by name.
      networks: files of frozen networks, by name.
    """
    lines = []
    for name, system in systems.items():
        lines.append(f"{name} ({system.stage})")
        for release, command in conversions(systems, name):
            lines += [f"  {release.size}: {release.file}", f"    {release.source}"]
            lines += [f"    for {', '.join(release.configs)}", f"    {command}"]
            if system.stage == "generator":
                out = command.rpartition("=")[2]
                lines.append(f"    python -m nexttok.main --mode=sample --config.params={out}")
    for name, releases in networks.items():
        lines.append(f"{name} (frozen network, read as it is)")
        for release in releases:
            lines += [f"  {release.size}: {release.file}", f"    {release.source}"]
            trains = release.configs[0].startswith("--config.")
            reader = "nexttok.main --config=..." if trains else "nexttok.score REAL FAKE"
            lines.append(f"    python -m {reader} {' '.join(release.configs)}")
    return "\n".join(lines)
