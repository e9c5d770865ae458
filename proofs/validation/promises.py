"""Which layers promise bits, and which are taken as one piece: the quantized layers of either frontend."""

from typing import Any

QUANTIZERS = ("weight_quant", "input_quant", "output_quant", "act_quant", "bias_quant")


def atomic(module: Any) -> bool:
    """Whether a module is a layer of samebits, whose quantizers are no parts of the model."""
    if not type(module).__module__.startswith("samebits."):
        return False
    return any(hasattr(module, name) for name in QUANTIZERS) or hasattr(module, "quantizer")


def promises_bits(module: Any) -> bool:
    """Whether a layer of samebits has the same bits in every framework: it contracts codes, or nothing.

    A layer with a quantizer for its weight alone contracts floats, and so does one whose scales vary along a sum.
    """
    from ...core.contraction import contracts_codes
    from ...core.descriptions import Quantizer

    if not atomic(module):
        return False
    weight, given = (
        getattr(getattr(module, name, None), "quantizer", None) for name in ("weight_quant", "input_quant")
    )
    if not hasattr(module, "weight"):
        return True
    if not isinstance(weight, Quantizer) or not isinstance(given, Quantizer):
        return False
    return contracts_codes(given, weight, per_token=module.weight.ndim == 2)
