"""The command line without a compiler: usage, errors, exit codes, tables, occupancy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dsv4_aot.generator.cli import console
from dsv4_aot.generator.cli.app import COMMANDS, app
from dsv4_aot.generator.cli.console import Progress, Sheet
from dsv4_aot.generator.cli.occupancy import Occupancy, occupancy
from dsv4_aot.runtime.errors import CompileError, Dsv4AotError
from dsv4_aot.runtime.expr import Const
from dsv4_aot.runtime.schema import Entry, Launch, Resources
from dsv4_aot.runtime.target import Capability
from tests.artifact import gather_cubins, write_artifact

SPEC = """
from dsv4_aot.generator.spec import CudaSource, KernelSpec, launch, pointer, tensor
KERNEL = KernelSpec(
    name="zero", summary="x = 0", arguments=[tensor("x", "float32", (None,))], axes=[],
    params=[pointer("x")], launch=lambda choices: launch([1], 32), source=CudaSource(entry="zero"),
)
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(name: str) -> click.Command:
    found = app.get_command(click.Context(app), name)
    assert found is not None
    return found


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    (tmp_path / "templates/zero").mkdir(parents=True)
    (tmp_path / "templates/zero/kernel.py").write_text(SPEC)
    return tmp_path / "templates"


# Wrong usage ends with 2 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["buld"], "no such command 'buld'; nearest: build"),
        (["build", "--arch", "sm_90b"], "'sm_90b' is not a target; nearest: sm_90"),
        (["build", "--arch", ""], "'' is not a target"),
        (["build", "--jobs", "0"], "0 is not in the range"),
        (["build", "--locked", "--update-lock"], "--update-lock writes them"),
        (["build", "--locked", "--kernel", "zero"], "leave out --kernel"),
        (["inspect", "a/sm_90a/", "--sass", "--json"], "choose one of --sass, --ptx and --json"),
        (["doctor", "--capability", "nine"], "'nine' is not a compute capability"),
        (["verify", "/no/such/folder"], "does not exist"),
    ],
)
def test_wrong_usage_says_what_is_allowed(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_unknown_kernel_is_answered_with_the_nearest(templates: Path) -> None:
    result = run("build", "--templates", templates, "--kernel", "zeros")
    assert result.exit_code == 2
    assert "there is no kernel 'zeros'; nearest: zero" in result.stderr


# Expected errors end with 1, in one line and a TIP ------------------------------------------------


def test_locked_build_without_a_lock_fails_before_compiling(templates: Path) -> None:
    result = run("build", "--templates", templates, "--arch", "sm_90a", "--locked")
    assert result.exit_code == 1
    error, tip = result.stderr.splitlines()
    assert error.startswith("ERROR: there is no lock file ")
    assert tip == "TIP: dsv4-aot build --arch sm_90a --update-lock writes it"
    assert not (templates.parent / "artifacts").exists()


def test_wheel_of_a_target_that_is_not_built(tmp_path: Path) -> None:
    result = run("wheel", "--arch", "sm_120a", "--from", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"ERROR: sm_120a is not built in {tmp_path}",
        "TIP: dsv4-aot build --arch sm_120a",
    ]


def test_bad_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    for command in ("list", "inspect"):
        extra = ["key", "--path"] if command == "inspect" else []
        result = run(command, *extra, tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"ERROR: {tmp_path / 'manifest.json'}: the manifest does")
        assert "Traceback" not in result.stderr


def test_verify_tells_a_bad_manifest_from_none(tmp_path: Path) -> None:
    assert "has no manifest.json" in run("verify", tmp_path).stderr
    (tmp_path / "manifest.json").write_text("{}")
    result = run("verify", tmp_path, "--json")
    assert result.exit_code == 1
    [row] = json.loads(result.stdout)
    assert "does not fit schema" in row["problems"][0]


def test_doctor_reports_broken_artifacts(tmp_path: Path) -> None:
    result = run("doctor", "--capability", "9.0", "--json", tmp_path)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert "has no manifest.json" in report["artifacts_problem"]
    assert report["devices"] == [{"name": "a device", "capability": "9.0"}]


def test_full_disk_is_one_line_and_other_os_errors_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(error: OSError) -> Result:
        def raise_it(**_: object) -> None:
            raise error

        monkeypatch.setattr(command("schema"), "callback", raise_it)
        return run("schema")

    full = refuse(OSError(28, "No space left on device", str(tmp_path)))
    assert full.exit_code == 1
    assert full.stderr.startswith(f"ERROR: {tmp_path} cannot be written: No space left on device")
    unexpected = refuse(OSError(5, "Input/output error"))
    assert isinstance(unexpected.exception, OSError)


def test_missing_package_names_the_extra() -> None:
    code = "import sys; sys.modules['click'] = None; from dsv4_aot.generator import cli; cli.main()"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr == (
        "dsv4-aot needs the package click, which is not installed "
        "(TIP: pip install 'dsv4-aot[build]'; launching kernels does not need it)\n"
    )


# What is printed --------------------------------------------------------------------------------


def test_every_table_has_json() -> None:
    # `schema` prints JSON in any case; `bench` hands all it is given to the runner.
    for name in COMMANDS.keys() - {"schema", "bench"}:
        options = {flag for param in command(name).params for flag in param.opts}
        assert "--json" in options, name


def test_schema_is_json_schema() -> None:
    schema = json.loads(run("schema").stdout)
    manifest = schema["$defs"]["Manifest"]
    assert manifest["additionalProperties"] is False
    assert set(manifest["required"]) == set(manifest["properties"])


def test_sheet_shows_columns_and_json_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a" * 200, "bytes": 12345, "seen": {"H200": 2}, "hidden": 1}]
    sheet = Sheet(columns={"name": "name", "bytes": "size", "seen": "seen"}, rows=rows)
    sheet.show(as_json=False)
    text = capsys.readouterr().out
    assert "a" * 200 in text and "12,345" in text and "2 on H200" in text and "size" in text
    assert "hidden" not in text
    sheet.show(as_json=True)
    assert json.loads(capsys.readouterr().out) == rows


def test_help_fits_and_starts_with_a_verb() -> None:
    for name in COMMANDS:
        first = command(name).get_short_help_str(limit=60)
        assert first[0].isupper() and re.search(r"\w\.$", first), name


def test_error_text_is_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.complain(Dsv4AotError("[red]x[/red] [0:8]", tip="[bold]"))
    assert capsys.readouterr().err == "ERROR: [red]x[/red] [0:8]\nTIP: [bold]\n"


def test_compiler_log_stands_under_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = CompileError("it does not compile", log="line 1\nline 2\n", tip="mend it")
    console.complain(error)
    assert capsys.readouterr().err == (
        "ERROR: it does not compile\n  | line 1\n  | line 2\nTIP: mend it\n"
    )


def test_progress_is_plain_lines_at_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    with Progress("building", 4) as progress:
        for name in "abcd":
            progress.advance(name)
    assert capsys.readouterr().err == "building 2/4 b\nbuilding 4/4 d\n"


def test_looking_needs_nothing_of_building(tmp_path: Path) -> None:
    """A serving machine has no templates engine, no ELF reader and no compiler."""
    code = """
import sys
for name in ("jinja2", "filelock", "platformdirs", "elftools", "cutlass", "torch"):
    sys.modules[name] = None
from dsv4_aot.generator.cli import main
sys.argv[0] = "dsv4-aot"
main()
"""
    folder = str(write_artifact(tmp_path / "sm_90a", list(gather_cubins())))
    looks = ((["doctor", folder, "--json"], (0, 1)), (["list", folder], (0,)), (["schema"], (0,)))
    for arguments, codes in looks:
        command_line = [sys.executable, "-c", code, *arguments]
        answer = subprocess.run(command_line, capture_output=True, text=True, check=False)
        assert answer.returncode in codes, answer.stderr
        assert answer.stdout


# Occupancy, by hand -----------------------------------------------------------------------------


def entry(*, registers: int, threads: int, static: int = 0, dynamic: int = 0) -> Entry:
    one = Const(1)
    return Entry(
        choices={},
        file="a.cubin",
        bytes=0,
        sha256="0" * 64,
        symbol="a",
        params=(),
        launch=Launch(
            grid=(one, one, one),
            block=(threads, 1, 1),
            cluster=(1, 1, 1),
            shared=dynamic,
            programmatic=False,
        ),
        resources=Resources(registers=registers, stack=0, local=0, shared=static, spills=0, code=0),
        build_key="0" * 64,
    )


HOPPER = Capability(9, 0)


@pytest.mark.parametrize(
    ("kernel", "capability", "expected"),
    [
        # 64 warps a multiprocessor, 8 a block.
        (entry(registers=32, threads=256), HOPPER, Occupancy(8, 64, 1.0, "warps")),
        # 32 threads a block: 32 blocks are the most.
        (entry(registers=32, threads=32), HOPPER, Occupancy(32, 32, 0.5, "blocks")),
        # 168 registers: 5376 a warp, 3 warps a quarter of 16384, 12 in all, 4 a block.
        (entry(registers=168, threads=128), HOPPER, Occupancy(3, 12, 12 / 64, "registers")),
        # 255 registers: 8192 a warp after rounding, 8 warps in all; a block of 9 never fits.
        (entry(registers=255, threads=288), HOPPER, Occupancy(0, 0, 0.0, "registers")),
        # (48 + 1) KiB a block of 228 KiB.
        (
            entry(registers=32, threads=128, static=16 << 10, dynamic=32 << 10),
            HOPPER,
            Occupancy(4, 16, 0.25, "shared memory"),
        ),
        # A consumer Blackwell has 48 warps, 24 blocks and 100 KiB.
        (entry(registers=32, threads=64), Capability(12, 0), Occupancy(24, 48, 1.0, "blocks")),
    ],
)
def test_occupancy(kernel: Entry, capability: Capability, expected: Occupancy) -> None:
    assert occupancy(kernel, capability) == expected


def test_occupancy_is_not_guessed() -> None:
    assert occupancy(entry(registers=32, threads=64), Capability(7, 5)) is None
