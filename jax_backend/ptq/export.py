"""Quantized JAX models as StableHLO, by `jax.export`: programs in files, which need neither the model nor samebits.

A program has the bits of the function under `jax.jit`: it is what XLA is given. Weights of an nnx model, and arrays
that a function closes over, are constants in it. A `QArray` may be an argument too; samebits must be imported then.
"""

import json
import struct
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

from ...core.described import quantizer_of_text, text_of
from .qarray import QArray

Function = Callable[..., Any]


def export_stablehlo(
    model: nnx.Module | Function, *args: Any, path: str | PathLike[str] | None = None, batch: bool = False
) -> bytes:
    """A model or function as a serialized StableHLO program, for the platform it runs on here.

    Args:
        model: an nnx model, or a function of pytrees of arrays that `jax.jit` takes.
        args: its arguments, or ``jax.ShapeDtypeStruct`` in their place.
        path: where the program is written; None for nowhere.
        batch: whether axis 0 of every argument that is one array is a batch of any length.
    Returns:
        What `load_stablehlo` and ``jax.export.deserialize`` read.
    Raises:
        TypeError: a model that cannot be called, arguments that are no arrays. ValueError: ``batch`` for a program that
            depends on its length, or without an argument that has axes. Nothing is written then.
    """
    if not callable(model):
        raise TypeError(f"`model` must be an nnx.Module or a function, got {model!r}")
    shapes = [jax.tree.map(_shape, arg) for arg in args]
    if batch:
        scope = export.SymbolicScope()
        shapes = [_of_any_length(one, scope) for one in shapes]
        if not any(_is_batch(one) for one in shapes):
            raise ValueError("`batch` must be False where no argument is one array with axes")
    try:
        program = export.export(jax.jit(_function(model)))(*shapes)
    except jax.errors.InconclusiveDimensionOperation as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`batch` must be False: the program depends on the length of the batch: {reason}") from error
    data = bytes(program.serialize())
    if path is not None:
        Path(path).write_bytes(data)
    return data


def load_stablehlo(program: bytes | str | PathLike[str]) -> export.Exported:
    """A program that `export_stablehlo` made: ``call(*args)`` runs it, ``mlir_module()`` is its text.

    ``call`` raises ValueError for arguments of another shape or dtype, and names them.

    Args:
        program: its bytes, or the file that holds them.
    Raises:
        FileNotFoundError: no such file. ValueError: what is no such program, or is damaged.
    """
    data = program if isinstance(program, bytes) else Path(program).read_bytes()
    try:
        return export.deserialize(bytearray(data))
    except (struct.error, ValueError, KeyError, TypeError, AssertionError, UnicodeDecodeError) as error:
        raise ValueError(f"`program` must be one of export_stablehlo: {str(error).partition(chr(10))[0]}") from error


def _function(model: nnx.Module | Function) -> Function:
    """What is traced: of a model the layers apart from their arrays, which tracing does not touch."""
    if not isinstance(model, nnx.Module):
        return model
    graph, state = nnx.split(model)
    return lambda *args: nnx.merge(graph, state)(*args)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.Array | np.ndarray | np.generic):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # type: ignore[no-untyped-call]
    raise TypeError(f"`args` must be pytrees of arrays, got {leaf!r}")


def _is_batch(arg: Any) -> bool:
    return isinstance(arg, jax.ShapeDtypeStruct) and len(arg.shape) > 0


def _of_any_length(arg: Any, scope: export.SymbolicScope) -> Any:
    """The same with an axis 0 of any length, if it is an array with axes."""
    if not _is_batch(arg):
        return arg
    text = ", ".join(["batch", *map(str, arg.shape[1:])])
    shape = export.symbolic_shape(f"({text},)", scope=scope)
    return jax.ShapeDtypeStruct(shape, arg.dtype)  # type: ignore[no-untyped-call]


def _text_of_static(static: Any) -> bytes:
    """What a `QArray` is apart from its arrays, in the order of its fields."""
    quantizer, act_quant, layout, length, dtype, transposed = static
    act = None if act_quant is None else text_of(act_quant)
    return json.dumps([text_of(quantizer), act, layout, length, np.dtype(dtype).name, transposed]).encode()


def _static_of_text(data: bytes) -> Any:
    quantizer, act, layout, length, dtype, transposed = json.loads(data)
    act_quant = None if act is None else quantizer_of_text(act)
    return quantizer_of_text(quantizer), act_quant, layout, length, jax.numpy.dtype(dtype), transposed


export.register_pytree_node_serialization(
    QArray,
    serialized_name="samebits.QArray",
    serialize_auxdata=_text_of_static,
    deserialize_auxdata=_static_of_text,
)
