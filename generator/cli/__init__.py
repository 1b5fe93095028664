"""The command line: arguments, progress, tables and exit codes. The only part that prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``dsv4-aot``. Exits with 0 when done, 1 when it failed, 2 on wrong usage."""
    try:
        from dsv4_aot.generator.cli.app import app

        app(prog_name="dsv4-aot")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dsv4_aot"):
            raise
        sys.stderr.write(
            f"dsv4-aot needs the package {error.name}, which is not installed "
            "(TIP: pip install 'dsv4-aot[build]'; launching kernels does not need it)\n"
        )
        raise SystemExit(1) from None
