"""Float models whose layers are swapped for quantized ones."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as quantized
from samebits.torch_frontend.nn import quantize_model


class Model(nn.Module):
    """Layers of many kinds, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.body = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.ConvTranspose1d(4, 4, 2))
        self.again = self.body[0]
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.body(self.again(self.embedding(x).transpose(1, 2))))
        out: torch.Tensor = self.head(y.mean(2))
        return out


def model() -> Any:
    """Typed as anything, for its attributes are of two kinds."""
    torch.manual_seed(0)
    return Model()


X = torch.arange(8).reshape(2, 4)


def kinds(module: nn.Module) -> dict[str, str]:
    return {name: type(m).__name__ for name, m in module.named_modules() if type(m).__name__.startswith("Quant")}


def test_layers_are_swapped_and_parameters_stay() -> None:
    m: Any = model()
    parameters, names = list(m.parameters()), list(m.state_dict())
    m.head.register_forward_hook(lambda layer, args, y: y + 100)
    m.body.eval()
    assert quantize_model(m) == m
    want = {"embedding": "Embedding", "body.0": "Conv1d", "body.2": "ConvTranspose1d", "head": "Linear"}
    assert kinds(m) == {name: f"Quant{kind}" for name, kind in want.items()}
    assert m.again is m.body[0]
    assert [id(p) for p in m.parameters()] == [id(p) for p in parameters]
    assert list(m.state_dict()) == names
    assert not m.body[0].training
    assert m.head.training
    assert m(X).min() > 50
    assert quantize_model(m) is m  # nothing is left to swap
    for again in (copy.deepcopy(m.body), pickle.loads(pickle.dumps(m.body))):
        assert_same_bits(m.body(torch.ones(1, 4, 5)), again(torch.ones(1, 4, 5)))


def test_swapped_layers_are_those_that_are_made() -> None:
    """A layer made with the same keywords and the same weights computes the same."""
    m = model()
    rules = {"*": {"input_quant": "uint8_affine_per_tensor", "weight_bits": 4}}
    quantize_model(m, rules)
    made = quantized.QuantLinear(4, 3, input_quant="uint8_affine_per_tensor", weight_bits=4)
    made.load_state_dict(m.head.state_dict())
    assert_same_bits(made(torch.ones(2, 4)), m.head(torch.ones(2, 4)))
    assert made.extra_repr() == m.head.extra_repr()
    assert vars(made).keys() == vars(m.head).keys()
    assert m.embedding.weight_quant.quantizer.format.bits == 4


def test_an_optimizer_made_before_trains_and_float_states_load_before_and_after() -> None:
    m, state = model(), model().state_dict()
    optimizer = torch.optim.SGD(m.parameters(), 0.1)
    quantize_model(m, {"head": {"weight_source": "learned"}})
    m(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(m.head.weight, state["head.weight"])
    first = quantize_model(model())
    second = quantize_model(Model())
    second.load_state_dict(state)
    assert_same_bits(first(X), second(X))
    missing = quantize_model(Model(), {"head": {"weight_source": "learned"}}).load_state_dict(state, strict=False)
    assert missing.missing_keys == ["head.weight_quant.scale"]


def test_rules_apply_in_their_order() -> None:
    m = model()
    rules: dict[str, Any] = {
        "*": {"weight_bits": 4, "act_quant": "uint8_per_tensor", "input_quant": "int8_per_tensor", "input_bits": 6},
        r"re:body\.\d|again": {"weight_bits": 3},
        "head": {"weight_quant": "int8_per_tensor", "weight_rounding": "toward_zero", "input_quant": None},
        "embed*": None,
    }
    quantize_model(m, rules)
    q = catalog["int8_per_channel"].replace(bits=3)
    assert m.body[0].weight_quant.quantizer == q
    assert m.body[0].input_quant.quantizer.format.bits == 6
    assert m.head.weight_quant.quantizer == catalog["int8_per_tensor"].replace(rounding="toward_zero")
    assert m.head.input_quant is None
    assert type(m.embedding) is nn.Embedding
    assert type(m.body[1]) is quantized.QuantReLU
    assert m.body[1].input_quant is None
    assert kinds(quantize_model(model(), exclude=["body", "again", "re:emb.*"])) == {"head": "QuantLinear"}


def test_a_model_that_is_a_layer_becomes_another() -> None:
    plain = nn.Linear(3, 2)
    layer = quantize_model(plain, {"*": {"weight_bits": 2}})
    assert isinstance(layer, quantized.QuantLinear)
    assert layer.weight is plain.weight
    kinds_of_act = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.GELU("tanh"), nn.SiLU(), nn.Hardtanh(0, 2), nn.Identity())
    x, want = torch.randn(50), copy.deepcopy(kinds_of_act)(torch.ones(3))
    torch.testing.assert_close(
        quantize_model(kinds_of_act, {"*": {"act_bits": 16}})(torch.ones(3)), want, atol=1e-3, rtol=0
    )
    assert len(kinds(kinds_of_act)) == 6
    assert kinds_of_act(x).shape == x.shape


def test_subclasses_and_what_torch_reads_past_layers() -> None:
    """An encoder in evaluation reads weights, not layers, unless it is kept from it."""

    class Mine(nn.Linear):
        pass

    assert type(quantize_model(nn.Sequential(Mine(2, 2)))[0]) is Mine
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = encoder(x)
        quantize_model(encoder, {"linear1": {"weight_bits": 2}})
        assert (encoder(x) - before).abs().max() > 1e-3
        with torch.enable_grad():
            assert_same_bits(encoder(x), encoder(x.clone().requires_grad_()))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rules": {"haed": {}}}, ValueError, "the rule 'haed' fits no layer; layers are 'embedding', 'body.0', "),
    ({"exclude": ["norm"]}, ValueError, "the rule 'norm' fits no layer"),
    ({"rules": {"head": {"wieght_bits": 4}}}, TypeError, "the rule 'head': no layer takes `wieght_bits`; prefixes are"),
    ({"rules": {"body.1": {"weight_bits": 4}}}, TypeError, "no layer takes `weight_bits`; prefixes are `act_`"),
    ({"rules": {"head": {"weight_bit": 4}}}, TypeError, "'head': QuantLinear, `weight_quant`: no field `bit`"),
    ({"rules": {"head": {"weight_quant": "int9"}}}, KeyError, "'head': QuantLinear, `weight_quant`: unknown quantizer"),
    ({"rules": {"head": {"weight_bits": 40}}}, ValueError, "'head': QuantLinear, `weight_quant`: `bits` must be in"),
    ({"rules": {"again": {"weight_bits": 4}}}, ValueError, "'again': is a layer that has another name too"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), REFUSED)
def test_a_refused_call_changes_nothing(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    m = model()
    before = [(name, id(module), list(vars(module))) for name, module in m.named_modules()]
    with pytest.raises(error, match=message):
        quantize_model(m, **keywords)
    assert [(name, id(module), list(vars(module))) for name, module in m.named_modules()] == before


def test_sparse_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="'0': `sparse` must be False"):
        quantize_model(nn.Sequential(nn.Embedding(3, 2, sparse=True)))
