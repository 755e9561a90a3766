"""How the command line speaks: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from medpipe.errors import MedpipeError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "human_bytes", "human_seconds", "print_error", "print_json", "print_table"]


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


def human_bytes(count: float) -> str:
    """Return a byte count in words, e.g. ``"1.4 GB"`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration in words, e.g. ``"850 ms"``, ``"12.3 s"``, ``"4 min 05 s"``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
