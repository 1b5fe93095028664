"""Kernels as PyTorch operators: ``torch.ops.dsv4_aot.<kernel>``.

    from dsv4_aot.integrations import torch_ops

    torch_ops.register()
    torch.ops.dsv4_aot.dequant_gather(out, k_cache, ...)

An operator launches on the current stream, returns nothing and declares the tensors that its kernel
writes, so ``torch.compile(fullgraph=True)`` keeps it whole and in its place. It costs the host more
than ``runtime.launch``: code that is not compiled has no reason to call it. Kernels have no
gradients, and operators do not count as in-place changes in autograd's bookkeeping.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dsv4_aot.runtime import resolve
from dsv4_aot.runtime.errors import ConflictError, Dsv4AotError, NoArtifactError
from dsv4_aot.runtime.library import Library
from dsv4_aot.runtime.schema import Argument, KernelRecord, ScalarArg, TensorArg
from dsv4_aot.runtime.scope import refuse_names

NAMESPACE = "dsv4_aot"

_TYPES = {"int": "SymInt", "float": "float", "bool": "bool"}
"""``SymInt`` lets a compiled function pass sizes on without compiling again for each."""


class _Operator(NamedTuple):
    """A registered kernel. Torch forgets the operator when ``fragment`` is collected."""

    library: Library
    fragment: Any


_operators: dict[str, _Operator] = {}
_lock = threading.Lock()


def register(library: Library | None = None, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Makes kernels of a library torch operators, and says their names: ``dsv4_aot::<kernel>``.

    Left out, the library is the default one, and names are all its kernels. What is registered
    already stays as it is. Needs no GPU and loads nothing: under capture, call ``preload`` first.

    Operators take the kernel's arguments by position or by name. A default holds where every
    argument after it has one too; other optional tensors are passed as None.
    In compiled code pass ``out`` by position: Dynamo refuses a strided tensor by that name.

    Raises NoArtifactError, UnknownKernelError, ManifestError, ConflictError (a name that launches
    from another library, or whose artifacts differ in their arguments), and Dsv4AotError without
    torch.
    """
    _require_torch()
    library = Library.default() if library is None else library
    schemas = _schemas(library)
    chosen = sorted(schemas if names is None else set(names))
    for name in chosen:
        if name not in schemas:
            raise resolve.unknown(name, schemas)
    with _lock:
        for name in chosen:
            present = _operators.get(name)
            if present is None:
                _operators[name] = _Operator(library, _define(library, name, schemas[name]))
            elif present.library is not library:
                raise ConflictError(
                    f"torch.ops.{NAMESPACE}.{name} launches from another library already",
                    tip="register every kernel from one library in a process",
                )
    return tuple(f"{NAMESPACE}::{name}" for name in chosen)


def schema_of(record: KernelRecord) -> str:
    """A kernel's operator schema, without its namespace. Raises ManifestError for a bad name.

    ``copy(Tensor(a0!) out, Tensor x, SymInt rows=1) -> ()``
    """
    refuse_names(record)  # Python's keywords among them; torch refuses no others.
    last = max((i for i, arg in enumerate(record.arguments) if _default(arg) is None), default=-1)
    arguments = []
    for index, arg in enumerate(record.arguments):
        text = f"{_type(index, arg)} {arg.name}"
        arguments.append(f"{text}={_default(arg)}" if index > last else text)
    return f"{record.name}({', '.join(arguments)}) -> ()"


def _type(index: int, arg: Argument) -> str:
    if isinstance(arg, ScalarArg):
        return _TYPES[arg.type]
    written = "" if arg.access == "read" else f"(a{index}!)"
    return f"Tensor{written}{'?' if arg.optional else ''}"


def _default(arg: Argument) -> str | None:
    """The default as a schema writes it, or None where the argument is required."""
    if isinstance(arg, TensorArg):
        return "None" if arg.optional else None
    if arg.default is None:
        return None
    return repr(float(arg.default) if arg.type == "float" else arg.default)


def _schemas(library: Library) -> Mapping[str, str]:
    """Kernel name -> schema. An operator has one, whatever device it will be launched on."""
    if not library.installed:
        raise NoArtifactError(
            "no artifacts are installed, so there is no kernel to register",
            tip="install an artifact wheel, or dsv4-aot build",
        )
    schemas: dict[str, str] = {}
    origins: dict[str, str] = {}
    for place in library.installed:
        for record in place.manifest.kernels:
            schema, origin = schema_of(record), origins.setdefault(record.name, place.origin)
            if schemas.setdefault(record.name, schema) != schema:
                raise ConflictError(
                    f"{origin} and {place.origin} give different arguments for {record.name}",
                    tip="install artifacts of one version",
                )
    return schemas


def _define(library: Library, name: str, schema: str) -> Any:
    import torch

    tags = (
        torch.Tag.pt2_compliant_tag,
        # Kernels check strides, and some choose by them: a compiler may not pick others.
        getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
    )
    fragment: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    fragment.define(schema, tags=tags)
    # For every backend, so that the launch itself refuses tensors of others, in its own words.
    launch = functools.partial(library.launch, name)
    fragment.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _fake, lib=fragment)
    return fragment


def _fake(*args: Any, **kwargs: Any) -> None:
    """What a launch means to a tensor without memory: nothing, as it returns none."""


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise Dsv4AotError(
            f"torch operators need torch, which cannot be imported here: {error}",
            tip="pip install torch, or launch with dsv4_aot.runtime.launch",
        ) from error
