"""What a launch costs the host, and what a start costs a process.

    python benchmarks/host.py [--artifacts FOLDER] [--kernel NAME] [--out FILE]

Hosts differ by half, so every launch is given as a ratio to the floor of the same run:
``cuLaunchKernel`` through cuda.bindings with the parameters packed beforehand. Writes
``benchmarks/results/host.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver as cuda

from dsv4_aot import runtime
from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.gpu import current_gpu
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.packet import Layout
from dsv4_aot.runtime.resolve import FOLDERS_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
BATCH = 200
"""Launches between two synchronisations: few enough that the queue never fills and pushes back."""
ROUNDS = 60
STARTS = 5

Call = Callable[[], object]
_KEPT: list[object] = []


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    if options.artifacts is not None:
        os.environ[FOLDERS_VARIABLE] = str(options.artifacts)
    else:
        os.environ.setdefault(FOLDERS_VARIABLE, str(ROOT / "artifacts" / "build"))
    library = Library.default()
    arguments = smallest_call(options.kernel)
    report = report_of(library, options.kernel, arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artifacts", type=Path, help="folder of built targets")
    parser.add_argument("--kernel", default="dequant_gather")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "host.json")
    return parser.parse_args(argv)


def smallest_call(kernel: str) -> dict[str, Any]:
    """Arguments of the kernel's smallest benchmark case, zeroed to leave it little to do."""
    cases = [case for case in discover()[kernel].cases() if case.bench]
    case = min(cases, key=lambda case: (case.read + case.write, case.name))
    arguments = case.make(torch.device("cuda", 0), 0)
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    return arguments


def report_of(library: Library, kernel: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    calls = ways(library, kernel, arguments)
    us = measure(calls)
    gpu = current_gpu()
    # One target's folder is what a deployment installs.
    target = library.function(kernel, 0, {}).place.folder
    return {
        "ratio_to_floor": {way: round(us[way] / us["floor"], 3) for way in us},
        "us": {way: round(value, 3) for way, value in us.items()},
        "start_ms": starts(target, kernel, arguments),
        "kernel": kernel,
        "arguments": len(arguments),
        "device": gpu.name,
        "driver": gpu.driver,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
    }


# Launches -----------------------------------------------------------------------------------------


def ways(library: Library, kernel: str, arguments: Mapping[str, Any]) -> dict[str, Call]:
    """Every way to launch that can be had here, the floor first."""
    positional = tuple(arguments.values())
    runtime.launch(kernel, *positional)
    names = list(arguments)
    found: dict[str, Call] = {
        "floor": floor(library, kernel, arguments),
        "bound": library.op(kernel, **arguments),
        "launch": written_out(f"launch({kernel!r}, {', '.join(names)})", arguments),
        "launch_by_name": written_out(
            f"launch({kernel!r}, {', '.join(f'{name}={name}' for name in names)})", arguments
        ),
        "torch_add_": functools.partial(torch.zeros(16, device="cuda").add_, 1.0),
    }
    for name, make in (("triton", _triton), ("cuda_core", _cuda_core)):
        try:
            found[name] = make(positional)
        except ImportError:
            print(f"{name}: not installed here, left out")
    return found


def written_out(call: str, arguments: Mapping[str, Any]) -> Call:
    """The call as a program would have it, its arguments in local names."""
    source = f"def make({', '.join(arguments)}):\n    return lambda: {call}\n"
    scope: dict[str, Any] = {"launch": runtime.launch}
    exec(source, scope)  # noqa: S102
    made: Call = scope["make"](**arguments)
    return made


def floor(library: Library, kernel: str, arguments: Mapping[str, Any]) -> Call:
    """The same entry, grid and parameters by the bare driver call."""
    function = library.function(kernel, 0, {})
    adapted = function.adapt(function.order((), arguments))
    decision = function.decide(adapted)
    launcher = function.launcher(decision, None)
    packed = launcher.pack(*function.passed(decision))
    if packed is None:
        raise SystemExit(f"{kernel}: the smallest case launches nothing")
    entry, driver = decision.entry, library.loader.driver
    handle = library.loader.function(function.place, kernel, entry, decision.device, None)
    layout = Layout(entry.launch, entry.params)
    packet = layout.packet(driver)
    layout.pack_into(packet[0], 0, *packed)
    # Grid, block and shared bytes stand in the packet as the driver reads them.
    geometry = ctypes.cast(packet[1].getPtr(), ctypes.POINTER(ctypes.c_uint * 7)).contents
    stream = cuda.CUstream(torch.cuda.current_stream().cuda_stream)
    call = functools.partial(cuda.cuLaunchKernel, handle, *geometry, stream, packet[2], 0)
    _KEPT.append(packet)  # the parameters must outlive the calls
    return call


def _triton(values: Sequence[Any]) -> Call:
    """A Triton kernel with as many arguments, which does nothing."""
    import triton

    source = f"def nothing({', '.join(f'a{i}' for i in range(len(values)))}):\n    pass\n"
    # Triton reads a function's source from its file.
    folder = tempfile.TemporaryDirectory(prefix="dsv4-aot-")
    _KEPT.append(folder)
    path = Path(folder.name) / "nothing.py"
    path.write_text(source)
    namespace: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), namespace)  # noqa: S102
    function = triton.jit(namespace["nothing"])[(1,)]
    tensors = [torch.zeros(1, device="cuda") if value is None else value for value in values]
    return lambda: function(*tensors)


