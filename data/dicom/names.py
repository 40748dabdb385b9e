"""Names of subjects and series in place of a patient's: salted hashes, or identifiers if these are to be kept."""

import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from core.errors import UserError
from core.files import write_text
from core.locks import file_lock
from core.subjects import salted
from data.readers.roles import names_label_map

SHORTEST_SALT = 8
DIGITS = 12
"""Hexadecimal digits of the hash of a subject or series."""


def salt_file() -> Path:
    """The file of this user that keeps the salt: ``$XDG_CONFIG_HOME/fewslice/dicom.salt`` or in ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fewslice" / "dicom.salt"


def read_salt(given: str | None = None) -> str:
    """The salt that is given, else that of `salt_file`, which is made on first use, readable by its owner alone.

    Raises:
        UserError: if the given salt is short enough to be guessed, or the file is empty.
    """
    if given is not None:
        if len(given.encode()) < SHORTEST_SALT:
            raise UserError(f"--salt has {len(given)} characters, which can be guessed: use {SHORTEST_SALT} or more")
        return given
    file = salt_file()
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_suffix(".lock"), wait=True):
            if not file.is_file():
                write_text(file, secrets.token_hex(32))
                file.chmod(0o600)
    salt = file.read_text(encoding="utf-8", errors="replace").strip()
    if len(salt) < SHORTEST_SALT:
        raise UserError(f"{file} should hold the salt of subject names and is damaged: restore it, or pass --salt")
    return salt


@dataclass(frozen=True)
class Names:
    """Names of subjects and series, the same for the same salt."""

    salt: str
    kept: dict[str, str]
    """Patient -> identifier to keep in the name; {} for hashes alone."""

    def subject(self, patient: str) -> str:
        """The subject's name, also that of its folder: ``sub-`` and letters and digits, which readers take for it."""
        return f"sub-{self.kept.get(patient) or salted(f'patient|{patient}', self.salt)[:DIGITS]}"

    def series(self, uid: str) -> str:
        """The name of a series: hexadecimal digits."""
        return salted(f"series|{uid}", self.salt)[:DIGITS]


def alike_patients(patients: Iterable[str]) -> set[str]:
    """Patients whose identifier is another's but for case, spaces, punctuation or a missing issuer.

    Args:
        patients: keys of `data.dicom.series.Series.patient`.
    """
    by_letters: dict[str, set[tuple[str, str]]] = {}
    for patient in patients:
        issuer, _, identifier = patient.partition("|")
        if issuer != "study" and (letters := _letters(identifier)):
            by_letters.setdefault(letters, set()).add((_letters(issuer), patient))
    return {
        patient
        for group in by_letters.values()
        for (issuer, patient), (other_issuer, other) in permutations(group, 2)
        if patient != other and (issuer == other_issuer or "" in (issuer, other_issuer))
    }


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[\W_]", "", text).casefold()


def names_for(patients: Iterable[str], salt: str, *, keep: bool) -> Names:
    """Names for some patients.

    Args:
        patients: keys of `data.dicom.series.Series.patient`.
        salt: of `read_salt`.
        keep: keep letters and digits of each PatientID; where two are alike but for case and other characters, or one
            is a word such as "mask", a hash follows.
    """
    kept: dict[str, str] = {}
    if keep:
        plain = {patient: re.sub(r"[^A-Za-z0-9]", "", patient.partition("|")[2]) for patient in sorted(set(patients))}
        for patient, name in plain.items():
            alike = [other for other in plain.values() if other.casefold() == name.casefold()]
            doubtful = len(alike) > 1 or names_label_map(f"sub-{name}") or not name
            kept[patient] = f"{name}x{salted(patient, salt)[:6]}" if doubtful else name
    return Names(salt, kept)
