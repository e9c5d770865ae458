"""Keras on its JAX and on its torch backend: `keras.quantizers`.

A process has one backend, so each backend has a process of its own, which is started when its first target is asked.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Kind, Target

Array = NDArray[Any]
FLOAT8, UINT8 = catalog["float8_e4m3fn_per_tensor"], catalog["uint8_affine_per_tensor"]
NARROW = catalog["int8_narrow_per_channel"]


def targets() -> dict[str, Target]:
    """The targets of Keras, by name."""
    found = []
    for backend in ("jax", "torch"):
        names = {f: f"keras.{f}.{backend}" for f in ("quantize_and_dequantize", "fake_quant_with_min_max_vars")}
        found += [Target(name, _in(backend, f), UINT8 if "vars" in f else FLOAT8) for f, name in names.items()]
        chosen, kind = f"keras.abs_max_quantize.{backend}", Kind.CODES
        found.append(Target(chosen, _in(backend, "abs_max_quantize"), NARROW, kind=kind, chooses=True))
    return {target.name: target for target in found}


def _in(backend: str, function: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Any:
        parts = () if qparams is None else (qparams.scale, qparams.zero_point)
        found = _process(backend).submit(_answer, function, x, *parts).result()
        return found if qparams is not None else (found[0], QParams(found[1]))

    return run


@cache
def _process(backend: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _begin, (backend,))


def _begin(backend: str) -> None:
    os.environ["KERAS_BACKEND"] = backend


@np.errstate(all="ignore")  # special values are meant
def _answer(function: str, x: Array, *parts: Any) -> Any:
    """What Keras answers, in its process."""
    quantizers, ops = import_module("keras.src.quantizers.quantizers"), import_module("keras.ops")
    if function == "abs_max_quantize":
        codes, factor = quantizers.abs_max_quantize(ops.convert_to_tensor(x), axis=-1)
        return ops.convert_to_numpy(codes), 1 / ops.convert_to_numpy(factor)
    scale, zero = parts
    if function == "quantize_and_dequantize":
        operands = ops.convert_to_tensor(x), ops.convert_to_tensor(np.asarray(scale))
        return ops.convert_to_numpy(quantizers.quantize_and_dequantize(*operands, "float8_e4m3fn", "float32"))
    ends = [float(np.float32((end - int(zero)) * np.float32(scale))) for end in (0, 255)]
    return ops.convert_to_numpy(quantizers.fake_quant_with_min_max_vars(ops.convert_to_tensor(x), *ends))
