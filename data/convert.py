"""`python -m data.convert --input DICOM_DIR --out DIR`: DICOM series as NIfTI files for `--dataset folder`."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from core.command_line import parse_command
from core.errors import SomeFilesFailed, UserError, user_errors
from core.files import require_writable
from core.locks import is_unused
from core.messages import show_messages
from core.settings import Settings
from data.dicom.names import names_for, read_salt, salt_file
from data.dicom.series import Archive, read_archive
from data.dicom.writing import COLUMNS, doubts, require_converted, summary, write_converted
from data.readers.file_search import CONVERTED

EXAMPLES = ("--input DICOM_DIR --out DATA", "--input DICOM_DIR --out DATA --series 'cine.*SAX' --classes RV MYO LV")


@dataclass(frozen=True, kw_only=True)
class Convert(Settings):
    """Convert DICOM series, segmentations and RT structure sets to NIfTI, without the patients' names."""

    input: Path
    """Folder of DICOM files of any names, searched with its subfolders, or one file. Series that are no regular stack
    of slices are not converted; converted.csv says why."""
    out: Path
    """Folder for images/, labels/, dataset.json and converted.csv; it must not exist, or be empty."""
    series: str | None = None
    """Regular expression, upper and lower case alike; only series whose description matches are converted. Default: all
    series."""
    classes: tuple[str, ...] = ()
    """Names of the segments and ROIs to convert, in the order of the classes 1, 2, ...; default: all, in alphabetical
    order."""
    salt: str | None = None
    """Secret text of at least 8 characters. Subjects are named by hashes of their Patient ID and this text: the same
    text gives the same names anywhere, and who knows it can find out whether a Patient ID is in the data, so keep it
    apart from them. Default: a random text that is made once and kept in ~/.config/fewslice/dicom.salt."""
    keep_names: bool = False
    """Name files by Patient ID, and write Patient IDs, series descriptions and folders into converted.csv."""


def run(cfg: Convert) -> pd.DataFrame:
    """Convert a folder and print what became of it.

    Returns:
        The table of ``converted.csv``, see `data.dicom.writing.write_converted`.

    Raises:
        UserError: if the folder holds no DICOM image that can be converted, or a setting is wrong.
        SomeFilesFailed: after all others are done, if some series, segmentations or files were refused.
    """
    show_messages()
    require_writable("--out", cfg.out, folder=True)
    if not _is_free(cfg.out):
        raise UserError(f"{cfg.out} is not empty: choose a new folder as --out")
    if cfg.input.is_dir() and cfg.out.resolve().is_relative_to(cfg.input.resolve()):
        raise UserError(f"--out {cfg.out} lies within --input {cfg.input}: choose a folder outside")
    salt = read_salt(cfg.salt)
    pattern = None if cfg.series is None else f"(?i){cfg.series}"
    archive = read_archive(cfg.input, pattern)
    patients = [series.patient for series in archive.series.values()]
    patients += [annotation.patient for annotation in archive.annotations]
    names = names_for(patients, salt, keep=cfg.keep_names)
    table = write_converted(archive, cfg.out, names, cfg.classes, keep_names=cfg.keep_names)
    try:
        require_converted(archive, table)
    except UserError as error:
        raise UserError(f"{error}\n{cfg.out / CONVERTED} lists every series") from None
    first, *_ = summary(table)
    print("\n".join([f"{first}, in {cfg.out}; {CONVERTED} lists every series", *doubts(table)]))
    if not cfg.keep_names:
        where = "the text of --salt" if cfg.salt is not None else f"the text in {salt_file()}"
        print(f"subjects have hashed names; {where} gives the same ones again: keep it, and keep it secret")
    if (table["result"] == "refused").any():
        raise SomeFilesFailed(_failures(archive, table), int((table["result"] == "converted").sum()))
    return table


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or holds only the table of a call that converted nothing."""
    if is_unused(folder):
        return True
    if not folder.is_dir() or [each.name for each in folder.iterdir()] != [CONVERTED]:
        return False
    table = (folder / CONVERTED).read_text(encoding="utf-8", errors="replace")
    return table.startswith(",".join(COLUMNS)) and ",converted," not in table


def _failures(archive: Archive, table: pd.DataFrame) -> list[str]:
    """A line for each refusal, with a file for the user at the terminal, which the table does not name."""
    lines = []
    for series in archive.series.values():
        lines += [
            f"{series.files[0]}: {reason}" for reason in dict.fromkeys(series.reasons) if series.outcome == "refused"
        ]
    listed = {line.split(": ", 1)[1] for line in lines}
    others = table[(table["result"] == "refused") & ~table["remark"].isin(listed)]
    of_others = others[["modality", "series", "remark"]].itertuples(index=False)
    return lines + [f"{modality or 'a file'} {series}: {remark}" for modality, series, remark in of_others]


def main() -> None:
    """Parse the command line and convert."""
    with user_errors():
        run(parse_command(Convert, "python -m data.convert", EXAMPLES))


if __name__ == "__main__":
    main()
