"""TODO: one sentence that says what this module holds."""

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
    """Ends `Trainer.fit` from inside; not an Exception, so that nothing on the way takes it for a fault."""


@final
class BatchChannel:
    """Batches from this thread to one that runs a library's training loop, one at a time."""

    def __init__(self) -> None:
        self.batches: queue.Queue[Tensor | None] = queue.Queue(1)
        self.asked: queue.Queue[BaseException | None] = queue.Queue(1)
        self.thread: threading.Thread | None = None

    def start(self, loop: Callable[[], object]) -> None:
        """Run `loop` until it asks for its first batch."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                loop()
                self.asked.put(RuntimeError("the training loop ended by itself"))
            except StopTraining:
                pass
            except BaseException as error:  # noqa: BLE001 — handed to the thread that waits
                self.asked.put(error)

        self.thread = threading.Thread(target=run, daemon=True)
        quiet = io.StringIO()
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):  # its progress bar stays there
            self.thread.start()
            self._wait()
        torch.set_float32_matmul_precision(precision)

    def give(self, x: Tensor) -> None:
        """Hand over a batch [B, d] and wait until the loop asks for the next."""
        self.batches.put(x)
        self._wait()

    def take(self) -> Tensor:
        """In the loop's thread: ask for a batch."""
        self.asked.put(None)
        x = self.batches.get()
        if x is None:
            raise StopTraining
        return x

    def stop(self) -> None:
        """End the loop."""
        if self.thread is not None:
            self.batches.put(None)
            self.thread.join(timeout=60)

    def _wait(self) -> None:
        error = self.asked.get()
        if error is not None:
            raise error
