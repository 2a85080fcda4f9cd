"""Waiting for what happens when it happens."""

import time


def until(what, seconds, shown=None):
    """The first true value of `what()`, asked again and again; what `shown()` says is in the error if `seconds` pass without one.

    An assertion or a refused connection within it counts as not yet.
    """
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            value = what()
            if value:
                return value
            last = value
        except (AssertionError, OSError, KeyError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {last!r} {shown() if shown else ''}")
