"""Telling that memory ran out from any other failure, and giving back what can be given back."""

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator

import torch

# The code of errors that tell of it.
OUT_OF_MEMORY = "out_of_memory"
# What PyTorch's CPU allocator, oneDNN, OpenCV and CUDA's libraries say when memory is out;
# the exceptions themselves are plain RuntimeErrors and cv2.errors.
_TOLD = re.compile(
    r"can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|"
    r"Insufficient memory|Failed to allocate|CUDA (?:error: )?out of memory|"
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|"
    r"could not (?:create|execute) a primitive",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        told = isinstance(seen, RuntimeError) or type(seen).__module__.startswith("cv2")
        if told and _TOLD.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class LookRanOut(MemoryError):  # noqa: N818 - as `OutOfMemory` it says what is the matter.
    """Memory ran out while whole frames were looked at, and not in a training step."""


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Let what runs out of memory in the block say that it was a look at whole frames.

    Raises:
        LookRanOut: In place of any other error that tells of a lack of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise LookRanOut(str(error)) from error


def return_free_pages() -> None:
    """Give back what the C library keeps of freed memory, where one phase of a run follows another.

    After some training steps on a CPU glibc's heap holds a few hundred megabytes between blocks in
    use, and a look at whole frames or a checkpoint, which need blocks of other sizes, would come on
    top.  It takes milliseconds, unlike all of `release_memory`.
    """
    with contextlib.suppress(AttributeError, OSError):
        # glibc's; other C libraries keep less and have no such call.
        ctypes.CDLL(None).malloc_trim(0)


def _drop_failed_backward() -> None:
    """Let go of the graph of a backward pass that failed halfway on this thread.

    PyTorch keeps the nodes that were next in the thread's queue, and through them every activation
    of the step; only another backward pass drops them, and it does so first, since nodes whose pass
    is over come to the front of the queue (``ReadyQueue`` in ``torch/csrc/autograd/engine.cpp``).
    """
    torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


def release_memory() -> None:
    """Give back all that nothing refers to any more, on the device too."""
    _drop_failed_backward()
    gc.collect()
    return_free_pages()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
