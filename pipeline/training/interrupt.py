"""Ctrl-C, or an engine's SIGTERM, in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class BetweenRows(KeyboardInterrupt):
    """An interrupt obeyed where weights, optimiser, journal and measurements agree: only then is the state worth
    keeping. Any other may have come halfway through an update or a measurement."""


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM is noticed between two rows, where weights and optimiser agree; a second one is obeyed
    at once, and one that came after the last row when all is done."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        asked.set()
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore()
    if asked.is_set():
        raise KeyboardInterrupt
