"""An error in a run of several processes: the first process says it once, and all of them end."""

import atexit
import os
import sys
import threading
from datetime import timedelta
from typing import Any

from lightning_fabric import Fabric
from torch.distributed import TCPStore

from core import errors

PATIENCE = timedelta(seconds=30)
"""Time that a process waits for the first one to end it."""


def share_errors(fabric: Fabric) -> None:
    """Let the first process say the errors of all processes from now on, and end the processes of its machine.

    Without it every process would print the same sentence, and those that did not meet the error would wait for the
    others until a time limit.
    """
    strategy: Any = fabric.strategy
    host = strategy.cluster_environment.main_address
    main = fabric.global_rank == 0
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False) if main else None
    port = fabric.broadcast(store.port if store else 0)
    if store is None:
        store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        errors.say = lambda sentence: _send(store, sentence)
        return
    said = threading.Lock()
    children = getattr(strategy.launcher, "procs", [])

    def end(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)
        for child in children:
            child.kill()

    def say(sentence: str) -> None:
        said.acquire()  # and never release: one error is said, and the other thread ends the process
        end(sentence)

    def watch() -> None:
        while not ended.wait(0.2):
            if store.check(["sentence"]):
                if said.acquire(blocking=False):
                    end(store.get("sentence").decode())
                    sys.stdout.flush()
                    os._exit(2)  # the main thread may be waiting for a process that has ended
                return

    ended, watcher = threading.Event(), threading.Thread(target=watch, daemon=True)
    errors.say = say
    watcher.start()
    atexit.register(watcher.join)
    atexit.register(ended.set)


def _send(store: TCPStore, sentence: str) -> None:
    """Leave the sentence to the first process; it is gone already if it has met the error, too."""
    try:
        store.set("sentence", sentence)
        store.wait(["end"], PATIENCE)
    except RuntimeError:
        return
