"""Weights as codes: arrays that stand for ``dequantize(codes)`` and know by which quantizer they were made.

A `QArray` is a pytree, so it passes through `jax.jit`, `jax.tree.map` and checkpoints as its parts. Products with it
are those of `samebits.core.configs`: with ``act_quant`` None the values are multiplied, else what meets it is quantized
too, at every call, and where `samebits.core.contraction.contracts_codes` allows it codes are contracted, with the bits
of `samebits.core.linear`. Codes are those of a weight ``(out, in)``, as in torch; flax's kernels, ``(in, out)``, are
`QArray.T` of these.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ...core import checks
from ...core.arithmetic import ZeroPointDomain
from ...core.bytes_of_codes import check_stored, code_width, has_signs, is_packed
from ...core.configs import check_parts
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis, PerGroup, PerTensor, PerToken
from ..arguments import check_qparams
from ..arrays import as_array, is_concrete
from ..quantizer import choose_qparams, dequantize, quantize
from .packing import pack, unpack
from .products import dynamic_linear, float_linear

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QArray:
    """A weight of codes; see the module. `quant_array` makes one of floats, `array_of_codes` of codes.

    Attributes:
        codes: in the format's `storage` dtype, ``(out, ...)``; or packed along the last axis, uint8.
        scale, zero_point: as `samebits.core.descriptions.QParams`; an integer zero point has the dtype of codes.
        quantizer: of the weight. ``act_quant``: of what it is multiplied with, or None.
        code_layout: ``"plain"`` or ``"packed"``. ``length``: of the last axis, unpacked.
        transposed: whether the array is the transposition of its codes.
        dtype: that the values have.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    quantizer: Quantizer = field(metadata={"static": True})
    act_quant: Quantizer | None = field(metadata={"static": True})
    code_layout: str = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})
    __array_ufunc__ = None  # NumPy arrays leave products to this class

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        shape = (*self.codes.shape[:-1], self.length)
        return shape[::-1] if self.transposed else shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.codes.ndim)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(int(part.size) * part.dtype.itemsize for part in jax.tree.leaves(self))

    @property
    def qparams(self) -> QParams:
        """Scale and zero point."""
        return QParams(self.scale, self.zero_point)

    @property
    def T(self) -> "QArray":
        """The transposition, of the same codes. ValueError unless there are two axes."""
        if self.ndim != 2:
            raise ValueError(f"a QArray must have two axes to be transposed, got shape {self.shape}")
        return replace(self, transposed=not self.transposed)

    def astype(self, dtype: DTypeLike) -> "QArray":
        """The same codes, for values of another dtype. TypeError if that is no floating-point one."""
        checks.check_float("dtype", jnp.dtype(dtype).name)
        return replace(self, dtype=jnp.dtype(dtype))

    def dequantize(self) -> Array:
        """The values: `samebits.core.dequantize` of the codes, in the dtype of the array."""
        fits = checks.scale_dtype(jnp.dtype(self.dtype).name) == self.scale.dtype.name
        values = dequantize(self.quantizer, codes_of(self), self.qparams, self.dtype if fits else None)
        values = values.astype(self.dtype)
        return values.T if self.transposed else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.dequantize(), dtype)

    def __matmul__(self, x: Any) -> Array:
        """``self @ x``; for a weight ``(out, in)`` that is ``linear(x.T, self).T``."""
        x = as_array("x", x)
        if self.ndim != 2 or not 1 <= x.ndim <= 2:
            raise ValueError(f"`x` must have one or two axes, and a QArray two, got {x.shape} and {self.shape}")
        return self.T.__rmatmul__(x.T).T

    def __rmatmul__(self, x: Any) -> Array:
        """``x @ self``; ``x``: ``(..., rows)``."""
        x = as_array("x", x)
        if self.transposed:
            return linear(x, self.T)
        return float_linear(x, self.dequantize().T, None)

    def __getitem__(self, index: Any) -> Any:
        """All of it for ``...``; rows of codes for a slice or an array of indices, else values.

        And values also where rows have no scales of their own.
        """
        if index is Ellipsis or (isinstance(index, tuple) and index == (Ellipsis,)):
            return self
        granularity = self.quantizer.granularity
        alone = isinstance(granularity, PerTensor | PerToken) or granularity == PerAxis(0)
        alone |= isinstance(granularity, PerGroup) and granularity.axis % self.ndim > 0
        rows = isinstance(index, slice) or (hasattr(index, "dtype") and np.ndim(index) == 1)
        if self.transposed or self.ndim < 2 or not alone or not rows:
            return self.dequantize()[index]
        return jax.tree.map(lambda part: part[index] if part.ndim else part, self)

    def __repr__(self) -> str:
        act = "" if self.act_quant is None else f", activations {self.act_quant.format} {self.act_quant.granularity}"
        q = f"{self.quantizer.format} {self.quantizer.granularity}, {self.code_layout}{act}"
        shape = self.shape if hasattr(self.codes, "shape") else "?"
        return f"QArray({shape}, {jnp.dtype(self.dtype).name}, {q})"


