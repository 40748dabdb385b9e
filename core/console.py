"""The `fewslice` command: `fewslice segment ...` is `python -m segment ...`, from any folder."""

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from os.path import dirname

from core.interrupts import end_quietly
from core.nearest import nearest

COMMANDS = {
    "pretrain": "pretrain an encoder on unlabelled images",
    "segment": "train a U-Net on few labels and score whole volumes",
    "segment.predict": "write label maps of images with a trained U-Net",
    "segment.agreement": "check the predicted Dice of an ensemble against references",
    "segment.evaluate": "score a folder of masks against a folder of reference masks",
    "classify": "train a classifier of exams and score it with intervals",
    "classify.predict": "write probabilities of exams with a trained classifier",
    "classify.compare": "compare two classifiers on the same exams",
    "classify.images": "train a classifier of images with classes",
    "classify.probe": "evaluate an encoder by a linear classifier of images",
    "annotate": "choose what to label first and next, and collect the labels",
    "sweep": "run a study of scores against numbers of labels",
    "sweep.report": "rebuild the report of a study",
    "sweep.forecast": "labels needed for a target score, and the worth of the next ones",
    "sweep.tables": "the results of studies beside those of the papers",
    "encoders.export": "write a trained network for timm, torchvision, segmentation_models, ONNX or TorchScript",
    "data.convert": "convert DICOM series, segmentations and structure sets to NIfTI",
    "data.inspect": "check every file of a data set and describe it",
    "data.phantom": "write a synthetic data set",
    "data.cache": "list the packed data in the cache, remove what is no longer used",
    "engine.replay": "repeat the training step whose loss was not finite",
}


def main() -> None:
    """Run the module that the first argument names, with the rest of the command line."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: fewslice COMMAND [OPTIONS]\n\ncommands (--help after a command lists its options):")
        print("\n".join(f"  {command:<18}{what}" for command, what in COMMANDS.items()))
        print("\nfewslice --version prints the version")
        print('completion in the shell: eval "$(fewslice --completion bash)", or zsh')
    elif name == "--version":
        print(f"fewslice {version('fewslice')}")
    elif name == "--completion":
        from core.completion import SCRIPTS  # the other commands need nothing of it

        if not arguments or arguments[0] not in SCRIPTS:
            print(f"error: --completion: name a shell, {' or '.join(SCRIPTS)}", file=sys.stderr)
            raise SystemExit(2)
        print(SCRIPTS[arguments[0]], end="")
    elif name == "--complete":
        from core.completion import suggestions

        print("\n".join(suggestions(arguments, _run)))
    elif name not in COMMANDS:
        near = nearest(name, [*COMMANDS, "--version"])
        hint = f"did you mean {near}?" if near else f"choose among {', '.join(COMMANDS)}"
        print(f"error: fewslice has no command {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    else:
        end_quietly()
        sys.argv = [f"fewslice {name}", *arguments]
        # other packages may be called `data` or `segment` in a folder of PYTHONPATH, which is searched first
        path, sys.path = sys.path, [dirname(dirname(__file__)), *sys.path]
        import_module(name.partition(".")[0])
        sys.path = path
        runpy.run_module(name, run_name="__main__", alter_sys=False)


def _run(words: Sequence[str]) -> None:
    sys.argv = ["fewslice", *words]
    main()


if __name__ == "__main__":
    main()
