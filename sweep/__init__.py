"""Data-efficiency studies: what is the next label worth, and does pretraining save any?"""

import sys
from os.path import dirname

# `python -m` searches the working folder first, where other packages may be called `core` or `data`.
_path, sys.path = sys.path, [dirname(__path__[0]), *sys.path]
import classify  # noqa: E402, F401
import core.interrupts  # noqa: E402, F401  # ends Ctrl-C in one line from here on
import pretrain  # noqa: E402, F401
import segment  # noqa: E402, F401

sys.path = _path
