"""Which artifacts are found, which one a device gets, and what is said when none fits."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from dsv4_aot.runtime import resolve
from dsv4_aot.runtime.errors import (
    ConflictError,
    ManifestError,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.target import Capability, Target
from tests.artifact import GATHER, GATHER_CHOICES, manifest_of, write_artifact
from tests.artifact import entry_of as entry
from tests.artifact import record_of as record

HOPPER = Capability(9, 0)


def installed(target: str, origin: str = "here", cubin: bytes = b"x", count: int = 1) -> Installed:
    entries = [entry(GATHER, choices, cubin) for choices in GATHER_CHOICES[:count]]
    content = manifest_of(target, [record(GATHER, entries)])
    return Installed(Path("/nowhere"), content, Target.parse(target), origin)


def test_the_most_specific_target_is_chosen() -> None:
    places = [installed("sm_90"), installed("sm_90a"), installed("sm_100a")]
    assert resolve.select(places, "gather", HOPPER)[0] is places[1]
    assert resolve.select(places[:1], "gather", HOPPER)[0] is places[0]


def test_an_unknown_kernel_gets_the_nearest_names() -> None:
    with pytest.raises(UnknownKernelError, match="no installed artifact has a kernel 'gahter'; "
                       "nearest: gather"):  # fmt: skip
        resolve.select([installed("sm_90a")], "gahter", HOPPER)


def test_no_fitting_target_lists_reasons_and_what_to_install() -> None:
    places = [installed("sm_100a", "dsv4-aot-sm100a 0.1.0"), installed("sm_80", "/builds/sm_80")]
    with pytest.raises(NoArtifactError) as caught:
        resolve.select(places, "gather", HOPPER, "device 0, NVIDIA H200")
    assert caught.value.message == (
        "no installed artifact runs gather on device 0, NVIDIA H200 (compute capability 9.0); "
        "refused: sm_100a from dsv4-aot-sm100a 0.1.0: runs on 10.0 exactly, the device is 9.0; "
        "sm_80 from /builds/sm_80: runs on 8.x from 8.0 on, the device is 9.0"
    )
    assert caught.value.tip == "pip install dsv4-aot-sm90a, or dsv4-aot build --arch sm_90a"


def test_nothing_installed_says_what_to_install() -> None:
    with pytest.raises(NoArtifactError, match="no artifacts are installed") as caught:
        resolve.select([], "gather", Capability(10, 3))
    assert caught.value.tip == "pip install dsv4-aot-sm103a, or dsv4-aot build --arch sm_103a"


def test_two_artifacts_may_agree_but_not_differ() -> None:
    one, more = installed("sm_90a", "one"), installed("sm_90a", "more", count=2)
    assert resolve.select([one, more], "gather", HOPPER)[0] is more
    other = installed("sm_90a", "other", cubin=b"y")
    with pytest.raises(ConflictError, match="one and other give different bytes for gather/sm_90a"):
        resolve.select([one, other], "gather", HOPPER)
    foreign = installed("sm_100a", "foreign", cubin=b"y")
    assert resolve.select([one, foreign], "gather", HOPPER)[0] is one


def test_folders_are_found_by_path_and_environment(tmp_path: Path) -> None:
    builds = tmp_path / "build"
    for target in ("sm_90a", "sm_100a"):
        write_artifact(builds / target, [(GATHER, GATHER_CHOICES[0], b"x")], target)
    both = resolve.find([builds], environ={}, entry_points=False)
    assert [str(place.target) for place in both] == ["sm_100a", "sm_90a"]
    twice = resolve.find(
        [builds / "sm_90a"], {"DSV4_AOT_ARTIFACTS": str(builds / "sm_90a")}, entry_points=False
    )
    assert [place.folder for place in twice] == [builds / "sm_90a"]
    with pytest.raises(ManifestError, match=r"has no manifest\.json"):
        resolve.find([tmp_path / "nothing"], environ={}, entry_points=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path into which wheels are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, target: str, value: str | None = None, cubin: bytes = b"x") -> Path:
    """What pip leaves of an artifact wheel."""
    wheel = site / f"dsv4_aot_{target.replace('_', '')}-0.1.0.dist-info"
    wheel.mkdir()
    value = value or f"dsv4_aot.artifacts.{target}"
    points = f"[console_scripts]\nx = y:z\n\n[{resolve.ENTRY_POINT_GROUP}]\n{target} = {value}\n"
    (wheel / "entry_points.txt").write_text(points)
    folder = site / "dsv4_aot" / "artifacts" / target
    return write_artifact(folder, [(GATHER, GATHER_CHOICES[0], cubin)], target)


def test_wheels_are_found_and_not_imported(site: Path) -> None:
    folder = install(site, "sm_90a")
    (place,) = resolve.find(environ={})
    assert place.folder == folder.resolve()
    assert (str(place.target), place.origin) == ("sm_90a", "dsv4-aot-sm90a 0.1.0")
    # importlib.metadata sees the same, so other tools do.
    (point,) = importlib.metadata.entry_points(group=resolve.ENTRY_POINT_GROUP)
    assert point.dist is not None
    assert point.dist.locate_file(point.value.replace(".", "/")) == folder


@pytest.mark.parametrize("value", ["../../etc", "dsv4_aot.artifacts:main", "/etc", "a..b"])
def test_an_entry_point_that_names_no_folder_is_refused(site: Path, value: str) -> None:
    install(site, "sm_90a", value)
    with pytest.raises(ManifestError, match="names no folder"):
        resolve.find(environ={})


def test_a_wheel_and_a_build_that_disagree_conflict(site: Path, tmp_path: Path) -> None:
    install(site, "sm_90a")
    other = write_artifact(tmp_path / "build", [(GATHER, GATHER_CHOICES[0], b"y")])
    both = resolve.find([other], environ={})
    with pytest.raises(ConflictError, match=r"dsv4-aot-sm90a 0\.1\.0 and .*build give different"):
        resolve.select(both, "gather", HOPPER)
