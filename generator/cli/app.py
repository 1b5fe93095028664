"""The command group, and how errors leave it."""

from __future__ import annotations

import difflib
import errno
import importlib
from typing import Any

import click

from dsv4_aot.generator.cli.console import complain
from dsv4_aot.runtime.errors import Dsv4AotError

COMMANDS = {
    "build": "build:build",
    "list": "catalog:list_",
    "inspect": "inspect:inspect",
    "diff": "compare:diff",
    "verify": "compare:verify",
    "validate": "hardware:validate",
    "bench": "hardware:bench",
    "wheel": "wheel:wheel",
    "doctor": "doctor:doctor",
    "schema": "catalog:schema",
}
"""Module and function of each command. Only the one that runs is imported, so that a serving
machine can run ``doctor`` or ``validate`` without the packages that building takes."""

_STORAGE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}
"""What a file system may answer to correct work: a line for the user, not a traceback."""


class _Group(click.Group):
    """Expected errors become one red line and a TIP; only the unexpected show a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=3, cutoff=0.4)
            ctx.fail(f"no such command {cmd_name!r}; nearest: {', '.join(close or COMMANDS)}")
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Dsv4AotError as error:
            complain(error)
        except OSError as error:
            if error.errno not in _STORAGE:
                raise
            where = error.filename or "the output folder"
            complain(
                Dsv4AotError(
                    f"{where} cannot be written: {error.strerror}",
                    tip="free space or rights there, or name another folder with --out",
                )
            )
        return ctx.exit(1)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dsv4-aot", prog_name="dsv4-aot")
def app() -> None:
    """Compile DeepSeek-V4 serving kernels before shipping, and look at the result."""
