"""Commands as the user can repeat them: `fewslice segment` after the console command, else `python -m segment`."""

import re
import sys

NAME = re.compile(r"\bpython -m ((?:annotate|classify|data|encoders|engine|pretrain|segment|sweep)\b)")
"""A command of this software in a text; after `uv tool install .` its modules cannot be imported by `python`."""


def program(command: str) -> str:
    """A command, such as "segment.predict" or "annotate next", in the spelling that started this process.

    Processes that a study starts inherit its spelling with `sys.argv`.
    """
    return f"fewslice {command}" if "".join(sys.argv[:1]).startswith("fewslice ") else f"python -m {command}"


def in_same_spelling(text: str) -> str:
    """A sentence in which every `python -m COMMAND` is spelled by `program`."""
    return NAME.sub(lambda found: program(found[1]), text)
