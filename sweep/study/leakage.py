"""Check a study for leakage before its first run."""

from collections.abc import Sequence

from core.errors import UserError
from data.duplicates import check_duplicates
from data.leakage import check_leakage
from data.sources import ExamSource, SliceSource, open_exams, open_slices
from data.splits import SplitTable
from encoders.card import read_lineage
from pretrain.config import PretrainConfig
from sweep.study.config import SweepConfig
from sweep.study.grid import Job


def check_study(cfg: SweepConfig, jobs: Sequence[Job]) -> None:
    """Refuse a study whose encoders see validation or test subjects in pretraining, or whose splits share an image.

    The runs check the same, and note in their results what the settings of the study allow.

    Raises:
        UserError: unless `allow_leakage` or `allow_duplicates` is set.
    """
    splits = [_opened(cfg.of_fold(fold).data) for fold in cfg.folds] or [_opened(cfg.data)]
    encoders = [job.config for job in jobs if isinstance(job.config, PretrainConfig)]
    made_here = {str(job.folder / "encoder.safetensors") for job in jobs}
    for data in splits:
        check_duplicates(data, test=cfg.test, allow=cfg.allow_duplicates)
        for source in sorted({encoder.generalist for encoder in encoders} - made_here):
            check_leakage(data, read_lineage(source), source, allow=cfg.allow_leakage)
    on_all = any(each.stage != "generalist" and each.unlabelled_splits == "all" for each in encoders)
    if on_all and not cfg.allow_leakage:
        raise UserError(
            "--pretrain.unlabelled-splits all pretrains on the validation and test subjects, so that scores would be "
            "too high: leave it out, or pass --allow-leakage, which results and report then state"
        )


def _opened(source: SliceSource | ExamSource) -> SplitTable:
    return open_exams(source, labelled=True) if isinstance(source, ExamSource) else open_slices(source)