def _cuda_core(values: Sequence[Any]) -> Call:
    """``cuda.core.launch`` of a kernel that takes the call's pointers and numbers."""
    try:
        from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
    except ImportError:
        from cuda.core.experimental import (
            Device,
            LaunchConfig,
            Program,
            ProgramOptions,
            launch,
        )
    device = Device(0)
    device.set_current()
    arch = "".join(f"{part}" for part in device.compute_capability)
    types = ["int" if isinstance(value, int) else "void*" for value in values]
    text = ", ".join(f"{kind} a{i}" for i, kind in enumerate(types))
    source = f'extern "C" __global__ void nothing({text}) {{}}'
    program = Program(source, "c++", ProgramOptions(arch=f"sm_{arch}"))
    kernel = program.compile("cubin").get_kernel("nothing")
    config = LaunchConfig(grid=1, block=128)
    stream = device.default_stream
    numbers = [ctypes.c_int(value) if isinstance(value, int) else value for value in values]

    def call() -> None:
        # The addresses are read anew, as they must be for tensors that change.
        read = [
            value.data_ptr() if isinstance(value, torch.Tensor) else value or 0 for value in numbers
        ]
        launch(stream, config, kernel, *read)

    return call


def measure(calls: Mapping[str, Call]) -> dict[str, float]:
    """Microseconds a call: the median of rounds in which every way has its turn."""
    for call in calls.values():
        for _ in range(BATCH):
            call()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(ROUNDS):
        for way, call in calls.items():
            start = time.perf_counter_ns()
            for _ in range(BATCH):
                call()
            times[way].append((time.perf_counter_ns() - start) / BATCH / 1e3)
            torch.cuda.synchronize()
    return {way: statistics.median(values) for way, values in times.items()}


# Starts -------------------------------------------------------------------------------------------


def starts(artifacts: Path, kernel: str, arguments: Mapping[str, Any]) -> dict[str, float]:
    """Medians over fresh processes without torch; see ``start.py`` for what each counts."""
    described = {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "stride": list(value.stride()),
        }
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
    call = json.dumps({"artifacts": str(artifacts), "kernel": kernel, "arguments": described})
    command = [sys.executable, str(Path(__file__).with_name("start.py")), call]
    with tempfile.TemporaryDirectory() as folder:
        # An installed wheel comes with its bytecode; here the first start, not counted, writes it.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        rows = []
        for _ in range(STARTS + 1):
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environ
            )
            rows.append(json.loads(done.stdout))
    return {name: round(statistics.median(r[name] for r in rows[1:]), 2) for name in rows[0]}


def table(report: Mapping[str, Any]) -> str:
    lines = [f"{report['kernel']}, {report['arguments']} arguments, {report['device']}"]
    lines += [
        f"  {way:<16}{us:>8.2f} us{report['ratio_to_floor'][way]:>8.2f} x floor"
        for way, us in report["us"].items()
    ]
    lines += [f"  {name:<32}{value:>10.2f}" for name, value in report["start_ms"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
