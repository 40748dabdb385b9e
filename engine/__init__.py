"""What every training run needs: configuration, command line, sampler, training loop, checkpoints, run folder."""

import sys
from os.path import dirname

# `python -m` searches the working folder first, where other packages may be called `core` or `data`.
_path, sys.path = sys.path, [dirname(__path__[0]), *sys.path]
import core.interrupts  # noqa: E402, F401  # ends Ctrl-C in one line from here on
import data  # noqa: E402, F401
import encoders  # noqa: E402, F401

sys.path = _path
