"""A connection whose request does not come is closed: strangers could hold so many that nobody else gets in.

What happens before a request is whole is uvicorn's, and never reaches a middleware.
"""

import contextlib
import functools

SECONDS = 15  # for the head of a request


def mend():
    """Let uvicorn's h11 protocol close such a connection. In another shape of uvicorn: nothing."""
    with contextlib.suppress(ImportError, AttributeError):
        from uvicorn.protocols.http.h11_impl import H11Protocol

        for name in ("connection_made", "data_received"):
            method = getattr(H11Protocol, name)
            if not hasattr(method, "__wrapped__"):
                setattr(H11Protocol, name, timed(method))


def timed(method):
    import h11

    @functools.wraps(method)
    def timed_method(self, given):
        method(self, given)
        answered = self.cycle is None or self.cycle.response_complete
        waits, timer = answered and self.conn.their_state is h11.IDLE, getattr(self, "head_timer", None)
        if waits and not timer:  # another byte does not prolong it
            self.head_timer = self.loop.call_later(SECONDS, self.transport.close)
        elif timer and not waits:
            timer.cancel()
            self.head_timer = None

    return timed_method
