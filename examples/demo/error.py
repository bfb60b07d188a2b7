"""What ends the demo early: told in one sentence, without a stack trace."""

from __future__ import annotations


class DemoError(Exception):
    """Something that the demo cannot go on from; the message is for whoever watches."""
