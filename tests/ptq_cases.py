"""What the tests of post-training quantization share: configs by name, weights and inputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.core import configs as of

CONFIGS: dict[str, of.Config] = {
    "int8wo": of.int8_weight_only(),
    "int8wo by group": of.int8_weight_only(16),
    "int8dq": of.int8_dynamic_activation_int8_weight(),
    "int8dq torchao": of.int8_dynamic_activation_int8_weight("torchao"),
    "int4wo float": of.int4_weight_only(16),
    "int4wo integer": of.int4_weight_only(16, "integer"),
    "int4wo none, plain": of.int4_weight_only(16, "none", "plain"),
    "8da4w": of.int8_dynamic_activation_int4_weight(16),
    **{f"int{bits}wo": of.intx_weight_only(bits) for bits in range(1, 9)},
    "int3wo affine by group": of.intx_weight_only(3, 16, "integer"),
    "float8wo": of.float8_weight_only(),
    "float8dq": of.float8_dynamic_activation_float8_weight(),
    **{name: of.mx(name) for name in of.MX},
    "mx dynamic": of.mx("mxfp4_e2m1", "mxfp8_e4m3"),
    "nvfp4": of.nvfp4(),
    "nvfp4 dynamic": of.nvfp4(dynamic=True),
    "nf4 by group": of.DynamicActivation("int8_per_tensor", "nf4_per_group64", "packed"),
    "binary": of.DynamicActivation("uint8_affine_per_tensor", "binary_per_channel", "packed"),
    "affine weight": of.DynamicActivation("int8_affine_per_token", "uint8_affine_per_channel"),
    "wide codes": of.DynamicActivation("int16_per_tensor", "int4_per_channel", "packed"),
}
# More of the same widths and formats, where a program is compiled for each
MORE = [f"int{bits}wo" for bits in (2, 4, 5, 6, 7, 8)]
MORE += ["mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxint8", "nvfp4 dynamic"]
# Those whose codes are contracted, exactly: their outputs have the same bits everywhere
EXACT = ["int8dq", "int8dq torchao", "binary", "affine weight", "wide codes"]


def weight(out: int = 24, inputs: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers, with a row of zeros, one of positive numbers, and ties."""
    w = np.random.default_rng(seed).standard_normal((out, inputs)).astype(np.float32)
    w[0], w[1] = 0, np.abs(w[1])
    w[2] = np.linspace(-127, 127, inputs).round() / 2
    return w


def rows(n: int = 7, inputs: int = 64, seed: int = 1) -> NDArray[Any]:
    """Inputs of a layer, one row of them zeros."""
    x = np.random.default_rng(seed).standard_normal((n, inputs)).astype(np.float32)
    x[0] = 0
    return x
