"""Is a port right? A torch and a JAX model on the same inputs, layer by layer, each difference beside its bound."""

from collections.abc import Mapping

from .results import Inputs, Model, Validation


def validate(
    torch_model: Model,
    jax_model: Model,
    inputs: Inputs,
    *,
    jax_inputs: Inputs | None = None,
    pairs: Mapping[str, str] | None = None,
    explain: bool = True,
) -> Validation:
    """Compares a torch model with its port to JAX, module by module, and names the mistakes of the port.

    Both models run once, op by op. A module that has a partner is given what torch gave its partner, and its result is
    replaced by that of torch, so that differences do not add up. Of each module the result is compared, and what it
    hands to its parts: bit for bit, then with twice the error bound of the operations that torch did (see `bounds`).
    Layers that promise bits (`samebits` layers over codes) are held to them.

    Args:
        torch_model: a module, in evaluation mode if that is meant, or a function of tensors.
        jax_model: an nnx module, or a function of arrays; that is compared as one piece.
        inputs: arrays, of any library: by name, in order, or one. Names that are all parameters of a model are given by
            name, else they are given in order. float32, bfloat16, float16, integers or bool.
        jax_inputs: those of the JAX model, if it takes others, images with channels last for instance.
        pairs: path in torch to path in JAX, where names, shapes and order do not tell.
        explain: whether mistakes are tried.
    Raises:
        ValidationError: models that cannot be paired, inputs that do not fit, an exception inside a model.
        TypeError: a model that cannot be called.
    """
    from .side_by_side import compared  # with both frameworks

    return compared(torch_model, jax_model, inputs, jax_inputs, pairs, explain=explain)
