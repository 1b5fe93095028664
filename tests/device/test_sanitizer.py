"""The kernels under compute-sanitizer: no stray access, no race, nothing read before written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sanitize.py")
FOUND = 77  # exit code that the tool gives when it found something


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_nothing_is_found(tool: str, kernel_names: list[str]) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed here")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]
    if tool == "memcheck":  # bindings probe the driver for calls that it need not have
        command += ["--report-api-errors", "no"]
    if tool != "initcheck":  # which must see who wrote the inputs
        command += [f"--kernel-name=kernel_substring={name}" for name in kernel_names]
    # Every tensor its own allocation: a neighbour in torch's cache would hide a stray access.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command += [sys.executable, str(SCRIPT)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this machine's GPU")
    assert run.returncode == 0, output[-4000:]
    assert " launches of " in run.stdout
