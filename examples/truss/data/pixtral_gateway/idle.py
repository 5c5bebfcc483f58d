"""The clock that ends an idle server, so that its machine does not cost money."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

# Seconds without a byte in or out after which a request in flight no longer keeps the server alive: longer
# than any answer that is not streamed, shorter than the night of a laptop that was shut during one.
STALLED = 3600


class IdleClock:
    """``minutes`` without a request end the server; 0: never.

    ``state`` is a folder that outlives the server: its file "last_request" is as old as the last request, and
    "idle" says that the clock has ended the server.
    """

    def __init__(self, minutes, state):
        self.seconds = minutes * 60
        self.state = state if minutes > 0 else ""
        self.in_flight = 0
        self.last = time.monotonic()

    @contextlib.contextmanager
    def request(self, send):
        """Count a request; gives its ``send``, which tells the clock of each byte."""

        async def noted_send(message):
            await send(message)
            self.last = time.monotonic()

        self.in_flight += 1
        self.last = time.monotonic()
        self.write("last_request")
        try:
            yield noted_send
        finally:
            self.in_flight -= 1
            self.last = time.monotonic()
            self.write("last_request")

    def write(self, name):
        """Touch a file for the script and the next server. A full disk does not matter."""
        if self.state:
            with contextlib.suppress(OSError):
                Path(self.state, name).touch()

    def seconds_since_last_request(self):
        """Across restarts of the server; 0 without a request before."""
        if self.state:
            with contextlib.suppress(OSError):
                return max(time.time() - Path(self.state, "last_request").stat().st_mtime, 0)
        self.write("last_request")
        return 0

    async def run(self):
        if not self.seconds:
            return
        left = self.seconds - self.seconds_since_last_request()
        self.last = time.monotonic() + left - self.seconds
        while left > 0:
            await asyncio.sleep(max(min(left, self.seconds), 0.5))
            patience = self.seconds + (STALLED if self.in_flight else 0)
            left = self.last + patience - time.monotonic()
        print(f"gateway: no request for {self.seconds / 60:g} minutes: ending the server", flush=True)
        self.write("idle")
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM finishes its answers and frees the GPU
