"""Words that the messages of this package share."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_LISTED = 8


def listed(items: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(items) - _MOST_LISTED
    shown = ", ".join(items[:_MOST_LISTED])
    return f"{shown} and {more} more" if more > 0 else shown or "nothing"
