"""Where activations are quantized in a model, and who follows their codes while scales are found; see `calibration`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...core.calibration import KNOWN_RANGES, OBSERVED_FUNCTIONS, function_of
from ...core.choice import fits
from ...core.descriptions import Quantizer
from ...core.scales import ScaleSource
from ..nn.layer import or_same
from ..quant_tensor import QuantTensor
from ..quantizer import choose_qparams
from ..tensor_quantizer import TensorQuantizer

FUNCTIONS = frozenset((*KNOWN_RANGES, *OBSERVED_FUNCTIONS))
RESCALING = ("add", "cat", "sub")  # of tensors of several scales: computed over values
OTHER_NAMES = {"add": "__radd__ __add__", "sub": "__rsub__ __sub__", "matmul": "__matmul__ __rmatmul__ mm"}
NAMES: dict[Any, str] = {  # torch has a function for a name in several places
    getattr(place, one): name
    for name in sorted({*FUNCTIONS, *RESCALING})
    for one in (name, *OTHER_NAMES.get(name, "").split())
    for place in (functional, torch.Tensor, torch)
    if hasattr(place, one)
}
KEEPING = ("relu",)  # functions whose result keeps the scale of codes


class Sites(nn.Module):
    """The quantizers of activations of a model, by site. A part of the model, so that its ``state_dict`` has them.

    Args:
        quantizer: of one scale, a statistic.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.quantizers = nn.ModuleDict()
        self.removed: dict[str, str] = {}  # sites that quantize nothing, with the reason
        self.depth = 0  # how many layers of samebits are at work: what these call is no site
        self.follower: Follower | None = None  # while scales are found
        self.calibrated = False

    def forward(self, x: Any) -> Any:
        """What it is given: ``nn.Sequential`` calls whatever is in it."""
        return x

    def quantized(self, name: str, x: Any) -> Any:
        """``x`` with the codes that its site gives it; as it is where there is none."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        self.depth += 1  # functions of quantizers are no sites
        try:
            return self._quantized(name, x)
        finally:
            self.depth -= 1

    def _quantized(self, name: str, x: Tensor) -> Tensor:
        key = key_of(name)
        if self.follower is None:
            return or_same(self._held(key), x, True) if key in self.quantizers else x
        if key in self.removed or not x.numel():
            return x
        if key not in self.quantizers:
            self.quantizers[key] = self._quantizer(name).to(x.device)
        result = or_same(self._held(key).train(), x, True)
        self.follower.made(name, result)
        return result

    def _held(self, key: str) -> TensorQuantizer:
        quantizer: Any = self.quantizers[key]
        return quantizer  # type: ignore[no-any-return]

    def _quantizer(self, name: str) -> TensorQuantizer:
        """A new one: with the scale of a range that is known, or one that learns it."""
        assert self.follower is not None
        q, ends = self.quantizer, KNOWN_RANGES.get(function_of(name))
        if ends is None:
            return TensorQuantizer(q.replace(source=ScaleSource.RUNNING_STATISTIC, momentum=self.follower.momentum))
        qparams = choose_qparams(q, torch.tensor(ends))
        zero = 0 if qparams.zero_point is None else qparams.zero_point.item()
        scale = qparams.scale.item()
        return TensorQuantizer(q.replace(source=ScaleSource.CONSTANT, scale_value=scale, zero_point_value=zero))


class Functions(TorchFunctionMode):
    """Functions of one forward pass, counted by their names; what they give is quantized where there is a site."""

    def __init__(self, sites: Sites) -> None:
        super().__init__()
        self.sites = sites
        self.turns: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function, and gives its result the codes of its site."""
        sites, name, kwargs = self.sites, name_of(func), kwargs or {}
        if sites.depth:
            return func(*args, **kwargs)
        turn = self.turns.get(name, 0)  # counted also where codes pass: they may be numbers when a site is gone
        self.turns[name] = turn + 1
        if sites.follower is not None:
            sites.follower.taken(name, args, kwargs)
        if name in RESCALING:
            args = without_codes(args)
        result = func(*args, **kwargs)
        if isinstance(result, QuantTensor) and (name in KEEPING or name not in FUNCTIONS):
            if sites.follower is not None:
                sites.follower.passed(args, kwargs, result)
            return result
        if sites.follower is not None:
            reader = name or getattr(func, "__name__", "others").strip("_")
            sites.follower.used(reader, args, kwargs, as_codes=isinstance(result, QuantTensor))
        return sites.quantized(f"{name}_{turn}", result) if name in FUNCTIONS else result


class Follower:
    """Whose codes are used by what, while a model runs.

    Args:
        momentum: of the scales that are observed.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.needed: set[str] = set()  # sites whose codes are contracted
        self.readers: dict[str, set[str]] = {}  # what takes the values of a site
        self.where: dict[str, str] = {}  # the module around a site
        self.around: list[str] = []  # modules that are at work

    def made(self, name: str, result: Tensor) -> None:
        """A site gave this."""
        result._sites = frozenset([name])  # type: ignore[attr-defined]
        self.readers.setdefault(name, set())
        self.where.setdefault(name, self.around[-1] if self.around else "")

    def taken(self, name: str, args: Any, kwargs: Any) -> None:
        """Tensors of several scales are read as values."""
        if name in RESCALING:
            self.used(name, args, kwargs, as_codes=False)

    def used(self, name: str, args: Any, kwargs: Any, *, as_codes: bool) -> None:
        """A function took tensors, and computed on their codes or on their values."""
        for site in sites_of(args, kwargs):
            if as_codes:
                self.needed.add(site)
            else:
                self.readers[site].add(name)

    def passed(self, args: Any, kwargs: Any, result: Tensor) -> None:
        """The result has the codes of a site elsewhere, or is computed on those of several."""
        if len([t for t in tensors_of(args, kwargs) if isinstance(t, QuantTensor)]) > 1:
            self.used("", args, kwargs, as_codes=True)
        result._sites = frozenset(sites_of(args, kwargs))  # type: ignore[attr-defined]


def key_of(name: str) -> str:
    """What a site is called in a ``ModuleDict``, where dots are not allowed."""
    return name.replace(".", "/")


def name_of(func: Any) -> str:
    """The name of a function; that of an operator where it is a method of one: ``__radd__`` is ``add``."""
    return NAMES.get(func, "")


def tensors_of(args: Any, kwargs: Any) -> Iterator[Tensor]:
    """All tensors among arguments."""
    return (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))


def sites_of(args: Any, kwargs: Any) -> set[str]:
    """The sites that tensors among arguments came from."""
    return {site for t in tensors_of(args, kwargs) for site in getattr(t, "_sites", ())}


def without_codes(args: Any) -> Any:
    """Arguments with plain tensors in the place of `QuantTensor`."""
    return pytree.tree_map_only(QuantTensor, lambda t: t.dequantize(), args)


def check_patterns(given: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """ValueError for a pattern that fits no name."""
    for argument, patterns in given.items():
        for pattern in patterns:
            if not any(fits(pattern, name) for name in names):
                known = ", ".join(f"'{name}'" for name in names)
                raise ValueError(f"`{argument}`: '{pattern}' fits no layer; layers are {known or 'none'}")
