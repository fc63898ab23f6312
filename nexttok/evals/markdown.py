"""Tables in Markdown from the files of workdirs, and the command line that writes them."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

from nexttok.config import ConfigError, check
from nexttok.evals.results import write_text


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def significant(value: float) -> str:
    """Three digits of a number, written out."""
    return f"{float(f'{value:.3g}'):.10g}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that a tool makes of workdirs.

    Attributes:
      name: of the comments in a file between which it stands.
      tool: module of the command line; description: its help.
      columns: heads; rows: workdir -> cells of its rows, or ConfigError.
    """

    name: str
    tool: str
    description: str
    columns: tuple[str, ...]
    rows: Callable[[str], list[list[str]]]

    @property
    def start(self) -> str:
        """The comment before the table."""
        return f"<!-- {self.name}: written by python -m {self.tool} -->"

    @property
    def end(self) -> str:
        """The comment behind it."""
        return f"<!-- end of {self.name} -->"

    def write(self, path: str, text: str) -> None:
        """Puts a text between the two comments of a file.

        Raises:
          ConfigError: the file lacks them.
        """
        file = pathlib.Path(path)
        old = file.read_text() if file.is_file() else ""
        fits = self.start in old and self.end in old
        check(fits, "write", path, f"a file with {self.start} and {self.end}")
        head, _, rest = old.partition(self.start)
        tail = rest.partition(self.end)[2]
        write_text(file, f"{head}{self.start}\n{text}\n{self.end}{tail}")

    def main(self, argv: list[str] | None = None) -> int:
        """The command line; returns the exit status."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.tool}", description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        parser.add_argument("workdirs", nargs="+")
        parser.add_argument("--write", default="", help="a file with the two comments")
        args = parser.parse_args(argv)
        try:
            found = [row for workdir in args.workdirs for row in self.rows(workdir)]
            text = markdown(self.columns, found)
            if args.write:
                self.write(args.write, text)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(text)
        return 0
