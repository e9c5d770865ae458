"""LiteRT: the QUANTIZE operator alone in a model, by XNNPACK and by the reference kernel.

The scale is a constant of the model, so every scale has a model of its own.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ..targets import Function, Kind, Target

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_affine_per_tensor"], catalog["uint8_affine_per_tensor"]
XNNPACK, REFERENCE = "AUTO", "BUILTIN_REF"  # of the enumeration OpResolverType


def targets() -> dict[str, Target]:
    """The targets of LiteRT, by name."""
    found = (
        Target("litert.QUANTIZE", _run("INT8", XNNPACK), INT8, kind=Kind.CODES),
        Target("litert.QUANTIZE.uint8", _run("UINT8", XNNPACK), UINT8, kind=Kind.CODES),
        Target("litert.QUANTIZE.reference", _run("INT8", REFERENCE), INT8, kind=Kind.CODES),
        Target("litert.QUANTIZE.uint8.reference", _run("UINT8", REFERENCE), UINT8, kind=Kind.CODES),
    )
    return {target.name: target for target in found}


def _run(code: str, kernels: str) -> Function:
    def run(x: Array, qparams: QParams) -> Array:
        interpreter = _interpreter(code, kernels, float(np.asarray(qparams.scale)), int(np.asarray(qparams.zero_point)))
        ((source,), (target,)) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(source["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        found: Array = interpreter.get_tensor(target["index"])
        return found

    return run


@lru_cache(maxsize=32)
def _interpreter(code: str, kernels: str, scale: float, zero: int) -> Any:
    library = import_module("ai_edge_litert.interpreter")
    kind = getattr(library.OpResolverType, kernels)
    return library.Interpreter(model_content=_model(code, scale, zero), experimental_op_resolver_type=kind)


def _model(code: str, scale: float, zero: int) -> bytes:
    schema, builder = import_module("ai_edge_litert.schema_py_generated"), import_module("flatbuffers").Builder(1024)
    quantize = schema.BuiltinOperator.QUANTIZE
    operator_code = _made(schema.OperatorCodeT, builtinCode=quantize, deprecatedBuiltinCode=quantize, version=1)
    quantization = _made(schema.QuantizationParametersT, scale=[scale], zeroPoint=[zero])
    kinds = {"x": schema.TensorType.FLOAT32, "y": getattr(schema.TensorType, code)}
    tensors = [_made(schema.TensorT, name=name, shape=[8], type=kind, buffer=0) for name, kind in kinds.items()]
    tensors[1].quantization = quantization
    operator = _made(schema.OperatorT, opcodeIndex=0, inputs=[0], outputs=[1])
    graph = _made(schema.SubGraphT, tensors=tensors, inputs=[0], outputs=[1], operators=[operator])
    model = _made(
        schema.ModelT, version=3, operatorCodes=[operator_code], subgraphs=[graph], buffers=[schema.BufferT()]
    )
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _made(kind: Any, **fields: Any) -> Any:
    """A table of the schema with these fields."""
    table = kind()
    for name, value in fields.items():
        setattr(table, name, value)
    return table
