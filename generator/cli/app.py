"""The command group, and how errors leave it."""

from __future__ import annotations

import difflib
import errno
from typing import Any

import click

from dsv4_aot.generator.cli.build import build
from dsv4_aot.generator.cli.catalog import list_, schema
from dsv4_aot.generator.cli.compare import diff, verify
from dsv4_aot.generator.cli.console import complain
from dsv4_aot.generator.cli.doctor import doctor
from dsv4_aot.generator.cli.hardware import bench, validate
from dsv4_aot.generator.cli.inspect import inspect
from dsv4_aot.generator.cli.wheel import wheel
from dsv4_aot.runtime.errors import Dsv4AotError

_STORAGE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}
"""What a file system may answer to correct work: a line for the user, not a traceback."""


class _Group(click.Group):
    """Expected errors become one red line and a TIP; only the unexpected show a traceback."""

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.commands, n=3, cutoff=0.4)
            ctx.fail(f"no such command {name!r}; nearest: {', '.join(close or self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dsv4-aot", prog_name="dsv4-aot")
def app() -> None:
    """Compile DeepSeek-V4 serving kernels before shipping, and look at the result."""


for command in (build, list_, inspect, diff, verify, validate, bench, wheel, doctor, schema):
    app.add_command(command)
