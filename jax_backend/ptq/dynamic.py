"""Dynamic quantization of flax nnx models: integer weights, inputs of linear layers quantized at each call."""

from typing import Any

from flax import nnx

from ...core.observing import Observer, ObserverKind, default_dynamic_qconfig
from .static import QConfigs, convert, named_modules, prepare


def quantize_dynamic(model: nnx.Module, qconfig: QConfigs | None = None, *, inplace: bool = False) -> nnx.Module:
    """A float model whose ``nnx.Linear`` layers have integer weights and quantize their inputs at each call.

    Weights are int8 of one scale, symmetric. Inputs are 7-bit integers with a scale and a zero point for each call, by
    the rule of ``torch.quantize_per_tensor_dynamic``. Codes are contracted, as `samebits.core.matmul.linear` states: the
    bits of `samebits.torch_frontend.ptq.quantize_dynamic`.

    Args:
        qconfig: of all layers, or by patterns as `prepare` takes them, with a placeholder as activation; None for that.
        inplace: whether the model is changed itself.
    Returns:
        The model.
    Raises:
        TypeError, ValueError: as `prepare`; ValueError for an activation that is no placeholder. The model is then as
            it was.
    """
    given = default_dynamic_qconfig if qconfig is None else qconfig
    for one in given.values() if isinstance(given, dict) else (given,):
        activation: Any = getattr(one, "activation", None)
        if isinstance(activation, Observer) and activation.kind is not ObserverKind.PLACEHOLDER:
            raise ValueError(f"`activation` of a dynamic qconfig must be a 'placeholder', got '{activation.kind}'")
    convs = {name: None for name, part in named_modules(model) if isinstance(part, nnx.Conv)}
    patterns = {"*": given} | convs if not isinstance(given, dict) else given
    return convert(prepare(model, patterns, inplace=inplace), inplace=True)
