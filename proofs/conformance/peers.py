"""The libraries whose targets are ready, what each is called, and what installs it. Data; nothing is imported here.

A peer that is not installed is named with the command that brings it, and never left out in silence.
"""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Peer:
    """A library.

    Args:
        library: what must be importable.
        module: the file in `samebits.proofs.conformance.adapters`.
        extra: which extra of samebits brings it.
        targets: their names.
        apart: whether it has an environment of its own (`make atlas-GROUP`) and is not in that of the tests.
    """

    library: str
    module: str
    extra: str
    targets: tuple[str, ...]
    apart: bool = False


PEERS: tuple[Peer, ...] = (
    Peer(
        "torch",
        "torch",
        "torch",
        (
            "torch.fake_quantize_per_tensor_affine",
            "torch.fake_quantize_per_tensor_affine.uint8",
            "torch.fake_quantize_per_tensor_affine.bfloat16",
            "torch.fake_quantize_per_channel_affine",
            "torch.quantize_per_tensor",
            "torch.quantize_per_channel",
            "torch.quantized_decomposed",
            "torch.quantized_decomposed.bfloat16",
            "torch.quantize_per_tensor_dynamic",
            "torch.fake_quantize_learnable_per_tensor_affine",
            "torch.float8_e4m3fn",
            "torch.float8_e5m2",
            "torch.float8_e4m3fnuz",
            "torch.float8_e5m2fnuz",
            "torch.float8_e8m0fnu",
        ),
    ),
    Peer("torch", "textbook_torch", "torch", ("textbook.torch_eager", "textbook.torch_compiled")),
    Peer("jax", "textbook_jax", "jax", ("textbook.jax_eager", "textbook.jax_jit")),
    Peer(
        "torchao",
        "torchao",
        "peers-torch",
        (
            "torchao.quantize_affine",
            "torchao.quantize_affine.bfloat16",
            "torchao.choose_qparams_affine",
            "torchao.fake_quantize_affine",
        ),
    ),
    Peer(
        "brevitas",
        "brevitas",
        "peers-torch",
        ("brevitas.IntQuant", "brevitas.IntQuant.uint8", "brevitas.IntQuant.bfloat16"),
    ),
    Peer(
        "optimum.quanto",
        "quanto",
        "peers-torch",
        (
            "quanto.quantize_activation",
            "quanto.quantize_activation.bfloat16",
            "quanto.quantize_affine",
            "quanto.AbsmaxOptimizer",
        ),
    ),
    Peer("qwix", "qwix", "peers-jax", ("qwix.quantize", "qwix.quantize.bfloat16", "qwix.quantize.chosen")),
    Peer("aqt", "aqt", "peers-jax", ("aqt.IntSymmetric", "aqt.IntSymmetric.chosen")),
    Peer(
        "onnxruntime",
        "onnxruntime",
        "peers-onnx",
        (
            "onnxruntime.QuantizeLinear",
            "onnxruntime.QuantizeLinear.uint8",
            "onnxruntime.QuantizeLinear.float16",
            "onnxruntime.DynamicQuantizeLinear",
        ),
    ),
    Peer(
        "onnx",
        "onnx",
        "peers-onnx",
        ("onnx.QuantizeLinear", "onnx.QuantizeLinear.float16", "onnx.DynamicQuantizeLinear"),
    ),
    Peer("jax", "jax", "jax", ("jax.float8_e4m3fn", "jax.float8_e5m2", "jax.float4_e2m1fn", "jax.float8_e8m0fnu")),
    Peer("gfloat", "gfloat", "peers-onnx", ("gfloat.ocp_e4m3", "gfloat.ocp_e5m2", "gfloat.ocp_e2m1")),
    Peer(
        "ml_dtypes",
        "ml_dtypes",
        "proofs",
        (
            "ml_dtypes.float8_e4m3fn",
            "ml_dtypes.float8_e5m2",
            "ml_dtypes.float8_e4m3fnuz",
            "ml_dtypes.float6_e3m2fn",
            "ml_dtypes.float4_e2m1fn",
            "ml_dtypes.float8_e8m0fnu",
        ),
    ),
    Peer(
        "keras",
        "keras",
        "peers-keras",
        (
            "keras.quantize_and_dequantize.jax",
            "keras.fake_quant_with_min_max_vars.jax",
            "keras.abs_max_quantize.jax",
            "keras.quantize_and_dequantize.torch",
            "keras.fake_quant_with_min_max_vars.torch",
            "keras.abs_max_quantize.torch",
        ),
        apart=True,
    ),
    Peer(
        "compressed_tensors",
        "compressed_tensors",
        "peers-compressed-tensors",
        (
            "compressed_tensors.quantize",
            "compressed_tensors.quantize.int4",
            "compressed_tensors.quantize.float16",
            "compressed_tensors.fake_quantize",
            "compressed_tensors.fake_quantize.bfloat16",
            "compressed_tensors.fake_quantize.float8",
            "compressed_tensors.fake_quantize.float4",
            "compressed_tensors.calculate_qparams",
            "compressed_tensors.calculate_qparams.affine",
            "compressed_tensors.mxfp4",
            "compressed_tensors.mxfp6",
            "compressed_tensors.mxfp8",
            "compressed_tensors.nvfp4",
        ),
        apart=True,
    ),
    Peer(
        "gguf",
        "gguf",
        "peers-gguf",
        ("gguf.Q8_0", "gguf.Q4_0", "gguf.Q5_0", "gguf.Q4_1", "gguf.Q5_1", "gguf.MXFP4"),
        apart=True,
    ),
    Peer(
        "ai_edge_litert",
        "litert",
        "peers-litert",
        (
            "litert.QUANTIZE",
            "litert.QUANTIZE.uint8",
            "litert.QUANTIZE.reference",
            "litert.QUANTIZE.uint8.reference",
        ),
        apart=True,
    ),
    Peer(
        "ai_edge_quantizer",
        "ai_edge_quantizer",
        "peers-litert",
        (
            "ai_edge_quantizer.uniform_quantize",
            "ai_edge_quantizer.uniform_quantize.symmetric",
            "ai_edge_quantizer.uniform_quantize.chosen",
            "ai_edge_quantizer.uniform_quantize.affine.chosen",
        ),
        apart=True,
    ),
    Peer(
        "bitsandbytes",
        "bitsandbytes",
        "peers-bitsandbytes",
        (
            "bitsandbytes.quantize_4bit.nf4",
            "bitsandbytes.quantize_4bit.fp4",
            "bitsandbytes.quantize_blockwise",
            "bitsandbytes.int8_vectorwise_quant",
        ),
        apart=True,
    ),
    Peer(
        "mlx",
        "mlx",
        "peers-mlx",
        (
            "mlx.quantize.affine2",
            "mlx.quantize.affine3",
            "mlx.quantize.affine4",
            "mlx.quantize.affine6",
            "mlx.quantize.affine8",
            "mlx.quantize.mxfp4",
            "mlx.quantize.mxfp8",
            "mlx.quantize.nvfp4",
        ),
        apart=True,
    ),
    Peer(
        "openvino",
        "openvino",
        "peers-openvino",
        (
            "openvino.FakeQuantize",
            "openvino.FakeQuantize.uint8",
            "openvino.Convert.f8e4m3",
            "openvino.Convert.f8e5m2",
            "openvino.Convert.f4e2m1",
        ),
        apart=True,
    ),
    Peer(
        "nncf",
        "nncf",
        "peers-openvino",
        (
            "nncf.do_integer_quantization",
            "nncf.do_integer_quantization.chosen",
            "nncf.do_integer_quantization.int4.chosen",
            "nncf.do_float_quantization.nf4",
            "nncf.do_float_quantization.mxfp4",
            "nncf.do_float_quantization.mxfp8_e4m3",
            "nncf.do_float_quantization.nvfp4",
            "nncf.Quantize_forward",
        ),
        apart=True,
    ),
    Peer(
        "quantizers",
        "quantizers",
        "peers-keras",
        (
            "quantizers.RND",
            "quantizers.RND_CONV",
        ),
        apart=True,
    ),
    Peer(
        "qonnx",
        "qonnx",
        "peers-fixed",
        (
            "qonnx.int_quant",
            "qonnx.float_quant",
        ),
        apart=True,
    ),
    Peer(
        "apytypes",
        "apytypes",
        "peers-fixed",
        (
            "apytypes.APyFloatArray",
            "apytypes.APyFixedArray",
        ),
        apart=True,
    ),
    Peer(
        "pychop",
        "pychop",
        "peers-fixed",
        (
            "pychop.Chop.e5m2",
            "pychop.Chop.e4m3",
        ),
        apart=True,
    ),
    Peer(
        "fxpmath",
        "fxpmath",
        "peers-fixed",
        (
            "fxpmath.Fxp.trunc",
            "fxpmath.Fxp.around",
        ),
        apart=True,
    ),
    Peer(
        "breccia",
        "breccia",
        "peers-fixed",
        (
            "breccia.Float8CurrentScaling",
            "breccia.MXFP8BlockScaling",
            "breccia.NVFP4BlockScaling",
            "breccia.INT4Scaling",
            "breccia.INT4Scaling.asymmetric",
        ),
        apart=True,
    ),
)


def of_extra(extra: str) -> list[str]:
    """Names of the targets of the libraries that an extra brings."""
    return [name for peer in PEERS if peer.extra == extra for name in peer.targets]


def missing(peer: Peer) -> str | None:
    """None where the library is installed; else one line: what is not, and the command that brings it."""
    try:
        there = find_spec(peer.library) is not None
    except ImportError:  # the package that a module of this name would lie in
        there = False
    return None if there else f"{peer.library} is not installed: pip install 'samebits[{peer.extra}]'"
