"""gguf: `quants.quantize`, in blocks of 32 with their own float16 scale."""

from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ....core.granularity import PerGroup
from ..gguf_file import BLOCK, decoded
from ..targets import Function, Kind, Target

Array = NDArray[Any]
INT8 = catalog["int8_per_tensor"].replace(granularity=PerGroup(BLOCK))
INT4, AFFINE = catalog["int4_per_group32"], catalog["uint4_affine_per_group32"].replace(zero_point_domain="shift")
SIGNED = {"Q8_0": INT8, "Q4_0": INT4, "Q5_0": INT4.replace(bits=5)}
SHIFTED = {"Q4_1": AFFINE, "Q5_1": AFFINE.replace(bits=5)}
MXFP4 = catalog["mxfp4_e2m1"]


def targets() -> dict[str, Target]:
    """The layouts of gguf, by name."""
    note = "the scale is stored in float16"
    found = [
        Target(f"gguf.{name}", _codes(name), q, kind=Kind.CODES, chooses=True, note=note)
        for name, q in {**SIGNED, **SHIFTED}.items()
    ]
    found.append(Target("gguf.MXFP4", _values("MXFP4"), MXFP4, chooses=True))
    return {target.name: target for target in found}


def _codes(name: str) -> Function:
    offset = -SIGNED[name].format.lo if name in ("Q4_0", "Q5_0") else 0  # stored codes begin at 0

    def run(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
        library = import_module("gguf")
        packed = library.quants.quantize(x, getattr(library.GGMLQuantizationType, name))
        blocks = decoded(name, packed.reshape(x.size // BLOCK, -1), x.shape)
        if blocks.least is not None:
            return blocks.codes, QParams(blocks.scale, -blocks.least)
        return blocks.codes - offset, QParams(blocks.scale)

    return run


def _values(name: str) -> Function:
    def run(x: Array, qparams: QParams | None) -> Array:
        library = import_module("gguf")
        kind = getattr(library.GGMLQuantizationType, name)
        found: Array = library.quants.dequantize(library.quants.quantize(x, kind), kind)
        return found

    return run
