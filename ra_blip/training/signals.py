"""A run that is asked to stop finishes its step, saves and leaves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what a batch system sends before it takes the machine away


class Stop:
    """Whether a signal asked this process to stop.

    Attributes:
        asked: the signal's name, None as long as there was none.
    """

    def __init__(self) -> None:
        self.asked: str | None = None

    def __bool__(self) -> bool:
        return self.asked is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:  # the second one: at once, as without a handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = signal.Signals(number).name


@contextmanager
def stopping() -> Iterator[Stop]:
    """Inside, SIGTERM and SIGUSR1 set a flag instead of ending the process; a second one ends it at once.

    Signals can be taken by the main thread only; elsewhere the flag is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
