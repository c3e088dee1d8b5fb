"""Measurements in processes of their own: one by one on a CPU, several at once on a GPU.

What a process holds of a GPU is counted for itself; its resident set is, too, but a CPU's memory
and cores are few.  Where time is measured nothing else may run.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

# So many tasks at once leave each of them memory enough on any GPU that trains on whole frames.
_MOST_AT_ONCE = 8
_LIBRARIES = ["benchmarks.preflight.steps", "segmentation_models_pytorch", "torch._dynamo"]


def at_once() -> int:
    """Return how many measurements of memory may be made at once."""
    if not torch.cuda.is_available():
        return 1
    return max(1, min(_MOST_AT_ONCE, (os.cpu_count() or 1) // 2))


def threads_each() -> int:
    """Return how many threads each of them may have."""
    return max(1, (os.cpu_count() or 1) // at_once())


def each_in_a_process(
    work: Callable[[Any], dict[str, Any]], tasks: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield what ``work`` makes of each task, in their order; None where its process failed.

    Args:
        work: A function of a module.
        tasks: Arguments by name.
    """
    # A fork of a process whose libraries have looked for a GPU can't use it.
    context: Any = multiprocessing.get_context("spawn" if at_once() > 1 else "forkserver")
    if at_once() == 1:
        # Libraries are loaded once; each process begins with nothing else.
        context.set_forkserver_preload(_LIBRARIES)

    def run(task: Any) -> dict[str, Any] | None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(work, task, sender))
        process.start()
        sender.close()
        try:
            answer: dict[str, Any] | None = receiver.recv()
        except EOFError:
            answer = None
        process.join()
        return answer

    with ThreadPoolExecutor(at_once()) as pool:
        yield from zip(tasks, pool.map(run, tasks.values()), strict=True)


def _answer(work: Callable[[Any], dict[str, Any]], task: Any, sender: Any) -> None:
    if at_once() > 1:
        torch.set_num_threads(threads_each())
    sender.send(work(task))
