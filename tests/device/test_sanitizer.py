"""The kernels under compute-sanitizer: no stray access, no race, nothing read before written.

A test is one body of one kernel under one tool, in a process of its own: ``-n`` runs them side by
side and ``-k`` picks some.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sanitize.py")
FOUND = 77  # exit code that the tool gives when it found something


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_nothing_is_found(tool: str, kernel_body: tuple[str, str]) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed here")
    name, body = kernel_body
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "0"]
    if tool == "memcheck":  # bindings probe the driver for calls that it need not have
        command += ["--report-api-errors", "no"]
    if tool != "initcheck":  # which must see who wrote the inputs
        command += [f"--kernel-name=kernel_substring={name}"]
    command += [sys.executable, str(SCRIPT), "--kernel", name, "--body", body]
    # Every tensor its own allocation: a neighbour in torch's cache would hide a stray access.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this machine's GPU")
    right = re.search(r"^[1-9]\d* launches of .*, 0 wrong$", run.stdout, re.MULTILINE)
    assert right, output[-4000:]
    assert run.returncode == 0, output[-4000:]
