"""Mistakes, and the line that names each."""

from collections.abc import Callable

import pytest


def refuses(message: str, call: Callable, /, *given: object, **options: object) -> None:
    """A call ends in a ValueError whose text matches ``message``."""
    with pytest.raises(ValueError, match=message):
        call(*given, **options)
