"""MLX on the CPU: `mx.quantize`, affine with scale and bias of each group, and the block formats of floats."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Kind, Target

Array = NDArray[Any]
AFFINE = catalog["uint4_affine_per_group32"].replace(zero_point_domain="shift")
BITS = (2, 3, 4, 6, 8)
BLOCKS = {"mxfp4": catalog["mxfp4_e2m1"], "mxfp8": catalog["mxfp8_e4m3"], "nvfp4": catalog["nvfp4_one_level"]}
GROUP = 32
WIDTH = 32  # of rows, a multiple: for NVFP4 too, whose groups are of 16


def targets() -> dict[str, Target]:
    """The targets of MLX, by name."""
    note = "groups of 32; the bias is the negative zero point, and the scale may be negative"
    affine = {f"mlx.quantize.affine{bits}": (bits, AFFINE.replace(bits=bits)) for bits in BITS}
    found = [
        Target(name, _codes(bits), q, kind=Kind.CODES, chooses=True, note=note) for name, (bits, q) in affine.items()
    ]
    found += [Target(f"mlx.quantize.{mode}", _values(mode), q, chooses=True) for mode, q in BLOCKS.items()]
    return {target.name: target for target in found}


def _codes(bits: int) -> Function:
    def run(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
        core = import_module("mlx.core")
        with core.stream(core.cpu):
            packed, scale, bias = core.quantize(core.array(x), group_size=GROUP, bits=bits)
            found = _unpacked(np.array(packed), bits).reshape(x.shape), QParams(np.array(scale), -np.array(bias))
        return found

    return run


def _unpacked(words: Array, bits: int) -> Array:
    """Codes of little-endian words, the first in the lowest bits; those of 3 and 6 bits go across words."""
    stream = np.unpackbits(words.astype("<u4").reshape(-1).view(np.uint8), bitorder="little").reshape(-1, bits)
    return np.asarray(stream.astype(np.int32) @ (1 << np.arange(bits, dtype=np.int32)))


def _values(mode: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Array:
        core = import_module("mlx.core")
        rows = x.reshape(-1, x.shape[-1])
        more = np.pad(rows, ((0, 0), (0, -rows.shape[1] % WIDTH)), "edge")
        with core.stream(core.cpu):
            packed = core.quantize(core.array(more), mode=mode)
            found = np.array(core.dequantize(*packed, mode=mode, dtype=core.float32))
        return found[:, : rows.shape[1]].reshape(x.shape)

    return run
