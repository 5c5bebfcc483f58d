"""Ctrl-C, at a moment that a test chooses."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c(when: Callable[[], bool]) -> Iterator[None]:
    """Interrupt the main thread once ``when`` is true. The handler is Python's own, whatever it was before."""

    def interrupt() -> None:
        while not when():
            time.sleep(0.005)
        time.sleep(0.02)
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
