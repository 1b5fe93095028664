"""How things are said: tables or JSON, one red line and a TIP, progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsv4_aot.runtime.errors import CompileError, Dsv4AotError

if TYPE_CHECKING:
    from rich import progress

_PLAIN_WIDTH = 10_000
"""Lines that do not go to a terminal are never wrapped: they are read by programs."""

_DELAY = 1.0
"""Seconds of work before progress is shown."""

_PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines of progress."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def say(text: str = "") -> None:
    """One line of the answer."""
    _console(stderr=False).print(Text(text), soft_wrap=True)


def note(text: str) -> None:
    """One line beside the answer, on stderr, so that ``--json`` stays JSON."""
    _console(stderr=True).print(Text(text), soft_wrap=True)


def complain(error: Dsv4AotError, *, log: bool = True) -> None:
    """One red line, the TIP, and the compiler's own words unless ``log`` is false."""
    console = _console(stderr=True)
    console.print(Text(f"ERROR: {error.message}", style="red"), soft_wrap=True)
    if log and isinstance(error, CompileError) and error.log.strip():
        for line in error.log.rstrip().splitlines():
            console.print(Text(f"  | {line}"), soft_wrap=True)
    if error.tip is not None:
        console.print(Text(f"TIP: {error.tip}"), soft_wrap=True)


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=1))


def json_option(command: Command) -> Command:
    """``--json``, passed as ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the same as JSON, for programs."
    )(command)


# Tables -----------------------------------------------------------------------------------------


def plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{plain(count)} on {name}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


@dataclass(frozen=True)
class Sheet:
    """Rows of named values: a table for people, a list of objects for programs.

    columns: heading of each key that the table shows; the JSON has every key of a row.
    """

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    title: str = ""
    empty: str = "nothing"

    def show(self, *, as_json: bool) -> None:
        if as_json:
            show_json([dict(row) for row in self.rows])
        elif self.rows:
            if self.title:
                say(f"{self.title}:")
            _console(stderr=False).print(self._table())
        else:
            say(self.empty)

    def _table(self) -> Table:
        table = Table()
        for key, heading in self.columns.items():
            numeric = all(
                isinstance(row[key], (int, float)) and not isinstance(row[key], bool)
                for row in self.rows
            )
            table.add_column(
                heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
            )
        for row in self.rows:
            table.add_row(*(Text(plain(row[key])) for key in self.columns))
        return table


# Progress ---------------------------------------------------------------------------------------


class Progress:
    """Counts finished pieces: a bar on a terminal once a second has gone, else a line at times."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._console = _console(stderr=True)
        self._started = self._spoke = monotonic()
        self._bar: progress.Progress | None = None
        self._task: progress.TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def advance(self, name: str = "") -> None:
        """One more piece is finished."""
        self._done += 1
        now = monotonic()
        if not self._console.is_terminal:
            if now - self._spoke >= _PLAIN_INTERVAL:
                self._spoke = now
                of = "" if self._total is None else f"/{self._total}"
                note(f"{self._what} {self._done}{of} {name}".rstrip())
            return
        if self._bar is None and now - self._started >= _DELAY:
            from rich import progress  # most commands are done before a bar is drawn

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[name]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=self._total, name="")
            self._bar.start()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, name=name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
