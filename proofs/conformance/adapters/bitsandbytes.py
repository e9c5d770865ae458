"""bitsandbytes on the CPU: NF4 and FP4, the 256 numbers of blockwise quantization, and int8 by rows."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.formats import CodebookFormat
from ...modes.arrays import to_numpy, to_torch
from ..targets import Function, Kind, Target

Array = NDArray[Any]
NF4, INT8 = catalog["nf4_per_group64"], catalog["int8_per_token"]
GROUP = 64
INVERSE = np.float32(0.007874015718698502)  # by which `int8_vectorwise_dequant` multiplies the magnitude of a row


def targets() -> dict[str, Target]:
    """The targets of bitsandbytes, by name."""
    functional = import_module("bitsandbytes.functional")
    fp4 = NF4.replace(format=_codebook(to_numpy(functional.get_4bit_type("fp4", "cpu"))))
    blockwise = NF4.replace(format=_codebook(to_numpy(functional.create_dynamic_map())))
    note = "a table of 16 numbers, twelfths beside 0.0052"
    rows = "the scale is absmax * (1 / 127), as it dequantizes"
    found = (
        Target("bitsandbytes.quantize_4bit.nf4", _four("nf4"), NF4, chooses=True),
        Target("bitsandbytes.quantize_4bit.fp4", _four("fp4"), fp4, chooses=True, note=note),
        Target("bitsandbytes.quantize_blockwise", _blockwise, blockwise, chooses=True),
        Target("bitsandbytes.int8_vectorwise_quant", _by_rows, INT8, kind=Kind.CODES, chooses=True, note=rows),
    )
    return {target.name: target for target in found}


def _codebook(values: Array) -> CodebookFormat:
    """The numbers of a table in ascending order; of 0.0 and -0.0 one."""
    return CodebookFormat(tuple(float(v) for v in np.unique(values + np.float32(0))))


def _four(kind: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Array:
        functional = import_module("bitsandbytes.functional")
        codes, state = functional.quantize_4bit(to_torch(x), blocksize=GROUP, quant_type=kind)
        return to_numpy(functional.dequantize_4bit(codes, state))

    return run


def _blockwise(x: Array, qparams: QParams | None) -> Array:
    functional = import_module("bitsandbytes.functional")
    codes, state = functional.quantize_blockwise(to_torch(x), blocksize=GROUP)
    return to_numpy(functional.dequantize_blockwise(codes, state))


def _by_rows(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    functional = import_module("bitsandbytes.functional")
    codes, peaks, _ = functional.int8_vectorwise_quant(to_torch(x))
    return to_numpy(codes), QParams(to_numpy(peaks)[:, None] * INVERSE)
