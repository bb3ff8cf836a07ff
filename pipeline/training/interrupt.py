"""Ctrl-C, an engine's SIGTERM, or a closing terminal's SIGHUP, in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BetweenRows(KeyboardInterrupt):
    """An interrupt obeyed where weights, optimiser, journal and measurements agree: only then is the state worth
    keeping. Any other may have come halfway through an update or a measurement."""


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """The first of these signals is noticed between two rows, where weights and optimiser agree; a second one is obeyed
    at once, and one that came after the last row when all is done."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    heard = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in heard.items() if handler is not signal.SIG_IGN}  # nohup's stay so

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        asked.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore()
    if asked.is_set():
        raise KeyboardInterrupt
