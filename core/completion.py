"""Completion of `fewslice` in bash and zsh: commands, flags, and the values of flags that have few."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

BASH = """\
_fewslice() {
    local IFS=$'\\n'
    COMPREPLY=($(fewslice --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _fewslice fewslice
"""
SCRIPTS = {"bash": BASH, "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH}
"""What `eval "$(fewslice --completion SHELL)"` defines; where nothing is suggested, the shell completes paths."""


def suggestions(words: Sequence[str], run: Callable[[Sequence[str]], None]) -> list[str]:
    """What may stand in place of the last word of an unfinished command line, read from the help of the others.

    Args:
        words: the words after the name of the program; the last one is being typed.
        run: runs the command line that it gets.
    """
    *before, current = words
    text = _help(before, run) or _help(before[:1], run)  # flags may determine which others there are
    options = dict(_options(text))
    if current.startswith("-"):
        found = [*options]
    elif flags := [word for word in before if word.startswith("--")]:
        found = options.get(flags[-1], [])
    else:
        found = re.findall(r"^  ([a-z.]+) ", text.partition("\nexamples:")[0], re.MULTILINE)  # commands
    return [each for each in found if each.startswith(current)]


def _help(words: Sequence[str], run: Callable[[Sequence[str]], None]) -> str:
    """The help of a command line in one column; empty if the command line is refused."""
    output = io.StringIO()
    try:
        with (
            patch.dict("os.environ", {"COLUMNS": "80"}),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            run([*words, "--help"])
    except SystemExit as end:
        if end.code:
            return ""
    return output.getvalue()


def _options(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each flag of a help and its values; none if they are not listed."""
    for heading in re.findall(r"^[│ ] (--.*)", text, re.MULTILINE):
        listed = re.search(r"\{(\w[^}]*,[^}]*)\}| (\w+(?:\|\w+)+) ", heading)
        for flag in re.findall(r"--[a-z][\w.-]*", heading):
            yield flag, re.split(r"[,|]", listed[1] or listed[2]) if listed else []
