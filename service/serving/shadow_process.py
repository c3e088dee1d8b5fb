"""A hold on the process that a shadow model runs in: starts it, asks it, ends it."""

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from service.serving.uploaded_frame import UploadedFrame
from service.storage import Storage

logger = logging.getLogger(__name__)

# A process that died, or did not answer, is not started again sooner: starting takes a core for
# seconds.
_PAUSE_S = 30.0
# A process that gives way to everything gets a hundredth of a core that others want, and one that
# has just been started has libraries and weights to load.  Frames are dropped meanwhile.
_ANSWER_S = 600.0
_FIRST_ANSWER_S = 3600.0


class ShadowFailed(Exception):  # noqa: N818 - the name says what is the case.
    """The shadow model gave no answer; the message says why."""


class ShadowProcess:
    """Asks a model on trial about frames, in a process of its own; for one thread.

    Args:
        storage: Where bundles are.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        niceness: 0 to 19; how far it gives way to the line where both want a core.

    Side effects: the first question starts a process; `stop` and `release` end it.
    """

    def __init__(self, storage: Storage, device: str, niceness: int) -> None:
        self._storage = storage
        self._device = device
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at_s = 0.0
        self._is_stopped = False
        self._has_answered = False

    def ask(self, model_id: str, frame: UploadedFrame) -> dict[str, Any]:
        """Return what a model says of a frame: ``verdict``, ``defects`` and ``warnings``.

        Raises:
            ShadowFailed: It does not suit the frame, did not answer in time, or its process died.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        header = {
            "bundle": str(self._storage.bundle_dir(model_id)),
            "device": self._device,
            "name": frame.name,
            "bytes": len(frame.raw),
            "layout": None if frame.layout is None else asdict(frame.layout),
        }
        limit_s = _ANSWER_S if self._has_answered else _FIRST_ANSWER_S
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(header).encode() + b"\n" + frame.raw)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            raise self._gone(process, limit_s)
        self._has_answered = True
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ShadowFailed(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process, whatever it is at; another thread may be waiting for its answer."""
        self._is_stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def release(self) -> None:
        """Let go of a process that was stopped, once nobody asks any more."""
        if self._process is None:
            return
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What could not be written to a process that has gone is nobody's loss.
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._is_stopped:
            raise ShadowFailed("the service is being stopped")
        if self._process is not None and self._process.poll() is None:
            return self._process
        if time.monotonic() < self._start_at_s:
            raise ShadowFailed("its process ended and is not started again so soon")
        self.release()
        self._has_answered = False
        self._process = subprocess.Popen(  # noqa: S603 - our own program and number.
            [sys.executable, "-m", "service.serving.shadow_program", str(self._niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C reaches the whole foreground group; this one ends with its input.
            process_group=0,
        )
        logger.info("the shadow is process %d", self._process.pid)
        return self._process

    def _gone(self, process: "subprocess.Popen[bytes]", limit_s: float) -> ShadowFailed:
        process.kill()
        status = process.wait()
        self._start_at_s = time.monotonic() + _PAUSE_S
        self.release()
        logger.warning("the shadow's process ended with %d", status)
        return ShadowFailed(f"its process ended with {status}, or had no answer in {limit_s:g} s")
