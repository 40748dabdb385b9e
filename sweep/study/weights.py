"""Ready-made weights that a study starts from: checked before anything runs."""

from collections.abc import Sequence
from pathlib import Path

from encoders.names import is_file
from pretrain.config import PretrainConfig
from sweep.study.config import BYOL_IMAGENET, SweepConfig
from sweep.study.grid import Job
from sweep.study.jobs import is_done

ORIGINS = {BYOL_IMAGENET: "linked in the readme of https://github.com/yaox12/BYOL-PyTorch, under Model Checkpoints"}
"""Where files of weights can be had."""


def missing_weights(cfg: SweepConfig, jobs: Sequence[Job]) -> str:
    """A sentence that names all weights which the study lacks, and where to get and to put each; empty if none.

    Downloads are tried with a short request only, and nothing is asked of a server for encoders that are finished.
    """
    lacking = []
    for job in jobs:
        config = job.config
        if isinstance(config, PretrainConfig) and config.stage == "generalist" and not is_done(job):
            lacking.append(_lacking(config.generalist, config.encoder, cfg.pretrain.generalist))
    texts = [text for text in lacking if text]
    return f"the study starts from weights that are not here: {'; '.join(texts)}" if texts else ""


def _lacking(source: str, encoder: str, default: str) -> str:
    """What is missing, where it can be had and where to put it; empty if nothing is.

    Args:
        source: value of `python -m pretrain --generalist`.
        encoder: name of the encoder.
        default: the source of the pipelines that name none.
    """
    if source != "random" and not is_file(source):
        from encoders.hub import missing_download  # imports torch, slow

        flag = "--pretrain.generalist FILE" if source == default else "generalist=FILE in --pipelines"
        return missing_download(source, encoder, flag)
    if source == "procedural" or Path(source).expanduser().exists():
        return ""
    path = Path(source).absolute()
    origin = ORIGINS.get(path.name)
    return f"{path.name} ({f'{origin}; ' if origin else ''}put it into {path.parent})"
