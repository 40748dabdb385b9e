"""BYOL and the stages generalist, specialist and hierarchical."""

import sys
from os.path import dirname

# `python -m` searches the working folder first, where other packages may be called `core` or `data`.
_path, sys.path = sys.path, [dirname(__path__[0]), *sys.path]
import core.interrupts  # noqa: E402, F401  # ends Ctrl-C in one line from here on
import engine  # noqa: E402, F401

sys.path = _path
