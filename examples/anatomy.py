"""The anatomy of a quantizer: from a component by hand to an interface of one's own, by declarations.

    python examples/anatomy.py

The 36 cells of the tutorial of that name, which is Brevitas', in the names of samebits. What that prints is asserted
here, to the four digits that it shows: torch draws the same random numbers from the same seed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from samebits.core import quant
from samebits.core.inject import DependencyError, ExtendedInjector, describe, this, value
from samebits.torch_frontend import config
from samebits.torch_frontend import quant as quant_of_components
from samebits.torch_frontend.components import BinaryQuant, ClampedBinaryQuant, ParameterScaling
from samebits.torch_frontend.nn import (
    ActQuantProxyFromInjector,
    QuantConv2d,
    QuantIdentity,
    WeightQuantProxyFromInjector,
)


def check(what: str, holds: bool) -> None:
    """Prints a statement that is true, and stops at one that is not."""
    if not holds:
        raise AssertionError(what)
    print("as it says:", what)


def check_values(what: str, found: Tensor, scale: float | list[float], signs: str) -> None:
    """The values of a binary tensor: scales, and signs in row-major order (rows apart for the eye)."""
    signed = torch.tensor([1.0 if sign == "+" else -1.0 for sign in signs if sign in "+-"]).reshape(found.shape)
    scales = torch.tensor(scale).reshape(-1, *[1] * (found.ndim - 1)) if isinstance(scale, list) else scale
    check(what, bool(((found.detach() - signed * scales).abs() < 5e-5).all()))


# --- 1, 2: a quantizer is a declaration with a tensor_quant -----------------------------------------------------------


def ready_quantizers() -> None:
    """Cells 1 and 2."""
    check("a ready quantizer is an injector", issubclass(quant.Int8ActPerTensorFloat, ExtendedInjector))
    print(quant_of_components.Int8ActPerTensorFloat.tensor_quant)
    describe(quant.Int8WeightPerTensorFloat, "number_format")


# --- 3 to 9: by hand, by declaration, by inheritance, by composition --------------------------------------------------


class MyBinaryQuantizer(ExtendedInjector):
    """Cell 7."""

    tensor_quant: Any = BinaryQuant
    scaling_impl = ParameterScaling
    scaling_init: Any = 0.1


class MyChildBinaryQuantizer(MyBinaryQuantizer):
    """Cell 8."""

    scaling_init = 1.0


class MyBinaryImpl(ExtendedInjector):
    """Cell 9."""

    tensor_quant: Any = BinaryQuant


class MyScalingImpl(ExtendedInjector):
    """Cell 9."""

    scaling_impl = ParameterScaling
    scaling_init = 0.1


class MyComposedBinaryQuantizer(MyBinaryImpl, MyScalingImpl):
    """Cell 9."""


def binary_quantization() -> None:
    """Cells 3 to 9."""
    torch.manual_seed(0)
    by_hand = BinaryQuant(scaling_impl=ParameterScaling(scaling_init=0.1))
    y, scale, zero_point, bit_width = by_hand(torch.randn(4, 4))
    check_values("by hand: 0.1 with a sign", y, 0.1, "---- ++-- +-++ +++-")
    check(
        "scale, zero point, width",
        tuple(round(float(t.detach()), 4) for t in (scale, zero_point, bit_width)) == (0.1, 0.0, 1.0),
    )
    check("the scale is learned", scale.requires_grad)
    for name, declared, size, signs in (
        ("declared", MyBinaryQuantizer, 0.1, "--++ +--+ +--+ +++-"),
        ("inherited", MyChildBinaryQuantizer, 1.0, "-+-+ ++++ -+-+ ++--"),
        ("composed", MyComposedBinaryQuantizer, 0.1, "-+++ --+- -+++ --+-"),
    ):
        check_values(f"{name}: {size} with a sign", declared.tensor_quant(torch.randn(4, 4))[0], size, signs)
    check("a new instance at each access", MyBinaryQuantizer.tensor_quant is not MyBinaryQuantizer.tensor_quant)


# --- 10 to 16: layers hold a proxy ------------------------------------------------------------------------------------


class MyBinaryWeightQuantizer(MyBinaryQuantizer):
    """Cell 10."""

    proxy_class = WeightQuantProxyFromInjector


class MySignedBinaryWeightQuantizer(MyBinaryWeightQuantizer):
    """Cell 12."""

    signed = True


class MySignedBinaryActQuantizer(MyBinaryQuantizer):
    """Cell 15."""

    proxy_class = ActQuantProxyFromInjector
    signed = True


def layers() -> None:
    """Cells 10 to 16."""
    conv = QuantConv2d(3, 2, (3, 3), weight_quant=MyBinaryWeightQuantizer)
    try:
        conv.quant_weight()
    except TypeError as error:
        print(f"  TypeError: {error}")
    else:
        raise AssertionError("`signed` has to be said")
    conv = QuantConv2d(3, 2, (3, 3), weight_quant=MySignedBinaryWeightQuantizer)
    weight: Any = conv.quant_weight()
    check_values(
        "the weight of a layer",
        weight.value,
        0.1,
        "++-+----- --+--+-+- +++++---+ ------++- +-------- +-+--+-++",
    )
    check("it is valid", weight.is_valid)
    conv = QuantConv2d(3, 2, (3, 3), weight_quant=MyBinaryWeightQuantizer, weight_signed=True)
    check_values(
        "and by a keyword",
        conv.quant_weight(),
        0.1,
        "--+-+-+++ +---+++-+ ---+--++- --+-+++-- +--+--+-- +++-+----",
    )
    identity = QuantIdentity(act_quant=MySignedBinaryActQuantizer, return_quant_tensor=True)
    activation: Any = identity(torch.randn(4, 4))
    check_values("an activation", activation.value, 0.1, "-+-- ++++ --+- -+-+")
    check("with its scale", torch.equal(activation.scale.detach(), torch.tensor(0.1)) and activation.is_valid)
    identity = QuantIdentity(act_quant=MySignedBinaryActQuantizer, scaling_init=0.001, return_quant_tensor=True)
    check_values("and by a keyword", identity(torch.randn(4, 4)), 0.001, "+--+ ++++ +-++ +---")


# --- 17 to 23: a quantizer that begins at the weight of its layer, and begins again ----------------------------------


class ParamFromMaxWeightQuantizer(MySignedBinaryWeightQuantizer):
    """Cell 17."""

    @value
    def scaling_init(module: Any) -> Any:
        """The largest magnitude of the weight."""
        return module.weight.abs().max()


def largest(*layers: Any) -> Tensor:
    """The largest magnitude of the weights of layers."""
    return torch.cat([layer.weight.detach().reshape(-1) for layer in layers]).abs().max()


def weight_statistics() -> nn.Conv2d:
    """Cells 17 to 23; the float layer that later cells load again."""
    conv = QuantConv2d(3, 2, (3, 3), weight_quant=ParamFromMaxWeightQuantizer)
    q: Any = conv.weight_quant
    signs = "+--+++--- +--+--++- -+++-+--- ++---+-+- -+-++-+++ ---+-++-+"
    check_values("it begins at the largest magnitude", conv.quant_weight(), 0.1820, signs)
    check("which is what scale() says", bool(q.scale() == largest(conv)))
    float_conv = nn.Conv2d(3, 2, (3, 3))
    check("a float layer", abs(float(largest(float_conv)) - 0.1924) < 5e-5)
    before = conv.weight.detach().clone()
    try:
        conv.load_state_dict(float_conv.state_dict())
    except RuntimeError as error:
        print("  RuntimeError:", str(error).replace("\n\t", " "))
        check("the key is that of the parameter", '"weight_quant.tensor_quant.scaling_impl.value"' in str(error))
    check("a load that raises has changed nothing", torch.equal(conv.weight, before))
    config.IGNORE_MISSING_KEYS = True  # or SAMEBITS_IGNORE_MISSING_KEYS=1 in the environment
    print(" ", conv.load_state_dict(float_conv.state_dict()))
    signs = "++-++++++ ---++-+++ ++--++-++ +-+-+-+++ -+-+---++ ++----+--"
    check_values("the scale began again", conv.quant_weight(), 0.1924, signs)
    return float_conv


# --- 24 to 28: sharing ------------------------------------------------------------------------------------------------


class SharedParamFromMeanWeightQuantizer(MySignedBinaryWeightQuantizer):
    """Cell 27."""

    @value
    def scaling_init(module: Any) -> Any:
        """The mean magnitude of one weight, or of two."""
        if isinstance(module, tuple):
            return torch.cat((module[0].weight.view(-1), module[1].weight.view(-1))).abs().mean()
        return module.weight.abs().mean()


def sharing() -> None:
    """Cells 24 to 28."""
    first: Any = QuantConv2d(3, 2, (3, 3), weight_quant=MySignedBinaryWeightQuantizer)
    second: Any = QuantConv2d(3, 2, (3, 3), weight_quant=MySignedBinaryWeightQuantizer)
    check("a declaration is made for each layer", first.weight_quant is not second.weight_quant)
    first = QuantConv2d(3, 2, (3, 3), weight_quant=MySignedBinaryWeightQuantizer)
    second = QuantConv2d(3, 2, (3, 3), weight_quant=first.weight_quant)
    check("a proxy is shared", first.weight_quant is second.weight_quant)
    check("and its scale", bool(first.weight_quant.scale() == second.weight_quant.scale()))
    first = QuantConv2d(3, 2, (3, 3), weight_quant=SharedParamFromMeanWeightQuantizer)
    old_scale = first.weight_quant.scale().detach().clone()
    second = QuantConv2d(3, 2, (3, 3), weight_quant=first.weight_quant)
    check("which began again with both weights", not bool(old_scale == first.weight_quant.scale()))
    check("for both layers", bool(first.weight_quant.scale() == second.weight_quant.scale()))


# --- 29, 30: weights that are initialized afterwards ------------------------------------------------------------------


def weight_initialization() -> None:
    """Cells 29 and 30."""
    conv: Any = QuantConv2d(3, 2, (3, 3), weight_quant=ParamFromMaxWeightQuantizer)
    nn.init.uniform_(conv.weight)
    check("nobody knows of the new weight", not bool(largest(conv) == conv.weight_quant.scale()))
    conv.weight_quant.init_tensor_quant()
    check("unless one says so", bool(largest(conv) == conv.weight_quant.scale()))


# --- 31 to 36: an interface of one's own ------------------------------------------------------------------------------


class CommonQuantizer(ExtendedInjector):
    """Cell 31: two flags that layers take as keywords."""

    scaling_impl = ParameterScaling
    signed = True

    @value
    def tensor_quant(is_clamped: Any) -> Any:
        """A class, which is wired in turn."""
        return ClampedBinaryQuant if is_clamped else BinaryQuant

    @value
    def scaling_shape(scaling_per_output_channel: Any) -> Any:
        """An attribute, of which only a scale for each channel knows."""
        return this.per_channel_broadcastable_shape if scaling_per_output_channel else ()


class AdvancedWeightQuantizer(CommonQuantizer):
    """Cell 31: of weights."""

    proxy_class = WeightQuantProxyFromInjector

    @value
    def per_channel_broadcastable_shape(module: Any) -> Any:
        """A number for each output channel."""
        return (module.weight.shape[0], 1, 1, 1)

    @value
    def scaling_init(module: Any, scaling_per_output_channel: Any) -> Any:
        """The largest magnitude, of each channel or of all."""
        if scaling_per_output_channel:
            channels = module.weight.shape[0]
            return module.weight.abs().view(channels, -1).max(dim=1)[0].view(-1, 1, 1, 1)
        return module.weight.abs().max()


class AdvancedActQuantizer(CommonQuantizer):
    """Cell 31: of activations."""

    scaling_init = 0.01
    proxy_class = ActQuantProxyFromInjector


def own_interface(float_conv: nn.Conv2d) -> None:
    """Cells 31 to 36."""
    conv = QuantConv2d(
        3,
        2,
        (3, 3),
        weight_quant=AdvancedWeightQuantizer,
        weight_is_clamped=False,
        weight_scaling_per_output_channel=True,
    )
    signs = "+-----+++ -+--++--+ -++++-+++ +++--+-+- +-+++-+-- --++--+-+"
    check_values("a scale for each channel", conv.quant_weight(), [0.1612, 0.1924], signs)
    conv.load_state_dict(float_conv.state_dict())
    signs = "++-++++++ ---++-+++ ++--++-++ +-+-+-+++ -+-+---++ ++----+--"
    check_values("which begins again", conv.quant_weight(), [0.1924, 0.1899], signs)
    act: Any = {"act_quant": AdvancedActQuantizer, "is_clamped": True}
    identity = QuantIdentity(**act, scaling_per_output_channel=False)
    check_values("an activation", identity(torch.randn(4, 4)), 0.01, "++-+ ++-+ -+-- +---")
    try:
        QuantIdentity(**act, scaling_per_output_channel=True)
    except DependencyError as error:
        print(f"  DependencyError: {error}")
        check("what is missing is named", "`per_channel_broadcastable_shape`" in str(error))
    shape = (4, 1)
    identity = QuantIdentity(**act, scaling_per_output_channel=True, per_channel_broadcastable_shape=shape)
    check_values("with a scale for each row", identity(torch.randn(4, 4)), 0.01, "+++- +--+ ---+ ++++")
    q: Any = identity.act_quant
    check("all of them 0.01", torch.equal(q.scale().detach(), torch.full((4, 1), 0.01)))


def main() -> None:
    """All cells in order, from one seed."""
    ready_quantizers()
    binary_quantization()
    layers()
    try:
        float_conv = weight_statistics()
        sharing()
        weight_initialization()
        own_interface(float_conv)
    finally:
        config.IGNORE_MISSING_KEYS = False


if __name__ == "__main__":
    main()
