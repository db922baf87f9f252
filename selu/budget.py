"""What learning costs: tokens that models read, wrote and were trained on.

Engines and trainers count; who wants to know counts along with :func:`counted`. Nobody listening costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass

__all__ = ["Tokens", "count_tokens", "counted"]


@dataclass
class Tokens:
    """Tokens, those that stand for a picture included."""

    read: int = 0
    """Of prompts, and of choices whose probability was asked for."""
    written: int = 0
    """Generated, the end of the turn included."""
    trained: int = 0
    """Of training rows, once for each time that a row was trained on."""

    def as_dict(self) -> dict[str, int]:
        """As it is kept in an artifact's provenance."""
        return asdict(self)


_listening: ContextVar[Tokens | None] = ContextVar("tokens", default=None)


@contextlib.contextmanager
def counted() -> Iterator[Tokens]:
    """Count what is read, written and trained on in this block, by the thread that runs it; outer blocks count on."""
    tokens, outer = Tokens(), _listening.get()
    token = _listening.set(tokens)
    try:
        yield tokens
    finally:
        _listening.reset(token)
        if outer is not None:
            outer.read += tokens.read
            outer.written += tokens.written
            outer.trained += tokens.trained


def count_tokens(*, read: int = 0, written: int = 0, trained: int = 0) -> None:
    """Add to the count of the block that listens, if there is one."""
    tokens = _listening.get()
    if tokens is not None:
        tokens.read += read
        tokens.written += written
        tokens.trained += trained
