"""Memory while running: weights, inputs, and the most that the tensors made on the way take at one moment.

On the CPU the tensors are followed one operation at a time: a result is added when it appears and taken away when the
last reference to its memory goes. That is the same number on every machine, and small cases can be worked by hand.
It holds tensors only: not the scratch space inside a kernel, nor what the allocator keeps in reserve. On a GPU the
allocator's own counters are read, which hold the scratch space as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresslab.measure.running import call, evaluating, require_module, tensors_in

__all__ = ["Memory", "measure_memory", "peak_bytes"]


@dataclass(frozen=True)
class Memory:
    """Bytes of memory that one forward pass needs."""

    weight_bytes: int  # parameters and buffers, shared memory once
    input_bytes: int
    peak_bytes: int  # tensors made during the pass, at the moment when they take most; the output is among them

    @property
    def total_bytes(self) -> int:
        """Weights, inputs and the peak together."""
        return self.weight_bytes + self.input_bytes + self.peak_bytes


def measure_memory(model: nn.Module, inputs: Any) -> Memory:
    """The memory of one forward pass of ``model`` on ``inputs``, in eval mode and without gradients.

    Args:
        model: run once; on a GPU once more before, since a first run also allocates work space that stays.
        inputs: a tensor, a tuple of arguments or a mapping of keywords, on the model's device.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> measure_memory(model, torch.zeros(1, 4))  # 48 weights; before and after the ReLU 8 numbers each
        Memory(weight_bytes=192, input_bytes=16, peak_bytes=64)
    """
    require_module(model)
    weights, given = [*model.parameters(), *model.buffers()], list(tensors_in(inputs))
    on_gpu = any(tensor.is_cuda for tensor in weights + given)
    with evaluating(model):
        peak = _peak_on_gpu(model, inputs) if on_gpu else _peak_on_cpu(model, inputs)
    return Memory(_bytes_of(weights), _bytes_of(given), peak)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by a function take at one moment, on the CPU; what was there before is not counted.

    Args:
        run: called once without arguments; whatever it does with torch, gradients too.

    Example:
        >>> peak_bytes(lambda: torch.ones(1000) + 1)  # the ones and the sum, 4 bytes each
        8000
    """
    with _Allocations() as allocations:
        run()
    return allocations.peak


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _peak_on_cpu(model: nn.Module, inputs: Any) -> int:
    return peak_bytes(lambda: call(model, inputs))


def _peak_on_gpu(model: nn.Module, inputs: Any) -> int:
    call(model, inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(model, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class _Allocations(TorchDispatchMode):
    """Bytes of the memory that operations made and that somebody still holds, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, tuple[int, weakref.ref]] = {}  # address to bytes; 0 for what was there before
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tensors_in([args, kwargs or {}]):
            self._follow(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._follow(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(size for size, _ in self.living.values()))
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        address = storage.data_ptr()
        if address and address not in self.living:  # an address is used again once its memory was freed
            self.living[address] = (size, weakref.ref(storage, lambda _: self.living.pop(address, None)))
