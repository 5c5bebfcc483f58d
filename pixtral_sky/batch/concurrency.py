"""How many requests of a batch are in flight at once: as many as make it faster. Pure.

GPUs, replicas and prompts decide what an endpoint can do at once, so the limit is found by trial. The answers
at one limit are counted for a while, then those at another. A larger limit is kept when it brings enough of a
proportional gain (WORTH), a smaller one when it costs less than that; the next trial goes in the same
direction. Otherwise the limit goes back and is held for a while.

A request that is refused as busy starts a trial of a smaller limit: where a server can do no more, it costs
nothing and is kept; where it refuses whatever the limit is, the limit goes back. Lost answers cut the limit.
"""

from __future__ import annotations

START = 8
# vLLM computes 256 at once and queues the rest; prompts with pictures fill a GPU long before.
MOST = 256
# Requests a second: SkyServe's balancer is one process, which passes on some 200 a second for all its users.
PER_SECOND = 150.0

WORTH = 0.2  # of a proportional gain: twice the limit has to bring 20 % more answers
FIRST_STEP, STEP = 2.0, 1.5  # the factor between two limits, at the beginning and later
COUNTED = 32  # the fewest answers of a count; or twice the limit, if that is more
COUNT_SECONDS = 0.5  # the shortest count
HOLD = 10  # counts at the same limit between two trials
SLOWER = 0.7  # below this share of the last rate, a smaller limit is tried soon
SLOW_SECONDS = 120.0  # where answers take longer, no larger limit is tried
CUT = 0.7  # what is left of the limit when the endpoint is busy
# Refused requests for each answer whose places others take while they wait. Where half is refused, all places
# are used; where more is, it is for being too many.
SPARED = 1.25
TOLERATED = 0.05  # the share of requests that may be refused or lost without a cut


class Limiter:
    """The ``limit``, and when the next request may start. ``fixed`` fixes the limit.

    Times are seconds of one clock. Not thread-safe.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.limit = fixed or START
        self._fixed = fixed is not None
        self._next_start = 0.0
        self._not_before = 0.0  # a busy endpoint is left alone until then
        self._rate = 0.0  # answers a second at this limit; in a trial, at the limit before
        self._before = 0  # the limit before a trial; 0: no trial
        self._step = FIRST_STEP  # until a larger limit has failed
        self._up = True  # the direction of the next trial
        self._hold = 0  # counts until then
        self._bears = 0  # counts in which a busy server is no reason for a trial, as one has just been
        self._was_cut = False  # and no request that started since has been answered
        self._troubles = 0.0  # less TOLERATED for each answer
        self._spared = float(START)  # SPARED for each answer, less those that have been
        self._begin(0.0)

    def wait(self, now: float) -> float:
        """Seconds until a request may start; at 0 it is counted as started."""
        ready = max(self._next_start, self._not_before)
        if ready > now:
            return ready - now
        # Allow a burst of at most 0.1 s after a pause.
        self._next_start = max(self._next_start, now - 0.1) + 1 / PER_SECOND
        return 0.0

    def answered(self, now: float, seconds: float) -> None:
        """A whole answer has come, ``seconds`` after its request."""
        self._troubles = max(self._troubles - TOLERATED, 0.0)
        self._spared = min(self._spared + SPARED, self.limit)
        if self._fixed:
            return
        if self._settling:  # its request started at the limit before
            self._settling -= 1
            self._since = now
            return
        self._was_cut = False
        self._answers += 1
        self._seconds += seconds
        if self._answers >= max(COUNTED, 2 * self.limit) and now - self._since >= COUNT_SECONDS:
            self._judge(self._answers / (now - self._since), self._seconds / self._answers)
            self._begin(now)

    def lost(self, now: float) -> None:
        """An answer broke off: something there is dying."""
        self._troubles += 1
        # A single loss is tolerated, and many with one cause cut the limit once.
        if self._fixed or self._was_cut or self._troubles < 2:
            return
        self.limit = max(int(self.limit * CUT), 1)
        self._rate, self._before, self._step, self._up, self._hold = 0.0, 0, STEP, True, HOLD
        self._was_cut, self._troubles = True, 0.0
        self._begin(now)

    def spares(self) -> bool:
        """Whether another request may take the place of one that was refused, until that is tried again."""
        if self._spared < 1:
            return False
        self._spared -= 1
        return True

    def busy(self, now: float, wait: float = 0.0, taken: int = 0) -> None:
        """The endpoint is busy, with ``taken`` requests in flight, and asks to ``wait`` so many seconds."""
        self._not_before = max(self._not_before, now + wait)
        self._troubles += 1
        if self._fixed or self._before or self._bears or not self._rate or self._troubles < 2:
            return
        self._bears, self._troubles = HOLD, 0.0
        smaller = min(max(taken, int(self.limit / STEP)), self.limit - 1)
        if smaller:
            self._before, self.limit, self._up = self.limit, smaller, False
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Begin a count, after the requests in flight."""
        self._settling = self.limit
        self._answers, self._seconds, self._since = 0, 0.0, now

    def _judge(self, rate: float, seconds: float) -> None:
        """Decide on a count: ``rate`` answers a second, which took ``seconds`` each."""
        self._bears = max(self._bears - 1, 0)
        if self._before:
            worth = rate >= self._rate * (1 + WORTH * (self.limit / self._before - 1))
            if not worth:
                self.limit, self._before, self._step = self._before, 0, STEP
                self._up, self._hold = not self._up, HOLD
                return
        elif self._rate and rate < SLOWER * self._rate:
            self._up, self._hold = False, 1  # this count saw the rate from before the change too
        self._rate = rate
        if self._hold:
            self._hold -= 1
        else:
            self._try(seconds)

    def _try(self, seconds: float) -> None:
        """Try another limit, to be judged by its count."""
        self._up = self._up and seconds <= SLOW_SECONDS
        larger = min(max(int(self.limit * self._step), self.limit + 1), MOST)
        smaller = max(int(self.limit / self._step), 1)
        self._before, self.limit = self.limit, larger if self._up else smaller
        if self.limit == self._before:  # at the end of the range
            self._before, self._step, self._up, self._hold = 0, STEP, not self._up, HOLD
