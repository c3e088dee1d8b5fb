"""Forward passes as CUDA graphs: recorded once for a shape, replayed without launching each kernel.

One frame of a line keeps a GPU busy for a few milliseconds, and starting its kernels one by one
from Python takes about as long.

All graphs of a device share one pool of memory, since one of them is replayed at a time and its
answer is taken out before the next one begins: eight models kept warm take the activations of the
hungriest, not those of eight (https://pytorch.org/docs/stable/notes/cuda.html, "Graph memory
management").  cuDNN chooses its algorithms by rule and not by trying them out (no
``cudnn.benchmark``): by rule the process that serves gets those whose verdicts were compared.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Libraries choose and allocate in their first calls, which must not be captured
# (https://pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs").
_WARMING_CALLS = 3


class CapturedForward:
    """One forward pass for one shape, recorded; for any thread, one at a time a device.

    Args:
        forward: From the camera's numbers on the device to contiguous answers there.
        example: Pixels in the host's memory, of the shape and dtype that are to come.
        device: A CUDA device.

    Side effects: the input's and the answer's memory stays taken while this lives, and the
    activations' while any captured pass of the device does.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], tuple[Tensor, ...]],
        example: Tensor,
        device: torch.device,
    ) -> None:
        self._shared = _shared_by(device)
        self._device = device
        # From here the device fetches pixels by itself; from ordinary memory the driver copies.
        self._staging = torch.empty(example.shape, dtype=example.dtype, pin_memory=True)
        self._input = example.to(device)
        self._graph = torch.cuda.CUDAGraph()
        with self._shared.capture(self) as (pool, stream):
            current = torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARMING_CALLS):
                    forward(self._input)
            current.wait_stream(stream)
            # Other threads go on using the device meanwhile, which the stricter mode forbids.
            with torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                self._answers = forward(self._input)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the answers in memory of the host that nobody else writes to."""
        with self._shared.replaying, torch.cuda.device(self._device):
            self._staging.copy_(pixels)
            self._input.copy_(self._staging, non_blocking=True)
            self._graph.replay()
            return to_host(self._answers)


def to_host(answers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return contiguous tensors of a CUDA device in the host's memory, when they have arrived.

    The memory is pinned, several times as fast to copy to, and torch keeps it for the next answer
    once this one is dropped.
    """
    arrived = []
    for answer in answers:
        host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
        arrived.append(host.copy_(answer, non_blocking=True))
    torch.cuda.current_stream(answers[0].device).synchronize()
    return tuple(arrived)


def release_cached_memory(device: torch.device) -> None:
    """Give memory of a CUDA device back that torch keeps for tensors to come; else do nothing."""
    if device.type != "cuda":
        return
    # The device must not be waited for while a graph is being captured.
    with _shared_by(device).capturing, torch.cuda.device(device):
        torch.cuda.empty_cache()


class CaptureUnderWay(Exception):  # noqa: N818 - it says what is the case.
    """Another thread is capturing; whoever has a frame to look at does not wait for it."""


class _SharedByGraphs:
    """What all graphs of one device share.

    Attributes:
        capturing: Held by who records: one at a time.
        replaying: Held from a frame's way in to its answer's way out.
    """

    def __init__(self, device: torch.device) -> None:
        self.capturing = threading.Lock()
        self.replaying = threading.Lock()
        self._device = device
        # Memory of the pool is used again on the stream that it was taken on.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: weakref.WeakSet[CapturedForward] = weakref.WeakSet()

    @contextlib.contextmanager
    def capture(self, graph: CapturedForward) -> Iterator[tuple[Any, torch.cuda.Stream]]:
        """Yield the pool and the stream to record a graph with.

        Raises:
            CaptureUnderWay: Another thread records.
        """
        if not self.capturing.acquire(blocking=False):
            raise CaptureUnderWay
        try:
            # Torch takes a pool whose graphs have all gone for lost: it may be freed any time.
            others = list(self._graphs)
            if not others:
                self._pool = torch.cuda.graph_pool_handle()
            with torch.cuda.device(self._device):
                yield self._pool, self._stream
            self._graphs.add(graph)
            del others
        finally:
            self.capturing.release()


class _ExactConvolutions:
    """Holds cuDNN to float32 as long as any thread is inside.

    Its default for float32 is TF32, ten bits of mantissa instead of twenty-three.  The switch is
    one for the whole process.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside = 0
        self._allowed_before = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._guard:
            if self._inside == 0:
                self._allowed_before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._inside += 1
        try:
            yield
        finally:
            with self._guard:
                self._inside -= 1
                if self._inside == 0:
                    torch.backends.cudnn.allow_tf32 = self._allowed_before


exact_convolutions = _ExactConvolutions()
_guard = threading.Lock()
_shared: dict[int, _SharedByGraphs] = {}


def _shared_by(device: torch.device) -> _SharedByGraphs:
    index = torch.cuda.current_device() if device.index is None else device.index
    with _guard:
        if index not in _shared:
            _shared[index] = _SharedByGraphs(torch.device("cuda", index))
        return _shared[index]
