"""Dynamic quantization of flax nnx models: integer weights, inputs of linear layers quantized at each call."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ...core.observing import ObserverKind, QConfig, default_dynamic_qconfig
from ..variables import Given
from .static import convert, named_modules, prepare, swapped

USUAL = (nnx.Linear,)
Spec = Iterable[type[nnx.Module] | str] | Mapping[type[nnx.Module] | str, QConfig | None] | None


class HalfLinear(nnx.Linear):
    """A linear layer whose kernel is float16, and computed with in the dtype of its input."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]  # flax takes another dtype for the result
        """``(..., in)`` to ``(..., out)``, dtype of ``x``."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)


def quantize_dynamic(
    model: nnx.Module, qconfig_spec: Spec = None, dtype: DTypeLike = np.int8, *, inplace: bool = False
) -> nnx.Module:
    """A float model whose ``nnx.Linear`` layers have integer weights and quantize their inputs at each call.

    Weights are int8 of one scale, symmetric. Inputs are 7-bit integers with a scale and a zero point for each call, by
    the rule of ``torch.quantize_per_tensor_dynamic``. Codes are contracted, as `samebits.core.matmul.linear` states:
    the bits of `samebits.torch_frontend.ptq.quantize_dynamic`.

    Args:
        qconfig_spec: ``nnx.Linear``, or names of layers, that are quantized; or these with a `QConfig` of their own,
            whose activation is a placeholder, and None for a layer that stays. None for `USUAL`.
        dtype: int8, or float16: weights alone are rounded, those beyond its range to its largest numbers.
        inplace: whether the model is changed itself.
    Returns:
        The model.
    Raises:
        TypeError: a spec of other things. ValueError: another dtype, a kind that nothing quantizes, an activation that
            is no placeholder, or no layer to quantize. The model is then as it was.
    """
    kind = np.dtype(dtype)
    if kind not in (np.int8, np.float16):
        raise ValueError(f"`dtype` must be int8 or float16, got {kind}")
    given = _spec(USUAL if qconfig_spec is None else qconfig_spec)
    patterns: dict[str, QConfig | None] = {}
    for name, part in named_modules(model):
        if type(part) in USUAL and (name in given or type(part) in given):
            patterns[name] = given[name] if name in given else given[type(part)]
    absent = [key for key in given if isinstance(key, str) and key not in patterns]
    if absent or not any(patterns.values()):
        names = ", ".join(name for name, part in named_modules(model) if type(part) in USUAL)
        raise ValueError(
            f"`model` has no layer to quantize by {absent or 'this spec'}; linear layers are {names or 'none'}"
        )
    if kind == np.int8:
        return convert(prepare(model, patterns, inplace=inplace), inplace=True)
    model = model if inplace else nnx.clone(model)
    most, halves = float(np.finfo(np.float16).max), dict[int, Any]()
    for name, part in named_modules(model):
        if patterns.get(name) is not None:
            kernel = jnp.clip(part.kernel[...], -most, most).astype(np.float16)
            halves[id(part)] = HalfLinear(part.in_features, part.out_features, use_bias=False, rngs=nnx.Rngs(0))
            halves[id(part)].kernel, halves[id(part)].bias = nnx.data(Given(kernel)), nnx.data(part.bias)
    return swapped(model, halves)


def _spec(spec: Any) -> dict[type[nnx.Module] | str, QConfig | None]:
    pairs = spec.items() if isinstance(spec, Mapping) else ((one, default_dynamic_qconfig) for one in spec)
    found = dict(pairs)
    for key, qconfig in found.items():
        if not isinstance(key, str | type):
            raise TypeError(f"`qconfig_spec` must hold kinds of layers and names, got {key!r}")
        if isinstance(key, type) and key not in USUAL:
            raise ValueError(f"`qconfig_spec`: nothing quantizes {key.__name__}; kinds are Linear")
        activation: Any = None if qconfig is None else qconfig.activation
        if activation is not None and activation.kind is not ObserverKind.PLACEHOLDER:
            raise ValueError(f"`activation` of a dynamic qconfig must be a 'placeholder', got '{activation.kind}'")
    return found
