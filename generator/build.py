"""Runs the stages for one variant, and for many on an executor. No other logic.

The conductor renders, hashes and looks into the store, which is all that an unchanged rebuild
needs. What is missing goes to worker processes that see no GPU; only they load compilers.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Literal

from dsv4_aot.generator.compile import compile_source
from dsv4_aot.generator.expand import Variant
from dsv4_aot.generator.inspect import inspect_cubin
from dsv4_aot.generator.key import build_key
from dsv4_aot.generator.policy import refusal, violations
from dsv4_aot.generator.publish import writing
from dsv4_aot.generator.render import Source, render
from dsv4_aot.generator.store import Artifact, Store
from dsv4_aot.generator.toolchain import Kind, Toolchain, probe
from dsv4_aot.runtime.errors import BuildError, CompileError, Dsv4AotError, SpecError
from dsv4_aot.runtime.target import Target


@dataclass(frozen=True)
class Event:
    """One variant is settled.

    done, total: variants of this build. seconds: what its compile took, 0 when it was reused.
    error: why it failed, else None.
    """

    kind: Literal["reused", "compiled", "failed"]
    key: str
    done: int
    total: int
    seconds: float = 0.0
    error: Dsv4AotError | None = None


@dataclass(frozen=True)
class BuildResult:
    """artifacts and failures by variant key, in the order of the variants.

    compiled, reused: how many sources were compiled, and how many of the artifacts needed none.
    """

    artifacts: dict[str, Artifact]
    failures: dict[str, Dsv4AotError]
    compiled: int
    reused: int


@dataclass(frozen=True)
class _Job:
    """One build key to compile, and the variants that wait for it."""

    build_key: str
    source: Source
    target: Target
    variants: list[Variant] = field(default_factory=list)


_Result = tuple[Artifact, bool] | BuildError
"""The artifact and whether it was compiled just now, or what is wrong with the variant."""


def build(
    variants: Iterable[Variant],
    store: Store,
    *,
    executor: Executor | None = None,
    jobs: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> BuildResult:
    """Compiles what the store lacks, once a build key. A failing variant stops no other.

    executor: anything with the ``concurrent.futures`` interface whose workers share the store's
        folder; ``jobs`` local processes (one a processor when left out) otherwise.
    Raises BuildError when the store cannot be written, ToolchainError when a compiler is missing.
    """
    ordered = list(variants)
    outcome = _Outcome(len(ordered), on_event)
    toolchains: dict[Kind, Toolchain] = {}
    missing: dict[str, _Job] = {}
    for variant in ordered:
        try:
            source = render(variant)
            if source.kind not in toolchains:
                toolchains[source.kind] = probe(source.kind)
            key = build_key(source, toolchains[source.kind], variant.target)
        except SpecError as error:
            outcome.fail(variant, error)
            continue
        except BuildError as error:
            outcome.fail(variant, _about(variant.key, error))
            continue
        if key in missing:
            missing[key].variants.append(variant)
        elif (artifact := store.get(key)) is not None:
            outcome.settle(variant, artifact, "reused")
        else:
            missing[key] = _Job(key, source, variant.target, [variant])
    compiled = 0
    if missing:
        store.prepare()
        with contextlib.closing(_run(list(missing.values()), store, executor, jobs)) as results:
            for job, result in results:
                compiled += outcome.take(job, result)
    return outcome.result([variant.key for variant in ordered], compiled)


class _Outcome:
    """Collects what became of each variant and tells the listener."""

    def __init__(self, total: int, on_event: Callable[[Event], None]) -> None:
        self._total = total
        self._on_event = on_event
        self._artifacts: dict[str, Artifact] = {}
        self._failures: dict[str, Dsv4AotError] = {}
        self._reused = 0

    def settle(
        self, variant: Variant, artifact: Artifact, how: Literal["compiled", "reused"]
    ) -> None:
        """Takes a cubin, unless the spec and the cubin disagree."""
        problems = violations(variant, artifact.facts, artifact.shared)
        if problems:
            message = refusal(variant.key, problems)
            self.fail(variant, CompileError(message, log=artifact.log))
            return
        self._artifacts[variant.key] = replace(artifact, key=variant.key)
        self._reused += how == "reused"
        self._tell(how, variant, artifact.seconds if how == "compiled" else 0.0)

    def take(self, job: _Job, result: _Result) -> bool:
        """Settles the variants that waited for a job; whether it was compiled just now."""
        if isinstance(result, BuildError):
            for variant in job.variants:
                self.fail(variant, result)
            return False
        artifact, fresh = result
        for variant in job.variants:
            first = variant is job.variants[0]
            self.settle(variant, artifact, "compiled" if fresh and first else "reused")
        return fresh

    def fail(self, variant: Variant, error: Dsv4AotError) -> None:
        self._failures[variant.key] = error
        self._tell("failed", variant, error=error)

    def _tell(
        self,
        kind: Literal["reused", "compiled", "failed"],
        variant: Variant,
        seconds: float = 0.0,
        error: Dsv4AotError | None = None,
    ) -> None:
        done = len(self._artifacts) + len(self._failures)
        self._on_event(Event(kind, variant.key, done, self._total, seconds, error))

    def result(self, keys: list[str], compiled: int) -> BuildResult:
        artifacts = {key: self._artifacts[key] for key in keys if key in self._artifacts}
        failures = {key: self._failures[key] for key in keys if key in self._failures}
        return BuildResult(artifacts, failures, compiled, self._reused)


# Running jobs -----------------------------------------------------------------------------------


def _run(
    jobs: list[_Job], store: Store, executor: Executor | None, workers: int | None
) -> Generator[tuple[_Job, _Result]]:
    if executor is not None:
        yield from _submit_all(jobs, store, executor)
        return
    workers = max(1, min(workers or len(os.sched_getaffinity(0)), len(jobs)))
    lost: list[_Job] = []
    with _local(workers) as pool:
        for job, result in _submit_all(jobs, store, pool):
            if isinstance(result, _WorkerLostError):
                lost.append(job)
            else:
                yield job, result
    # One dead worker breaks a pool for all. Alone, each job either succeeds or is the culprit.
    while lost:
        with _local(1) as pool:
            for job, result in _one_by_one(lost, store, pool):
                yield job, result
                if isinstance(result, _WorkerLostError):
                    break


class _WorkerLostError(BuildError):
    """The process that compiled a variant was killed."""


def _submit_all(
    jobs: list[_Job], store: Store, executor: Executor
) -> Iterator[tuple[_Job, _Result]]:
    futures: dict[Future[_Result], _Job] = {}
    lost: list[_Job] = []
    try:
        for job in jobs:
            try:
                futures[_submit(job, store, executor)] = job
            except BrokenExecutor:
                lost.append(job)
        for future in as_completed(futures):
            yield futures[future], _result(futures[future], future)
        for job in lost:
            yield job, _lost(job)
    finally:
        for future in futures:
            future.cancel()


def _one_by_one(
    jobs: list[_Job], store: Store, executor: Executor
) -> Iterator[tuple[_Job, _Result]]:
    while jobs:
        job = jobs.pop(0)
        yield job, _result(job, _submit(job, store, executor))


def _submit(job: _Job, store: Store, executor: Executor) -> Future[_Result]:
    key = job.variants[0].key
    return executor.submit(produce, store, key, job.build_key, job.source, job.target)


def _result(job: _Job, future: Future[_Result]) -> _Result:
    try:
        return future.result()
    except BrokenExecutor:
        return _lost(job)


def _lost(job: _Job) -> _WorkerLostError:
    return _WorkerLostError(
        f"{job.variants[0].key}: the process that compiled it was killed",
        tip="if memory ran out, build with fewer --jobs",
    )


def _local(workers: int) -> ProcessPoolExecutor:
    # Fresh interpreters: a fork would copy whatever threads and libraries this process has.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_enter_worker)


def _enter_worker() -> None:
    """No GPU, no keyboard, and no life after the conductor's."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def produce(store: Store, key: str, build_key: str, source: Source, target: Target) -> _Result:
    """Runs in a worker: look, lock, look again, compile, inspect, publish.

    What is wrong with the variant is its result. Raised is what would stop every other as well:
    BuildError when the store cannot be used, ToolchainError.
    """
    with store.locked(build_key), writing(store.root):
        kept = store.get(build_key)
        if kept is not None:
            return kept, False
        start = time.perf_counter()
        try:
            with store.scratch() as scratch:
                compiled = compile_source(source, target, scratch)
            facts = inspect_cubin(compiled.cubin, source.entry)
        except BuildError as error:
            return _about(key, error)
        artifact = Artifact(
            key=key,
            build_key=build_key,
            cubin=compiled.cubin,
            sha256=hashlib.sha256(compiled.cubin).hexdigest(),
            facts=facts,
            shared=compiled.shared,
            log=compiled.log,
            seconds=time.perf_counter() - start,
        )
        store.publish(artifact, source, compiled.ptx)
    return artifact, True


def _about(key: str, error: BuildError) -> BuildError:
    """The error with the variant's name in front."""
    message = f"{key}: {error.message}"
    if isinstance(error, CompileError):
        return CompileError(message, log=error.log, tip=error.tip)
    return BuildError(message, tip=error.tip)
