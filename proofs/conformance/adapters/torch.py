"""torch's own quantizers: fake quantization, quantized tensors, decomposed operators, and casts to float8."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams, Quantizer
from ....core.formats import IntegerFormat
from ....core.granularity import PerTensor
from ...modes.arrays import to_numpy, to_torch
from ..targets import Kind, Target
from .ml_dtypes import E8M0

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
CASTS = {
    "float8_e4m3fn": "float8_e4m3fn_per_tensor",
    "float8_e5m2": "float8_e5m2_per_tensor",
    "float8_e4m3fnuz": "float8_e4m3fnuz_per_tensor",
    "float8_e5m2fnuz": "float8_e5m2fnuz_per_tensor",
}


def targets() -> dict[str, Target]:
    """The targets of torch, by name."""
    fake = "torch.fake_quantize_per_tensor_affine"
    found = [
        Target(fake, _fake(INT8), INT8, gradient=_fake_gradient(INT8)),
        Target(f"{fake}.uint8", _fake(UINT8), UINT8, gradient=_fake_gradient(UINT8)),
        Target(f"{fake}.bfloat16", _fake(INT8), INT8, "bfloat16", gradient=_fake_gradient(INT8)),
        Target("torch.fake_quantize_per_channel_affine", _fake_per_channel, catalog["int8_per_channel"]),
        Target("torch.quantize_per_tensor", _quantize(UINT8), UINT8, kind=Kind.CODES),
        Target("torch.quantize_per_channel", _quantize_per_channel, _per_channel(), kind=Kind.CODES),
        Target("torch.quantized_decomposed", _decomposed(UINT8), UINT8, kind=Kind.CODES),
        Target("torch.quantized_decomposed.bfloat16", _decomposed(INT8), INT8, "bfloat16", Kind.CODES),
        Target("torch.quantize_per_tensor_dynamic", _dynamic, UINT8, kind=Kind.CODES, chooses=True),
    ]
    learnable = "torch.fake_quantize_learnable_per_tensor_affine"
    found.append(Target(learnable, _learnable, UINT8, note="with the scale and zero point as tensors that are learned"))
    casts = {cast: catalog[name] for cast, name in CASTS.items()} | {"float8_e8m0fnu": E8M0}
    found += [
        Target(f"torch.{cast}", _cast(cast), q, scales=(1.0,), note="a cast: the scale is 1")
        for cast, q in casts.items()
    ]
    return {target.name: target for target in found}


def _per_channel() -> Quantizer:
    return catalog["uint8_affine_per_channel"]


def _zero(qparams: QParams) -> int:
    return 0 if qparams.zero_point is None else int(qparams.zero_point)


def _limits(q: Quantizer) -> tuple[int, int]:
    return int(q.format.lo), int(q.format.hi)


def _fake(q: Quantizer) -> Any:
    import torch

    def run(x: Array, qparams: QParams) -> Array:
        how = float(qparams.scale), _zero(qparams), *_limits(q)
        return to_numpy(torch.fake_quantize_per_tensor_affine(to_torch(x), *how))

    return run


def _fake_gradient(q: Quantizer) -> Any:
    import torch

    def run(x: Array, qparams: QParams, g: Array) -> Array:
        leaf = to_torch(x).requires_grad_()
        how = float(qparams.scale), _zero(qparams), *_limits(q)
        torch.fake_quantize_per_tensor_affine(leaf, *how).backward(to_torch(g))  # type: ignore[no-untyped-call]
        return to_numpy(leaf.grad)

    return run


def _learnable(x: Array, qparams: QParams) -> Array:
    import torch

    parts = torch.tensor([float(qparams.scale)]), torch.tensor([float(_zero(qparams))])
    return to_numpy(torch._fake_quantize_learnable_per_tensor_affine(to_torch(x), *parts, 0, 255, 1.0))


def _fake_per_channel(x: Array, qparams: QParams) -> Array:
    import torch

    scale = torch.from_numpy(qparams.scale.reshape(-1))
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return to_numpy(torch.fake_quantize_per_channel_affine(to_torch(x), scale, zero, 0, -128, 127))


def _quantize(q: Quantizer) -> Any:
    import torch

    kind = torch.qint8 if q.format.lo else torch.quint8

    def run(x: Array, qparams: QParams) -> Array:
        with _quiet():
            return to_numpy(
                torch.quantize_per_tensor(to_torch(x), float(qparams.scale), _zero(qparams), kind).int_repr()
            )

    return run


def _quantize_per_channel(x: Array, qparams: QParams) -> Array:
    import torch

    with _quiet():
        parts = (torch.from_numpy(np.asarray(v).reshape(-1).copy()) for v in (qparams.scale, qparams.zero_point))
        scale, zero = parts
        return to_numpy(torch.quantize_per_channel(to_torch(x), scale, zero.long(), 0, torch.quint8).int_repr())


def _dynamic(x: Array, qparams: QParams | None) -> tuple[Array, QParams]:
    import torch

    with _quiet():
        found = torch.quantize_per_tensor_dynamic(to_torch(x), torch.quint8, False)
        scale, zero = found.q_scale(), found.q_zero_point()
        return to_numpy(found.int_repr()), QParams(np.float32(scale), np.int32(zero))


def _decomposed(q: Quantizer) -> Any:
    import torch
    import torch.ao.quantization.fx._decomposed

    operator = torch.ops.quantized_decomposed.quantize_per_tensor
    assert isinstance(q.format, IntegerFormat)
    assert isinstance(q.granularity, PerTensor)
    kind = getattr(torch, q.format.storage)
    return lambda x, qparams: operator(to_torch(x), float(qparams.scale), _zero(qparams), *_limits(q), kind)


def _cast(name: str) -> Any:
    import torch

    kind = getattr(torch, name)
    return lambda x, qparams: to_numpy(to_torch(x).to(kind).float())


def _quiet() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")
