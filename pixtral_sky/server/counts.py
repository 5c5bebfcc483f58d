"""What /metrics says of the gateway, beside vLLM's own. Labels are words of this code, never a client's."""

import functools


@functools.cache
def counter(name, what, labels):
    from prometheus_client import Counter

    return Counter(f"pixtral_gateway_{name}", what, labels)


def count(name, what, **labels):
    found = counter(name, what, tuple(labels))
    (found.labels(**labels) if labels else found).inc()
