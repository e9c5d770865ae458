"""Operands as constants of a compiled program: what a compiler knows it may fold, merge and contract.

An array that a function closes over is a constant of ``jax.jit``. ``torch.compile`` makes inputs of such tensors, and
eager modes fold nothing, so this concerns ``jax jit`` alone, on any device.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import core
from ...core.descriptions import QParams, Quantizer
from .arrays import to_jax, to_numpy
from .devices import in_jax
from .programs import jax_types

Array = NDArray[Any]
FOLDING = ("jax jit", "jax gpu jit")  # modes in which an operand can be a constant
PARAMETERS = frozenset({"scale", "zero"})
CASES: Mapping[str, tuple[str, frozenset[str]]] = MappingProxyType(  # verb, and which of its operands are constants
    {
        "dequantize of constant codes": ("dequantize", frozenset({"codes"})),
        "dequantize with constant parameters": ("dequantize", PARAMETERS),
        "fake_quantize of a constant x": ("fake_quantize", frozenset({"x"})),
        "fake_quantize with constant parameters": ("fake_quantize", PARAMETERS),
    }
)


def with_constants(mode: str, q: Quantizer, x: Array, b: Array, qparams: QParams) -> dict[str, Array]:
    """``verb + b`` for each of `CASES`, in one program; the addition is there to be contracted with a product.

    Args:
        x: float32, bfloat16, float16 or float64; ``b``: same shape and dtype; ``qparams``: of ``x``.
        mode: "numpy", where nothing is compiled, or one of `FOLDING`.
    Raises:
        ValueError: another mode.
    """
    if mode not in ("numpy", *FOLDING):
        raise ValueError(f"`mode` must be 'numpy' or one of {', '.join(map(repr, FOLDING))}; got {mode!r}")
    operands = {"x": x, "codes": core.quantize(q, x, qparams), "scale": qparams.scale, "zero": qparams.zero_point}
    if mode == "numpy":
        return _results(core, q, x.dtype, operands, operands, b)
    import jax

    from ... import jax_backend

    with in_jax(mode), jax_types(wide=x.dtype == np.float64):
        fixed = {name: None if o is None else to_jax(np.asarray(o)) for name, o in operands.items()}
        program = jax.jit(lambda given, b: _results(jax_backend, q, x.dtype.name, given, fixed, b))
        return {name: to_numpy(result) for name, result in program(fixed, to_jax(b)).items()}


def _results(
    room: Any, q: Quantizer, dtype: Any, given: Mapping[str, Any], fixed: Mapping[str, Any], b: Any
) -> dict[str, Any]:
    """Every case by the functions of a room, from operands that are given and the same as constants."""

    def verb(name: str, constants: frozenset[str]) -> Any:
        o = {key: (fixed if key in constants else given)[key] for key in given}
        parameters = QParams(o["scale"], o["zero"])
        if name == "dequantize":
            return room.dequantize(q, o["codes"], parameters, dtype)
        return room.fake_quantize(q, o["x"], parameters)

    return {name: verb(*case) + b for name, case in CASES.items()}
