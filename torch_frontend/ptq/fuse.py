"""Batch normalization folded into the layer before it, by the names of modules, as ``torch.ao.quantization`` has it."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..nn.batch_norm import FoldedBatchNorm
from ..nn.normalisation import merge_batch_norm

BEFORE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Names = Sequence[str] | Sequence[Sequence[str]]


def fuse_modules(model: nn.Module, modules_to_fuse: Names, inplace: bool = False) -> nn.Module:
    """Folds batch normalization behind layers into them, in a model in evaluation.

    By `samebits.torch_frontend.nn.merge_batch_norm`, in float64. The folded layer keeps its place and name, an
    ``nn.Identity`` stands where the normalization was. A ReLU stays where it is: nothing lies between a layer and it
    that is quantized.

    Args:
        modules_to_fuse: names of a linear layer or convolution (of any dimension, transposed too), a batch
            normalization and perhaps an ``nn.ReLU``; or of the first or second and a ReLU, which changes nothing. Or a
            list of such lists.
        inplace: whether the model is changed itself.
    Returns:
        The model.
    Raises:
        ValueError: a model in training (`fuse_modules_qat` is for that), a name that is none, or another sequence of
            kinds. The model is then as it was.
    """
    return _fused(model, modules_to_fuse, inplace, trains=False)


def fuse_modules_qat(model: nn.Module, modules_to_fuse: Names, inplace: bool = False) -> nn.Module:
    """As `fuse_modules`, in a model in training: the layer and the normalization become a `FoldedBatchNorm`.

    What is trained is the layer as it will be folded; `convert` folds it.
    """
    return _fused(model, modules_to_fuse, inplace, trains=True)


def _fused(model: nn.Module, names: Names, inplace: bool, *, trains: bool) -> nn.Module:
    lists: Any = [names] if names and isinstance(names[0], str) else names
    checked = copy.deepcopy(model)  # fails as the model would
    for target in (checked, model) if inplace else (checked,):
        for one in lists:
            _fuse(target, list(one), trains)
    return model if inplace else checked


def _fuse(model: nn.Module, names: list[str], trains: bool) -> None:
    found = [_part(model, name) for name in names]
    kinds = ["layer" if type(m) in BEFORE else "norm" if type(m) in NORMS else type(m).__name__ for m in found]
    if kinds not in (["layer", "norm"], ["layer", "norm", "ReLU"], ["layer", "ReLU"], ["norm", "ReLU"]):
        shown = ", ".join(f"'{name}' ({type(m).__name__})" for name, m in zip(names, found, strict=True))
        raise ValueError(
            "`modules_to_fuse` must be names of a linear layer or convolution, a batch normalization and perhaps a "
            f"ReLU, got {shown}"
        )
    for name, module in zip(names, found, strict=True):
        if module.training is not trains:
            wanted = (
                "training to be fused by fuse_modules_qat" if trains else "evaluation to be fused: call model.eval()"
            )
            raise ValueError(f"'{name}' must be in {wanted}{'' if trains else ', or fuse_modules_qat to train'}")
    if kinds[:2] != ["layer", "norm"]:
        return
    layer, norm = found[:2]
    if trains:
        try:
            _place(model, names[0], FoldedBatchNorm(layer, norm))
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{names[0]}', '{names[1]}': {error.args[0]}") from error
    else:
        merge_batch_norm(layer, norm)  # type: ignore[arg-type]
    _place(model, names[1], nn.Identity().train(trains))


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"`modules_to_fuse` must be names of modules of `model`, got '{name}'") from None


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
