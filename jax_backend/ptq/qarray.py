"""Weights as codes: arrays that stand for ``dequantize(codes)`` and know by which quantizer they were made.

A `QArray` is a pytree, so it passes through `jax.jit`, `jax.tree.map` and checkpoints as its parts. Products with it
are those of `samebits.core.configs`: with ``act_quant`` None the values are multiplied, else what meets it is quantized
too, at every call, and where `samebits.core.contraction.contracts_codes` allows it codes are contracted, with the bits
of `samebits.core.linear`. Codes are those of a weight ``(out, in)``, as in torch; flax's kernels, ``(in, out)``, are
`QArray.T` of these.

Whatever keeps codes is exact: parts, transpositions, other shapes, positive powers of two (`rearranging`). Arithmetic
that would round raises, for it is not said in which dtype: that is for ``.dequantize()``, which is explicit.

Layers stacked for `jax.lax.scan` or `jax.vmap` are ``jax.tree.map(lambda *parts: jnp.stack(parts), *weights)``: the
description is that of each layer, so what uses it must be inside.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ...core import checks
from ...core.arithmetic import ZeroPointDomain
from ...core.bytes_of_codes import check_stored, code_width, has_signs, is_packed
from ...core.configs import check_parts
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import qparams_shape
from ..arguments import check_qparams
from ..arrays import as_array, is_concrete
from ..quantizer import choose_qparams, dequantize, quantize
from .packing import pack, unpack
from .products import dynamic_linear, float_linear
from .rearranging import Coded, full_index, permuted, reshaped, taken, times

Array = jax.Array


def _refused(operation: str) -> Callable[..., Any]:
    """A method for an operator that would have to round."""

    def method(self: Any, other: Any = None) -> NoReturn:
        raise TypeError(f"a QArray has no {operation}, which would not be exact on codes; use .dequantize()")

    return method


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
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
            raise ValueError(f"a QArray must have two axes for `T`, got shape {self.shape}; use transpose")
        return replace(self, transposed=not self.transposed)

    def transpose(self, *axes: Any) -> "QArray":
        """The axes in another order, that of ``axes``, or turned around: codes moved, or as `T` for two axes.

        Raises:
            ValueError: no permutation, or scales that no granularity describes then (per token of more than two axes).
        """
        order = _ints(axes) or tuple(reversed(range(self.ndim)))
        if self.ndim == 2 and sorted(axis % 2 for axis in order) == [0, 1]:
            return self.T if order[0] % 2 else self
        return self._made_of(permuted(self._coded(), order))

    def reshape(self, *shape: Any) -> "QArray":
        """The same codes in another shape, in which the same elements share a scale.

        Raises:
            ValueError: they would not (`rearranging.reshaped`). TypeError: another number of elements, as in JAX.
        """
        if self.transposed:
            raise ValueError("a transposed QArray has codes in another order; reshape its .dequantize()")
        return self._made_of(reshaped(self._coded(), _ints(shape)))

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
        """A QArray for slices and an array of indices, where elements that share a scale stay together; else values.

        Values for integers, which take axes away, for several arrays, and where a slice cuts through a group. An array
        of integers of more axes looks up rows, as in a table of vectors.
        """
        if index is Ellipsis or (isinstance(index, tuple) and len(index) == 1 and index[0] is Ellipsis):
            return self
        parts = full_index(index, self.ndim)
        if parts is not None and self.transposed:
            parts = parts[::-1] if all(isinstance(part, slice) or np.ndim(part) == 1 for part in parts) else None
        found = None if parts is None else taken(self._coded(), parts)
        return self.dequantize()[index] if found is None else self._made_of(found)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.dequantize())

    def __mul__(self, factor: Any) -> "QArray":
        """Times a positive power of two, a number of Python; see `rearranging.times`, whose errors it raises."""
        return self._made_of(times(self._coded(), factor, self.dtype))

    def __truediv__(self, divisor: Any) -> "QArray":
        """By a positive power of two, as `__mul__`."""
        plain = isinstance(divisor, int | float) and not isinstance(divisor, bool) and divisor > 0
        return self.__mul__(1 / divisor if plain else divisor)

    __rmul__ = __mul__
    __add__, __radd__ = _refused("sum (+)"), _refused("sum (+)")
    __sub__, __rsub__ = _refused("difference (-)"), _refused("difference (-)")
    __rtruediv__, __pow__, __rpow__ = _refused("quotient (/)"), _refused("power (**)"), _refused("power (**)")
    __floordiv__, __rfloordiv__ = _refused("quotient (//)"), _refused("quotient (//)")
    __mod__, __rmod__ = _refused("remainder (%)"), _refused("remainder (%)")
    __neg__, __abs__ = _refused("negation (-)"), _refused("magnitude (abs)")
    __eq__, __ne__ = _refused("comparison (==)"), _refused("comparison (!=)")
    __lt__, __le__ = _refused("comparison (<)"), _refused("comparison (<=)")
    __gt__, __ge__ = _refused("comparison (>)"), _refused("comparison (>=)")
    __bool__ = _refused("truth value (bool)")
    __hash__ = None  # type: ignore[assignment]  # as of other arrays

    def _coded(self) -> Coded:
        return Coded(self.quantizer, codes_of(self), self.scale, self.zero_point)

    def _made_of(self, w: Coded) -> "QArray":
        """Of the same kind, from other codes."""
        q = w.q
        codes = packed_codes(q, w.codes) if is_packed(q, self.code_layout) else w.codes
        parts: dict[str, Any] = {"codes": codes, "scale": w.scale, "zero_point": w.zero_point}
        return replace(self, quantizer=q, length=w.codes.shape[-1], **parts)

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
        codes = packed_codes(q, codes)
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


def packed_codes(q: Quantizer, codes: Array) -> Array:
    """Codes of ``q`` packed along the last axis."""
    return pack(codes if has_signs(q) else codes.astype(np.uint8), code_width(q))


def shardings(w: QArray, sharding: NamedSharding) -> Any:
    """How the parts of a weight lie where its values lie by ``sharding``: a tree for whatever takes one.

    ``jax.device_put(w, shardings(w, s))``, ``jax.lax.with_sharding_constraint(w, shardings(w, s))``, ``in_shardings``.
    Scales lie as the codes do along axes of which each device has whole blocks, else on every device.

    Raises:
        TypeError: no `NamedSharding`. ValueError: more entries than axes, or an axis that it does not divide.
    """
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f"`sharding` must be a NamedSharding, got {sharding!r}")
    spec = (*sharding.spec, *(None,) * (w.ndim - len(sharding.spec)))
    if len(spec) != w.ndim:
        raise ValueError(f"`sharding` must have an entry for each of {w.ndim} axes at most, got {sharding.spec}")
    spec = spec[::-1] if w.transposed else spec
    shape = w.shape[::-1] if w.transposed else w.shape

    def lying(part: Any, counts: Sequence[int], strict: bool) -> Any:
        if part is None:
            return None
        entries = []
        for axis, (count, names) in enumerate(zip(counts, spec, strict=False)):
            every = () if names is None else names if isinstance(names, tuple) else (names,)
            pieces = int(np.prod([sharding.mesh.shape[name] for name in every]))
            if strict and count % pieces:
                raise ValueError(
                    f"`sharding` must divide axis {axis} of codes, of {count} elements, got {sharding.spec} on "
                    f"{dict(sharding.mesh.shape)}"
                )
            entries.append(names if count > 1 and count % pieces == 0 else None)
        return NamedSharding(sharding.mesh, PartitionSpec(*entries))  # type: ignore[no-untyped-call]

    of_scales = qparams_shape(w.quantizer.granularity, shape)
    codes = lying(w.codes, w.codes.shape, True)
    return replace(
        w, codes=codes, scale=lying(w.scale, of_scales, False), zero_point=lying(w.zero_point, of_scales, False)
    )


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    """Integers given one by one or as a sequence."""
    one = len(values) == 1 and isinstance(values[0], Sequence)
    return tuple(values[0] if one else values)


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
