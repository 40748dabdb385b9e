"""`python -m data.phantom`: write a synthetic data set in the file layout of a real one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.settings import Settings
from data.phantoms.cardiac import DEMO_FRAMES, DEMO_SEED, DEMO_SUBJECTS, write_acdc, write_sheet
from data.phantoms.checks import Matrix
from data.phantoms.knee import KNEE_EXAMS, write_knee_sheet, write_mrnet

EXAMPLES = ("--out hearts --subjects 10 --sheet hearts.png", "--dataset mrnet --out knees --subjects 30")


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(Settings):
    """Write a synthetic data set in the file layout of a real one."""

    out: Path
    """Output folder; training/ (mrnet: train/ and valid/) must not exist in it."""
    dataset: Literal["acdc", "mrnet"] = "acdc"
    """File layout to write: acdc (cardiac cine MRI) or mrnet (knee MRI)."""
    subjects: int | None = None
    """Number of subjects. acdc: 1..100 (101 and above belong to ACDC's official test set), default 30. mrnet: training
    exams, 3..1130, default 120, plus a third as many validation exams."""
    seed: int = DEMO_SEED
    """Random seed; the same seed gives the same files."""
    frames: int | None = None
    """Frames of the cine, 4..99, default 14; acdc only, as the number of slices of a knee exam is random."""
    matrix: Matrix = "small"
    """Image size. acdc: small is 96..144 pixels of 1.9-2.3 mm, large 192..288 pixels of 1.2-1.8 mm as in the clinic.
    mrnet: small is 16..28 slices of 104 pixels, large 17..61 slices of 256 pixels as in MRNet."""
    sheet: Path | None = None
    """Also write a contact sheet to this PNG file: the five groups of hearts, or knees with intact and torn ACL."""


def run(cfg: PhantomConfig) -> Path:
    """Write the data set and, if requested, the contact sheet; return the folder."""
    if cfg.dataset == "mrnet":
        if cfg.frames is not None:
            raise UserError(f"--frames {cfg.frames} applies to --dataset acdc only: leave it out")
        write_mrnet(cfg.out, KNEE_EXAMS if cfg.subjects is None else cfg.subjects, cfg.seed, cfg.matrix)
        if cfg.sheet:
            write_knee_sheet(cfg.sheet, cfg.seed, cfg.matrix)
        return cfg.out
    subjects = DEMO_SUBJECTS if cfg.subjects is None else cfg.subjects
    write_acdc(cfg.out, subjects, cfg.seed, DEMO_FRAMES if cfg.frames is None else cfg.frames, cfg.matrix)
    if cfg.sheet:
        write_sheet(cfg.out, cfg.sheet)
    return cfg.out


def main() -> None:
    """Parse the command line and write the data set."""
    with user_errors():
        print(f"wrote {run(parse_command(PhantomConfig, 'python -m data.phantom', EXAMPLES))}")


if __name__ == "__main__":
    main()
