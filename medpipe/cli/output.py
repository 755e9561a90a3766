"""How the command line speaks: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from medpipe.errors import MedpipeError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "print_error", "print_json", "print_table"]


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that wraps only when it is read by a person."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # A fixed generous width where no terminal is: piped tables must not lose columns.
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 160)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a plain table; the first column is emphasised."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, style="bold" if index == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console().print(table)


def print_error(error: MedpipeError) -> None:
    """Print an error on stderr, one line per problem."""
    out = console(stderr=True)
    for line in str(error).splitlines():
        out.print("[bold red]error[/] ", end="")
        out.print(line, markup=False, soft_wrap=True)