def quant_array(
    q: Quantizer, w: Array, qparams: QParams | None = None, act_quant: Quantizer | None = None, layout: str = "plain"
) -> QArray:
    """The codes of a float weight.

    Args:
        w: ``(out, ...)``. ``qparams``: None to choose them from ``w``.
        act_quant: of what it is multiplied with, or None. ``layout``: see `samebits.core.configs`.
    Raises:
        TypeError, ValueError: as `quantize` and `choose_qparams`, and as `array_of_codes`.
    """
    w = as_array("w", w)
    qparams = choose_qparams(q, w) if qparams is None else qparams
    return array_of_codes(q, quantize(q, w, qparams), qparams, w.dtype, act_quant, layout)


def array_of_codes(
    q: Quantizer,
    codes: Array,
    qparams: QParams,
    dtype: DTypeLike,
    act_quant: Quantizer | None = None,
    layout: str = "plain",
) -> QArray:
    """The weight that has these codes.

    Args:
        codes: ``(out, ...)``, in the format's `storage` dtype, unpacked. ``dtype``: that the weight stands for.
        act_quant, layout: as `quant_array`.
    Raises:
        TypeError: codes of another dtype, no float ``dtype``, or what is no quantizer. ValueError: codes that are none
            of the format, where they are at hand, parameters of another shape or that are none, a layout or quantizer
            that does not fit (`samebits.core.configs`), no axis.
    """
    check_parts(q, act_quant, layout)
    codes, name = as_array("codes", codes), jnp.dtype(dtype).name
    checks.check_codes(q, codes.dtype.name)
    checks.check_float("dtype", name)
    if not codes.ndim:
        raise ValueError("`codes` must have an axis, got shape ()")
    if is_concrete(codes) and codes.size:
        check_stored(q, int(codes.min()), int(codes.max()))
    scale, zero = check_qparams(q, codes.shape, name, qparams)
    length = codes.shape[-1]
    if is_packed(q, layout):
        codes = pack(codes if has_signs(q) else codes.astype(np.uint8), code_width(q))
    if zero is not None:  # integers as codes: a quarter of the bytes
        whole = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        zero = zero.astype(q.format.storage if whole else scale.dtype)
    return QArray(codes, scale, zero, q, act_quant, layout, length, jnp.dtype(dtype))


def codes_of(w: QArray) -> Array:
    """The codes in the format's `storage` dtype, unpacked, ``(out, ...)``."""
    if not is_packed(w.quantizer, w.code_layout):
        return w.codes
    return unpacked_codes(w.quantizer, w.codes, w.length)


def unpacked_codes(q: Quantizer, packed: Array, length: int) -> Array:
    """Packed codes of ``q``, in the format's `storage` dtype."""
    return unpack(packed, code_width(q), length, has_signs(q)).astype(q.format.storage)


def linear(x: Array, w: QArray, bias: Array | None = None) -> Array:
    """``x @ w.T + bias``; see the module.

    Args:
        x: ``(..., in)``, dtype of ``w``, ``(out, in)``; ``bias``: ``(out,)``.
    Returns:
        ``(..., out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `samebits.jax_backend.linear`.
    """
    x = as_array("x", x)
    if w.act_quant is None or w.transposed:
        return float_linear(x, w.dequantize(), bias)
    return dynamic_linear(w.act_quant, x, w.quantizer, codes_of(w), w.qparams, w.dtype, bias)
