"""ml_dtypes: casts of NumPy arrays to small floats."""

from typing import Any

import ml_dtypes
import numpy as np

from ....core.catalog import catalog
from ....core.formats import FloatFormat, Specials
from ..targets import Target

CASTS = {
    "float8_e4m3fn": "float8_e4m3fn_per_tensor",
    "float8_e5m2": "float8_e5m2_per_tensor",
    "float8_e4m3fnuz": "float8_e4m3fnuz_per_tensor",
    "float6_e3m2fn": "float6_e3m2_per_tensor",
    "float4_e2m1fn": "float4_e2m1_per_tensor",
}
# Powers of two without a sign, nearest to E8M0 of what has one; its 2**-127 lies below the smallest number here
E8M0 = catalog["float8_e5m2_per_tensor"].replace(format=FloatFormat(8, 0, bias=127, specials=Specials.NAN_ONLY))


def targets() -> dict[str, Target]:
    """The casts of ml_dtypes, by name."""
    note = "a cast: the scale is 1"
    found = [Target(f"ml_dtypes.{c}", _cast(c), catalog[n], scales=(1.0,), note=note) for c, n in CASTS.items()]
    found.append(Target("ml_dtypes.float8_e8m0fnu", _cast("float8_e8m0fnu"), E8M0, scales=(1.0,), note=note))
    return {target.name: target for target in found}


def _cast(name: str) -> Any:
    dtype = np.dtype(getattr(ml_dtypes, name))
    return lambda x, qparams: x.astype(dtype).astype(np.float32)
