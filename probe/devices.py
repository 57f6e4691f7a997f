"""What a device has room for, and how numbers get there and back while it goes on. Knows no model and no table."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PENDING = 256 << 20  # bytes that are on their way from a device at once, in memory that can't be swapped


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors may take on an accelerator, with those that its allocator holds and nobody uses; None on a CPU,
    whose memory others use too, and where nobody says."""
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def uploaded(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, or a tensor, as a tensor on a device, which this process does not wait for where they lie on the CPU."""
    here = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda" and here.device.type == "cpu":
        here = here.pin_memory()
    return here.to(device, non_blocking=device.type != "cpu")


class Pending(NamedTuple):
    """Copies that are under way: they are waited for, and then something is done with them."""

    arrived: Callable[[], Sequence[Tensor]]
    then: Callable[..., object]
    size: int


class Readback:
    """Tensors of a device on their way to this process, which does not wait for the device while it computes them.

    What is done with each is done in the order in which they were put, at the latest in `finish`. What is on a CPU is there:
    it is used at once, and not copied.
    """

    def __init__(self, most: int = PENDING) -> None:
        """most: bytes that are under way at once; for more, the oldest are waited for."""
        self._most, self._held = most, 0
        self._pending: deque[Pending] = deque()

    def put(self, tensors: Sequence[Tensor], then: Callable[..., object]) -> None:
        """Call `then` with the tensors as the CPU has them. Nobody may write into them before that."""
        self._pending.append(Pending(sent(tensors), then, sum(tensor.nbytes for tensor in tensors)))
        self._held += self._pending[-1].size
        if all(tensor.device.type == "cpu" for tensor in tensors) and len(self._pending) == 1:
            self.finish()
        while self._held > self._most:
            self._use_oldest()

    def finish(self) -> None:
        """Wait for what is under way, and use it."""
        while self._pending:
            self._use_oldest()

    def _use_oldest(self) -> None:
        oldest = self._pending.popleft()
        self._held -= oldest.size
        oldest.then(*oldest.arrived())


def sent(tensors: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """Send tensors of one device to the CPU; what comes back waits for them and gives them.

    From CUDA a stream of its own copies them, after what computes them and beside what follows; from other accelerators they
    are copied here and now.
    """
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        here = [tensor.cpu() for tensor in tensors]
        return lambda: here
    side, there = _stream(device), torch.cuda.Event()
    side.wait_stream(torch.cuda.current_stream(device))
    copies = []
    with torch.cuda.stream(side):
        for tensor in tensors:
            copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True))
            tensor.record_stream(side)  # its memory is nobody else's before it was copied
        there.record(side)

    def arrived() -> Sequence[Tensor]:
        there.synchronize()
        return [copy.clone() for copy in copies]  # memory that can't be swapped is not for keeping

    return arrived


def fetched(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tensors of one device as the CPU has them: waited for once, all together."""
    return sent(tensors)()


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies from a device."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
