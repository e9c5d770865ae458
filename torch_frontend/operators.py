"""Operators that stand in traced programs as they are, because what they do is decided when the program runs.

``samebits::first_run``: in compiled code, see `recomputation`. ``samebits::inference_only``: in exported programs,
whose autograd would differentiate the operations of the forward pass: a backward pass raises instead. Decompositions
(``ExportedProgram.run_decompositions``) dissolve it. ``samebits::same_parameter``: in traced sums of tensors with
codes, which need one scale. ``samebits::int8_rows``: torch's product of bfloat16 rows with int8 codes, of which the
compiler has a version that takes no constant scales.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("samebits", "DEF")  # type: ignore[no-untyped-call]  # its operators exist for as long as this object does
LIBRARY.define("first_run(Tensor mark) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("inference_only(Tensor value, Tensor[] inputs) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("int8_rows(Tensor x, Tensor codes) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("same_parameter(Tensor a, Tensor b) -> Tensor")  # type: ignore[no-untyped-call]


def _first_run(mark: Tensor) -> Tensor:
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a quantizer whose state changes with every tensor of training is called inside a backward pass, in "
            "compiled code, which cannot tell what it repeats: compile the checkpoint together with what is in it, put "
            "module.eval() before both forward passes, or leave the quantizer uncompiled"
        )
    return mark.clone()


def _inference_only(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in (value, *inputs)):
        result: Tensor = _InferenceOnly.apply(value, *inputs)  # type: ignore[no-untyped-call]
        return result
    return value


class _InferenceOnly(torch.autograd.Function):
    """``value``, but no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "a program of torch.export has none of the gradients that quantizers of samebits define: train the module "
            "that was exported, by itself or under torch.compile, and export it again"
        )


def _int8_rows(x: Tensor, codes: Tensor) -> Tensor:
    ones = torch.ones(codes.shape[0], dtype=x.dtype, device=x.device)
    return torch.ops.aten._weight_int8pack_mm(x.contiguous(), codes, ones)  # type: ignore[no-any-return]


def _shape_of_rows(x: Tensor, codes: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


def _same_parameter(a: Tensor, b: Tensor) -> Tensor:
    if not bool((a == b).all()):
        raise RuntimeError(
            "tensors with codes of two scales or zero points meet in compiled code, which took them for the same: "
            "quantize both by the same parameters (nn.QuantEltwiseAdd, nn.QuantCat), or add what dequantize() gives"
        )
    return a.expand(torch.broadcast_shapes(a.shape, b.shape)).clone()  # type: ignore[no-untyped-call]


def _shape_of_both(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape))  # type: ignore[no-untyped-call]


LIBRARY.impl("first_run", _first_run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("first_run", torch.empty_like, "Meta")  # type: ignore[no-untyped-call]
LIBRARY.impl("inference_only", _inference_only, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("same_parameter", _same_parameter, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("same_parameter", _shape_of_both, "Meta")  # type: ignore[no-untyped-call]
LIBRARY.impl("int8_rows", _int8_rows, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("int8_rows", _shape_of_rows, "Meta")  # type: ignore[no-untyped-call]
