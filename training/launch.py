"""Starting the other processes of a run, ending them with it, and ending it with any of them.

The first rank is the program itself: it holds the run's lock, so a free lock still means a dead
run.  It starts the others and watches them.  When one dies, however it does, the run ends as if
it had been killed, and goes on from its last checkpoint when it is started again; when the first
one dies, the others see it and end too.
"""

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import resolve_device
from training.config import RunConfig
from training.events import EventLog
from training.exit_status import EXIT_FAILED, EXIT_RANK_DIED
from training.memory.shortage import OUT_OF_MEMORY, is_out_of_memory
from training.ranks import Ranks

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
# A dead process is noticed by watching it, and never by waiting for it: a look at the calibration
# frames, for which the others wait, may take long.
COLLECTIVE_TIMEOUT = timedelta(days=2)
# How long a broken connection may be noticed before the death that broke it.
DEATH_GRACE_S = 15.0
# An error that all ranks run into reaches the first one in this time as well.
OWN_WORDS_S = 5.0

# Returns None, or why it failed: code, detail and hint.
RankWork = Callable[[Path, RunConfig, Ranks], dict[str, Any] | None]


@contextmanager
def all_ranks(
    run_dir: Path, config: RunConfig, work: RankWork, events: EventLog
) -> Generator[Ranks]:
    """Start the run's other processes and yield the first one's place among them.

    Args:
        run_dir: The run's directory.
        config: The run's; with one device nothing is started.
        work: What each of the others does, a function of a module.
        events: Told why the run ends, if another process is the reason.

    Side effects: a process group, until the block ends; on a CPU the threads are shared among the
    processes. When another process dies, this one ends at once, with `EXIT_RANK_DIED`, or with
    `EXIT_FAILED` and a ``failed`` event if the other one said why, unless that is its memory.
    """
    if config.devices == 1:
        yield Ranks()
        return
    threads = torch.get_num_threads()
    # torch.distributed exports it, but not to a type checker; port 0 is any that is free.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        LOCALHOST, 0, config.devices, is_master=True, wait_for_workers=False
    )
    others = _Others(run_dir, config, work, store.port, events)
    try:
        yield _join(config, 0, store)
        dist.barrier()
        others.dismiss()
    except RuntimeError as error:
        # Otherwise a connection broke: the death of another process is on its way to the watcher,
        # which then ends this one.
        if not is_out_of_memory(error):
            others.wait_for_death()
        raise
    finally:
        others.end()
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(config: RunConfig, rank: int, store: Any) -> Ranks:
    """Meet the other processes; returns when all of them are there."""
    # All ranks are on this machine, whose other interfaces may be down or have no name.
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    backend = "gloo"
    if resolve_device(config.device).type == "cuda":
        # What ranks tell each other besides tensors of the device goes through the CPU.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // config.devices))
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=config.devices, timeout=COLLECTIVE_TIMEOUT
    )
    return Ranks(rank, config.devices, lockstep=config.in_lockstep)


class _Others:
    """The processes of all ranks but the first, under the eyes of a thread."""

    def __init__(
        self, run_dir: Path, config: RunConfig, work: RankWork, port: int, events: EventLog
    ) -> None:
        self._events = events
        self._ending = threading.Event()
        # A spawned process has nothing of this one's threads and locks, and none of its GPU state.
        context = multiprocessing.get_context("spawn")
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        for rank in range(1, config.devices):
            own_end, other_end = context.Pipe()
            process = context.Process(
                target=_be_other_rank,
                args=(run_dir, config, rank, port, work, other_end),
                name=f"rank {rank}",
                daemon=True,
            )
            process.start()
            other_end.close()
            self._processes.append((process, own_end))
        self._watcher = threading.Thread(target=self._watch, name="rank watcher", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        waiting = {process.sentinel: (process, pipe) for process, pipe in self._processes}
        while waiting:
            for sentinel in wait(list(waiting)):
                assert isinstance(sentinel, int)
                process, pipe = waiting.pop(sentinel)
                process.join()
                if process.exitcode != 0 and not self._ending.is_set():
                    self._end_run(process, _received(pipe, timeout_s=0))

    def _end_run(self, process: SpawnProcess, explanation: dict[str, Any] | None) -> None:
        """End this program from the watching thread: the main one waits for a dead process."""
        logger.error("%s ended with exit code %s", process.name, process.exitcode)
        # What is wrong for all of them this process finds itself, and says so in its own words.
        if explanation is not None and self._ending.wait(OWN_WORDS_S):
            return
        # With less memory the run goes on, once it is started again.
        failed = explanation if explanation and explanation["code"] != OUT_OF_MEMORY else None
        if failed is not None:
            self._events.write("failed", **failed)
        else:
            self._events.warning(
                "rank_died",
                f"{process.name} ended with exit code {process.exitcode}; started again, the run "
                "goes on from its last checkpoint",
            )
        for other, _ in self._processes:
            other.kill()
        os._exit(EXIT_RANK_DIED if failed is None else EXIT_FAILED)

    def wait_for_death(self) -> None:
        """Give the watcher time to notice a death that has broken a connection already."""
        self._watcher.join(DEATH_GRACE_S)

    def dismiss(self) -> None:
        """Let the others go, which are through with their work."""
        self._ending.set()
        for _, pipe in self._processes:
            pipe.close()
        for process, _ in self._processes:
            process.join(DEATH_GRACE_S)

    def end(self) -> None:
        """Kill what is still at work: this process is not."""
        self._ending.set()
        for process, _ in self._processes:
            process.kill()
            process.join()


def _be_other_rank(
    run_dir: Path, config: RunConfig, rank: int, port: int, work: RankWork, pipe: Connection
) -> None:
    """Do a rank's work; the main function of its process."""
    threading.Thread(target=_end_with_parent, name="parent watcher", daemon=True).start()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s [rank {rank}] %(message)s"
    )
    store = dist.TCPStore(  # type: ignore[attr-defined]
        LOCALHOST, port, config.devices, is_master=False, wait_for_workers=False
    )
    explanation = work(run_dir, config, _join(config, rank, store))
    if explanation is not None:
        pipe.send(explanation)
        sys.exit(EXIT_FAILED)
    dist.barrier()
    # The first rank may still be reading from this one's sockets; it closes the pipe afterwards.
    _received(pipe, timeout_s=None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(EXIT_RANK_DIED)


def _received(pipe: Connection, *, timeout_s: float | None) -> dict[str, Any] | None:
    """Return what the other end sent; None if it sent nothing or is gone."""
    try:
        message: dict[str, Any] | None = pipe.recv() if pipe.poll(timeout_s) else None
    except (EOFError, OSError):
        return None
    return message
