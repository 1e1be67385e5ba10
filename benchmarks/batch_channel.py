"""Feed batches to a training loop that runs in a thread of its own."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor


class StopTraining(BaseException):
    """Stops the training loop from inside. Not an Exception, so that the loop does not handle it as an error."""


@final
class BatchChannel:
    """Passes batches, one at a time, to a thread that runs a library's training loop."""

    def __init__(self) -> None:
        self.batches: queue.Queue[Tensor | None] = queue.Queue(1)
        self.requests: queue.Queue[BaseException | None] = queue.Queue(1)
        self.thread: threading.Thread | None = None

    def start(self, loop: Callable[[], object]) -> None:
        """Start `loop` in a thread; return when it requests its first batch."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                loop()
                self.requests.put(RuntimeError("the training loop ended by itself"))
            except StopTraining:
                pass
            except BaseException as error:  # noqa: BLE001 — raised again in the waiting thread
                self.requests.put(error)

        self.thread = threading.Thread(target=run, daemon=True)
        quiet = io.StringIO()
        with (
            contextlib.redirect_stderr(quiet),
            contextlib.redirect_stdout(quiet),
        ):  # keeps this stream for its progress bar
            self.thread.start()
            self._wait()
        torch.set_float32_matmul_precision(precision)

    def send(self, x: Tensor) -> None:
        """Send a batch [B, d]; return when the loop requests the next one."""
        self.batches.put(x)
        self._wait()

    def receive(self) -> Tensor:
        """Request and return a batch; called in the loop's thread."""
        self.requests.put(None)
        x = self.batches.get()
        if x is None:
            raise StopTraining
        return x

    def stop(self) -> None:
        """Stop the loop."""
        if self.thread is not None:
            self.batches.put(None)
            self.thread.join(timeout=60)

    def _wait(self) -> None:
        error = self.requests.get()
        if error is not None:
            raise error
