"""The command line for real, on the example of docs/adding-a-kernel.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from dsv4_aot.generator.cli.app import app
from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.trial import Trial

PAGE = Path(__file__).resolve().parents[2] / "docs/adding-a-kernel.md"
EXAMPLE = re.compile(r"^## .*?`(\w+)/([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEY = "scale_rows/sm_90a/dtype=bfloat16,threads=64"
TARGETS = ("sm_90a", "sm_100a")


def write_example(templates: Path) -> None:
    """The files of the page, as it names them."""
    for kernel, name, body in EXAMPLE.findall(PAGE.read_text()):
        (templates / kernel).mkdir(parents=True, exist_ok=True)
        (templates / kernel / name).write_text(body)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """``artifacts/build`` of the example for both default targets. Not to be changed."""
    root = tmp_path_factory.mktemp("example")
    write_example(root / "templates")
    result = build(root, cache)
    assert result.exit_code == 0, result.output
    return root / "artifacts/build"


@pytest.fixture
def root(tmp_path: Path, built: Path) -> Path:
    """The example and its build, to be changed."""
    shutil.copytree(built.parents[1], tmp_path / "copy")
    return tmp_path / "copy"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def build(root: Path, cache: Path, *arguments: object) -> Result:
    return run(
        "build", "--templates", root / "templates", "--cache", cache, "--jobs", 2, *arguments
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; lock files of the build, which are empty, left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def add_kernel(root: Path, name: str) -> None:
    """A second kernel, which is the first under another name."""
    write_example(root / "templates")
    shutil.copytree(root / "templates/scale_rows", root / "templates" / name)
    for path in (root / "templates" / name).iterdir():
        path.write_text(path.read_text().replace("scale_rows", name))


# The example ------------------------------------------------------------------------------------


def test_page_has_a_whole_kernel(built: Path) -> None:
    files = {f"{kernel}/{name}" for kernel, name, _ in EXAMPLE.findall(PAGE.read_text())}
    assert files == {
        f"scale_rows/{name}" for name in ("kernel.py", "kernel.cu.j2", "reference.py", "cases.py")
    }
    manifests = [json.loads((built / t / "manifest.json").read_bytes()) for t in TARGETS]
    assert [m["kernels"][0]["name"] for m in manifests] == ["scale_rows"] * 2
    assert [len(m["kernels"][0]["entries"]) for m in manifests] == [4, 4]


def test_page_reference_and_cases_agree_with_a_hand_made_result(built: Path) -> None:
    folder = discover(built.parents[1] / "templates")["scale_rows"]
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    folder.reference()(x, torch.tensor([0.5, 2.0]))
    assert x.tolist() == [[0.5, -1.0], [6.0, 8.0]]
    for case in folder.cases():
        if case.bench:
            continue
        trial = Trial(folder.spec.arguments, case, folder.reference(), torch.device("cpu"), 0)
        assert set(trial.arguments) == {"x", "scale"}


# Looking at a build -----------------------------------------------------------------------------


def test_list(built: Path) -> None:
    rows = json.loads(run("list", built, "--json").stdout)
    assert [(r["kernel"], r["target"], r["variants"]) for r in rows] == [
        ("scale_rows", "sm_100a", 4),
        ("scale_rows", "sm_90a", 4),
    ]
    assert all(row["validated"] == {} for row in rows)
    table = run("list", built, "--variants").stdout
    assert KEY in table and "none" in table


def test_inspect(built: Path, cache: Path) -> None:
    facts = json.loads(run("inspect", KEY, "--path", built, "--json").stdout)
    assert [p["offset"] for p in facts["params"]] == [0, 8, 16]
    assert facts["resources"]["spills"] == 0
    assert facts["occupancy"]["blocks"] == 32
    text = run("inspect", KEY, "--path", built).stdout
    assert "address of scale" in text and "x.shape[1]" in text and facts["sha256"] in text
    sass = run("inspect", KEY, "--path", built, "--sass").stdout
    assert ".text.scale_rows" in sass
    ptx = run("inspect", KEY, "--path", built, "--ptx", "--cache", cache).stdout
    assert ".target sm_90a" in ptx and ".entry scale_rows" in ptx


def test_inspect_without_the_cache_has_no_ptx(built: Path, tmp_path: Path) -> None:
    result = run("inspect", KEY, "--path", built, "--ptx", "--cache", tmp_path)
    assert result.exit_code == 1
    assert "artifacts carry machine code alone" in result.stderr


def test_inspect_answers_a_typo_with_the_nearest_keys(built: Path) -> None:
    result = run("inspect", KEY.replace("scale", "scael"), "--path", built)
    assert result.exit_code == 2
    assert KEY in " ".join(result.stderr.split())


def test_verify(built: Path, root: Path) -> None:
    whole = run("verify", built, "--closed")
    assert whole.exit_code == 0
    assert whole.stdout.count("intact and closed") == 2
    [victim] = json.loads((root / "artifacts/build/sm_90a/manifest.json").read_text())["kernels"]
    cubin = root / "artifacts/build/sm_90a" / victim["entries"][0]["file"]
    data = bytearray(cubin.read_bytes())
    data[len(data) // 2] ^= 1
    cubin.write_bytes(data)
    result = run("verify", root / "artifacts/build", "--json")
    assert result.exit_code == 1
    problems = {row["target"]: row["problems"] for row in json.loads(result.stdout)}
    assert problems["sm_100a"] == []
    assert "SHA-256" in problems["sm_90a"][0]


def test_diff(built: Path, root: Path, cache: Path) -> None:
    replace_in(root / "templates/scale_rows/kernel.cu.j2", "* factor", "* factor * factor")
    assert build(root, cache, "--arch", "sm_90a").exit_code == 0
    before, after = built / "sm_90a", root / "artifacts/build/sm_90a"
    found = json.loads(run("diff", before, after, "--json").stdout)
    assert found["same"] == 0
    assert {row["change"] for row in found["changes"]} == {"changed"}
    fields = {detail["field"] for row in found["changes"] for detail in row["details"]}
    assert {"sha256", "build_key"} <= fields
    assert "sha256 differs" in run("diff", before, after).stdout
    assert run("diff", before, before).stdout == "sm_90a -> sm_90a: 4 the same\n"


def test_wheel_has_the_same_bytes_twice(built: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert run("wheel", "--from", built, "--out", tmp_path / folder).exit_code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {
        "dsv4_aot_sm90a-0.1.0-py3-none-any.whl",
        "dsv4_aot_sm100a-0.1.0-py3-none-any.whl",
    }


@pytest.mark.parametrize(
    ("capability", "code", "selected"),
    [("9.0", 0, "sm_90a"), ("10.0", 0, "sm_100a"), ("12.0", 1, None)],
)
def test_doctor(built: Path, capability: str, code: int, selected: str | None) -> None:
    result = run("doctor", "--capability", capability, "--json", built)
    assert result.exit_code == code
    report = json.loads(result.stdout)
    assert report["zero_jit"] is True, report["zero_jit_problem"]
    assert [row["selected"] for row in report["selections"]] == [selected]
    refused = {row["target"]: row["reason"] for row in report["targets"] if not row["accepted"]}
    assert all(f"the device is {capability}" in reason for reason in refused.values())
    assert set(TARGETS) - set(refused) == ({selected} if selected else set())


# Building ---------------------------------------------------------------------------------------


def test_second_build_compiles_nothing_and_changes_nothing(root: Path, cache: Path) -> None:
    before = contents(root / "artifacts/build")
    facts = summary(build(root, cache, "--json"))
    assert (facts["compiled"], facts["reused"], facts["failed"]) == (0, 8, 0)
    assert contents(root / "artifacts/build") == before


def summary(result: Result) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_lock(root: Path, cache: Path) -> None:
    assert build(root, cache, "--update-lock").exit_code == 0
    locks = contents(root / "artifacts")
    assert {"sm_90a.lock.json", "sm_100a.lock.json"} <= set(locks)
    assert build(root, cache, "--locked").exit_code == 0
    replace_in(root / "templates/scale_rows/kernel.cu.j2", "* factor", "+ factor")
    result = build(root, cache, "--locked", "--arch", "sm_90a")
    assert result.exit_code == 1
    assert "sm_90a.lock.json" in result.stderr and KEY in result.stderr
    assert build(root, cache, "--arch", "sm_90a").exit_code == 0
    name = "sm_90a.lock.json"
    assert contents(root / "artifacts")[name] == locks[name], "a plain build leaves the lock alone"


def test_failure_shows_the_log_and_keeps_what_stood(root: Path, cache: Path) -> None:
    before = contents(root / "artifacts/build")
    broken = "{% if threads == 64 %}no such type;{% endif %}\nextern"
    replace_in(root / "templates/scale_rows/kernel.cu.j2", "extern", broken)
    result = build(root, cache, "--arch", "sm_90a", "--json")
    assert result.exit_code == 1
    facts = summary(result)
    assert (facts["failed"], facts["compiled"] + facts["reused"]) == (2, 2)
    assert all("error" in error["log"] for error in facts["errors"])
    plain = build(root, cache, "--arch", "sm_90a")
    assert f"ERROR: {KEY}" in plain.stderr and "  | " in plain.stderr
    assert "sm_90a is as it was" in plain.stderr
    assert contents(root / "artifacts/build") == before


def test_part_of_a_build_keeps_the_other_kernels(root: Path, cache: Path) -> None:
    add_kernel(root, "scale_more")
    arch = ("--arch", "sm_90a")
    assert build(root, cache, *arch).exit_code == 0
    before = contents(root / "artifacts/build/sm_90a")
    replace_in(root / "templates/scale_more/kernel.cu.j2", "* factor", "- factor")
    result = build(root, cache, *arch, "--kernel", "scale_more")
    assert result.exit_code == 0, result.output
    assert "scale_rows kept as before" in result.stdout
    after = contents(root / "artifacts/build/sm_90a")
    kept = {name for name in before if name.startswith("scale_rows-")}
    assert kept and all(after[name] == before[name] for name in kept)
    assert {n for n in after if n.startswith("scale_more-")}.isdisjoint(before)


def test_part_of_a_build_refuses_to_drop_a_changed_kernel(root: Path, cache: Path) -> None:
    add_kernel(root, "scale_other")
    arch = ("--arch", "sm_90a")
    assert build(root, cache, *arch).exit_code == 0
    before = contents(root / "artifacts/build")
    replace_in(root / "templates/scale_rows/kernel.cu.j2", "* factor", "/ factor")
    result = build(root, cache, *arch, "--kernel", "scale_other")
    assert result.exit_code == 1
    assert "also holds scale_rows" in result.stderr and "--out" in result.stderr
    assert contents(root / "artifacts/build") == before
    elsewhere = build(root, cache, *arch, "--kernel", "scale_other", "--out", root / "elsewhere")
    assert elsewhere.exit_code == 0
    assert {n.partition("-")[0] for n in contents(root / "elsewhere/sm_90a")} == {
        "manifest.json",
        "scale_other",
    }


def test_a_choice_that_rules_would_not_make_is_built_apart(root: Path, cache: Path) -> None:
    arch = ("--arch", "sm_90a", "--kernel", "scale_rows")
    spec = root / "templates/scale_rows/kernel.py"
    replace_in(spec, "rule(threads=256),", 'only("sm_90a", rule(threads=256)), rule(threads=64),')
    replace_in(spec, "    number,\n", "    number,\n    only,\n")
    chosen = (*arch, "--out", root / "elsewhere", "--choose", "threads=64")
    before = contents(root / "artifacts/build")
    result = build(root, cache, *chosen)
    assert result.exit_code == 0, result.output
    assert contents(root / "artifacts/build") == before
    (kernel,) = json.loads((root / "elsewhere/sm_90a/manifest.json").read_bytes())["kernels"]
    assert {entry["choices"]["threads"] for entry in kernel["entries"]} == {64}
    assert run("verify", "--closed", root / "elsewhere").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--choose", "threads=256"), "--choose needs --kernel, and --out"),
        (("--kernel", "scale_rows", "--choose", "threads=256"), "--choose needs --kernel"),
        (("--kernel", "scale_rows", "--out", "x", "--choose", "threads=99"), "is no choice of"),
        (("--kernel", "scale_rows", "--out", "x", "--choose", "dtype=float16"), "is no choice of"),
        (
            (
                "--kernel",
                "scale_rows",
                "--out",
                "x",
                *("--choose", "threads=64"),
                *("--choose", "threads=256"),
            ),
            "threads is 64 and 256",
        ),
    ],
)
def test_choices_that_cannot_be_are_wrong_usage(
    arguments: tuple[str, ...], words: str, root: Path, cache: Path
) -> None:
    given = [root / "elsewhere" if each == "x" else each for each in arguments]
    result = build(root, cache, "--arch", "sm_90a", *given)
    assert result.exit_code == 2 and words in result.stderr
    assert not (root / "elsewhere").exists()


def test_output_folder_that_cannot_be_written_is_one_line(root: Path, cache: Path) -> None:
    (root / "file").write_text("")
    result = build(root, cache, "--arch", "sm_90a", "--out", root / "file/inside")
    assert result.exit_code == 1
    error, tip, end = result.stderr.splitlines()
    assert error.startswith(f"ERROR: cannot write {root / 'file'}") and tip.startswith("TIP: ")
    assert end.endswith("is as it was")
