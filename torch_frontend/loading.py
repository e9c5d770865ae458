"""State dicts that are loaded whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
    """``model.load_state_dict(...)``, after which the model is as it was if it raises.

    That of ``torch.nn.Module`` copies what fits before it complains about what does not. While this one runs, the old
    values are kept beside the new ones.

    Args:
        strict, assign: as there.
    Returns:
        The missing and the unexpected keys, as there.
    Raises:
        RuntimeError: missing, unexpected or wrongly shaped keys, named as there; and whatever else it raises.
    """
    with unchanged_on_error(model):
        return nn.Module.load_state_dict(model, state_dict, strict, assign)


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Brings back every parameter, buffer, module and plain attribute of a model if what runs inside raises."""
    tables = [(table, dict(table)) for module in model.modules() for table in _tables(module)]
    values = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        with torch.no_grad():
            for tensor, before in values:
                if tensor.shape == before.shape:
                    tensor.copy_(before)
                else:
                    tensor.data = before
        raise


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module.__dict__, module._parameters, module._buffers, module._modules
