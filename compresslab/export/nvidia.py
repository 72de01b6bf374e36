"""TensorRT: an engine for one kind of NVIDIA GPU, built on it from an ONNX file.

Written as NVIDIA documents it for TensorRT 10 and 11. **Not run by this project**, whose tests have no such GPU. QDQ
pairs become INT8 kernels there too, but of symmetric activations, which ``quantize_static`` does not make: TensorRT
refuses a zero point that is not 0. For INT8 use its own tools (ModelOpt).

    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compresslab.export.to_onnx import export_onnx

__all__ = ["load_engine", "save_engine"]


def save_engine(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    """Write an engine for the GPU that is here, by way of ONNX: quantized layers arrive as integers.

    Args:
        model: in eval mode.
        inputs: an example.
        path: of the engine.
        dynamic: whether the batch may be 1 to 32, best at 8; otherwise it is the example's.

    Raises:
        ImportError: TensorRT is missing. ValueError: it cannot read the graph.
    """
    import tensorrt

    source = path.with_name("source.onnx")
    export_onnx(model, inputs, source, dynamic_batch=dynamic)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        raise ValueError(f"TensorRT cannot read the graph: {parser.get_error(0)}")
    config = builder.create_builder_config()
    if dynamic:
        profile = builder.create_optimization_profile()
        for place, x in enumerate(inputs):
            shapes = [(size, *x.shape[1:]) for size in (1, 8, 32)]  # least, best, most
            profile.set_shape(network.get_input(place).name, *shapes)
        config.add_optimization_profile(profile)
    path.write_bytes(builder.build_serialized_network(network, config))
    source.unlink()


def load_engine(path: Path, threads: int) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """A function that runs an engine on tensors from the processor, and brings the results back.

    Raises:
        ImportError: TensorRT is missing.
    """
    import tensorrt

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    takes = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]

    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        tensors = dict(zip(takes, (x.cuda().contiguous() for x in inputs), strict=True))
        for name, x in tensors.items():
            context.set_input_shape(name, tuple(x.shape))
        for name in names[len(takes) :]:
            tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
        for name, x in tensors.items():
            context.set_tensor_address(name, x.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        found = tuple(tensors[name].cpu() for name in names if name not in takes)
        return found[0] if len(found) == 1 else found

    return run
