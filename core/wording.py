"""Counts and lists of things in sentences."""

from collections.abc import Sequence


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first few items, separated by commas, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def count_of(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun: "1 file", "2,000 files"; `plural` where it does not end in one more s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
