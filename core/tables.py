"""CSV tables read so that text stays text: a subject called NA, 001 or 1e5 keeps its name."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from core.errors import UserError

TEXT = frozenset(
    ("cell", "pipeline", "split", "subject", "group", "phase", "exam", "file", "label_file", "plane", "task")
) | {"config_hash", "versions", "case", "why"}
"""Columns of names; every other column holds numbers (or True and False)."""
NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?|nan|)\s*", re.IGNORECASE)


def read_table(file: Path, required: Collection[str] = (), advice: str = "make it again") -> pd.DataFrame:
    """Read a CSV table that fewslice has written.

    Names in the columns of `TEXT` are read as they are written, without pandas' rules for missing values (NA, None,
    null) and numbers (001, 1e5). An empty number is NaN.

    Args:
        file: the table, UTF-8 with one line of column names.
        required: columns that it must have.
        advice: what to do about a damaged file, for the message.

    Raises:
        UserError: if the file cannot be read, is damaged, or holds text where a number is expected; it names the
            file, and the line and column where there is one.
    """
    if not file.is_file():  # a named pipe would wait for ever
        raise UserError(f"{file}: no such file; {advice}")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names need not be UTF-8
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {advice}") from None
    if "\0" in text:
        raise UserError(f"{file} is damaged (it holds NUL bytes); {advice}")
    header, lines = _check_rows(file, text, advice)
    if missing := [name for name in required if name not in header]:
        raise UserError(f"{file} has no column {missing[0]!r}; {advice}")
    # "nan" is what csv.DictWriter writes for NaN
    table = pd.read_csv(
        io.StringIO(text),
        header=0,
        names=header,  # pandas would call a column without a name "Unnamed"
        dtype={name: object for name in header if name in TEXT},
        keep_default_na=False,
        na_values={name: ["", "nan"] for name in header if name not in TEXT},
        low_memory=False,
        encoding_errors="surrogateescape",
    )
    for place, name in enumerate(header):
        if name in TEXT or table[name].dtype.kind in "biuf" or not lines:
            continue
        for line, row in lines:
            if not NUMBER.fullmatch(row[place]):
                raise UserError(f"{file} line {line}: {name} is {row[place][:40]!r}, not a number; {advice}")
        table[name] = table[name].astype(float)  # integers of more than 64 bits
    return table


def _check_rows(file: Path, text: str, advice: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names, and the rows with their line numbers; UserError unless every row has as many fields."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num} is damaged ({error}); {advice}") from None
    if not rows:
        raise UserError(f"{file} is empty; {advice}")
    (_, header), *lines = rows
    if repeated := [name for place, name in enumerate(header) if name in header[:place]]:
        raise UserError(f"{file} has two columns {repeated[0]!r}; {advice}")
    for number, row in lines:
        if len(row) != len(header):
            raise UserError(f"{file} line {number} has {len(row)} of {len(header)} columns; {advice}")
    return header, lines
