"""What pyproject.toml cannot say: where configs/ goes, and which requirements are the library's."""

import pathlib

from setuptools import find_packages, setup

needed, _, _ = pathlib.Path("requirements.txt").read_text().partition("# tests")
setup(
    # in the package, as the name configs is not ours alone (see nexttok/config_files.py)
    packages=[*find_packages(include=["nexttok*"]), "nexttok.papers.configs"],
    package_dir={"nexttok.papers.configs": "configs"},
    package_data={"nexttok": ["py.typed"]},
    install_requires=[x for x in needed.splitlines() if x and not x.startswith("#")],
)
