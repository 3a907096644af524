"""Errors that reach a user: one line, "got X, expected Y; try Z"."""
from __future__ import annotations


class Mistake(Exception):
    """A mistake of the user: the command ends with 2 and says this."""

    def __init__(self, got: str, expected: str, attempt: str):
        super().__init__(f"got {got}, expected {expected}; try {attempt}")


def shown(value: object, longest: int = 60) -> str:
    """A value from a file as a message quotes it: on one line, without control characters, and short."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= longest else text[:longest - 3] + "..."
