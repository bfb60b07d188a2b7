"""SIGTERM, SIGINT and SIGHUP as bytes on a socket, heard by a thread that waits for nothing else; standard library.

Python runs a signal handler between two instructions of the main thread, which may sit in one call of torch for
seconds. The wake-up descriptor is written by the C handler at once, whatever the main thread does.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Final

HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last is a terminal that went away: a closed window, a connection that broke."""

_pair: list[socket.socket] = []
"""Reading and writing end, once installed: one process has one set of signal handlers."""


def install() -> None:
    """Begin to listen. The main thread calls this in its first lines, before anything that takes time is imported."""
    if _pair:
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    _pair.extend((reader, writer))
    for one in HEARD:
        if one is signal.SIGHUP and signal.getsignal(one) is signal.SIG_IGN:
            continue  # nohup: the training is to outlive its terminal
        signal.signal(one, _ignore)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)


def wait() -> signal.Signals:
    """Block until the next of them and return which it was."""
    if not _pair:
        raise RuntimeError("signals.install() comes first")
    while True:
        heard = _pair[0].recv(1)
        if heard and heard[0] in HEARD:
            return signal.Signals(heard[0])


def _ignore(number: int, frame: object) -> None:
    """Keep the default action from ending the process: the byte on the socket is what counts."""


def _forget() -> None:
    """Give a forked child its own signals: it would write into its parent's descriptor."""
    if not _pair:
        return
    signal.set_wakeup_fd(-1)
    for one in HEARD:
        if signal.getsignal(one) is _ignore:
            signal.signal(one, signal.SIG_DFL)
    while _pair:
        _pair.pop().close()
