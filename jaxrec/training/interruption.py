"""SIGTERM and Ctrl-C as a question the loop asks between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """The run was asked to stop and has saved itself. Exit code 0: starting it again resumes it."""

    def __init__(self, step: int) -> None:
        """
        Args:
            step: the step that was saved.
        """
        super().__init__(0)
        self.step = step


class Interruption:
    """While entered, SIGTERM and SIGINT only raise a flag; the old handlers come back afterwards.

    A second SIGINT interrupts at once, without a save. Signals reach Python's main thread only, so
    elsewhere nothing is changed. On several hosts the signal that one of them receives must stop
    all at the same step, which is what jax's preemption service arranges.
    """

    def __init__(self) -> None:
        self._flag = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def requested(self, step: int) -> bool:
        """Whether the loop should save and stop before step `step + 1`."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._flag

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._flag = True
