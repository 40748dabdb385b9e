"""The known name that is nearest to an unknown one."""

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str]) -> str:
    """The name most like a word, capitals aside; empty if none is like it."""
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[near[0]] if near else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a sentence that refuses a word: "; did you mean dpt?", or nothing if no name is like it."""
    near = nearest(word, names)
    return f"; did you mean {near}?" if near else ""
