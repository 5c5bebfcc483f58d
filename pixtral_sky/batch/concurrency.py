"""How many requests of a batch are on their way at once: as many as make it faster, and no more. Pure.

What an endpoint can do at once nobody knows beforehand: its GPUs, its replicas and the prompts decide. So it
is tried. With a limit of ``limit`` requests the answers of a while are counted; then, with another limit,
again. A larger one is kept where it brings a good part of what its size promises (WORTH), a smaller one where
it costs less than that, and the next step goes the same way. Else the limit before is taken again, and stays
for a while.

What a server refuses for being busy, or drops, cuts the limit at once.
"""

from __future__ import annotations

START = 8
# vLLM computes 256 at once and queues the rest; prompts with pictures fill a GPU long before.
MOST = 256
# Requests a second, towards what may be SkyServe's balancer: one process, that passes on some 200 a second
# for all its users.
PER_SECOND = 150.0

WORTH = 0.2  # of a proportional gain: twice the limit has to bring 20 % more answers
FIRST_STEP, STEP = 2.0, 1.5  # the factor between two limits, at the beginning and later
COUNTED = 32  # answers that a count takes at least, and twice the limit
COUNT_SECONDS = 0.5  # that it takes at least
HOLD = 10  # counts at the same limit between two tries
SLOWER = 0.7  # answers a second, of those before: below it a smaller limit is tried soon
SLOW_SECONDS = 120.0  # where an answer takes longer, no larger limit is tried
CUT = 0.7  # what is left of the limit when the endpoint is busy
TOLERATED = 0.05  # of requests that are refused or lost now and then, which is no reason for fewer


class Pace:
    """The limit, and when the next request may start. Times are seconds of one clock; not for threads.

    With ``fixed`` the limit is that, whatever happens.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.limit = fixed or START
        self._fixed = fixed is not None
        self._next_start = 0.0
        self._not_before = 0.0  # an endpoint that is busy is left alone until then
        self._rate = (
            0.0  # answers a second at this limit; of before a try: at the one that it is compared with
        )
        self._before = 0  # the limit before a try; 0: there is none
        self._step = FIRST_STEP  # until something speaks against a larger limit
        self._up = True  # the direction of the next try
        self._hold = 0  # counts until then
        self._was_cut = False  # and none of what was asked for since has been answered
        self._troubles = 0.0  # less TOLERATED for each answer
        self._begin(0.0)

    def wait(self, now: float) -> float:
        """Seconds until a request may start; 0: it starts now, and is counted as started."""
        ready = max(self._next_start, self._not_before)
        if ready > now:
            return ready - now
        # Of what a pause has saved up, a tenth of a second is made good for.
        self._next_start = max(self._next_start, now - 0.1) + 1 / PER_SECOND
        return 0.0

    def answered(self, now: float, seconds: float) -> None:
        """An answer has come whole, ``seconds`` after it was asked for."""
        self._troubles = max(self._troubles - TOLERATED, 0.0)
        if self._fixed:
            return
        if self._settling:  # it was asked for at the limit before
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
        """An answer has broken off: something there is dying."""
        self._troubles += 1
        # One alone says little; and many that are lost for one reason cut the limit once.
        if self._fixed or self._was_cut or self._troubles < 2:
            return
        self.limit = max(int(self.limit * CUT), 1)
        self._rate, self._before, self._step, self._up, self._hold = 0.0, 0, STEP, True, HOLD
        self._was_cut, self._troubles = True, 0.0
        self._begin(now)

    def busy(self, now: float, wait: float = 0.0) -> None:
        """The endpoint has refused a request for now, and asks to ``wait`` so long."""
        self.lost(now)
        self._not_before = max(self._not_before, now + wait)

    def _begin(self, now: float) -> None:
        """Begin to count, after all that is on its way."""
        self._settling = self.limit
        self._answers, self._seconds, self._since = 0, 0.0, now

    def _judge(self, rate: float, seconds: float) -> None:
        """What follows from a count: ``rate`` answers a second, that took ``seconds`` each."""
        if self._before:
            worth = rate >= self._rate * (1 + WORTH * (self.limit / self._before - 1))
            if not worth:
                self.limit, self._before, self._step = self._before, 0, STEP
                self._up, self._hold = not self._up, HOLD
                return
        elif self._rate and rate < SLOWER * self._rate:
            self._up, self._hold = False, 1  # this count was of both, before and after
        self._rate = rate
        if self._hold:
            self._hold -= 1
        else:
            self._try(seconds)

    def _try(self, seconds: float) -> None:
        """Take another limit, to be judged by its count."""
        self._up = self._up and seconds <= SLOW_SECONDS
        larger = min(max(int(self.limit * self._step), self.limit + 1), MOST)
        smaller = max(int(self.limit / self._step), 1)
        self._before, self.limit = self.limit, larger if self._up else smaller
        if self.limit == self._before:  # there is no other
            self._before, self._step, self._up, self._hold = 0, STEP, not self._up, HOLD
