"""Data: readers, splits, the packed slice store, preprocessing, augmentation and synthetic phantoms."""

import sys
from os.path import dirname

# `python -m` searches the working folder first, where other packages may be called `core` or `data`.
_path, sys.path = sys.path, [dirname(__path__[0]), *sys.path]
import core  # noqa: E402
import core.interrupts  # noqa: E402, F401  # ends Ctrl-C in one line from here on

sys.path = _path
