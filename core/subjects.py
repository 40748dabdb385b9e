"""Salted hashes of subjects and images: they tell whether two runs share a patient, and name no one."""

import hashlib
import secrets
from collections.abc import Callable, Iterable

import pandas as pd
from pydantic import BaseModel, ConfigDict

from core.cache import cache_folder
from core.files import write_text
from core.locks import file_lock

NAMING = ("subject", "exam", "file")
"""Columns of tables that may hold the name of a patient."""
ENDINGS = (".nii.gz", ".nii", ".png", ".tiff", ".tif", ".npy")
"""Suffixes of files that codes keep."""


class SubjectRecord(BaseModel):
    """The subjects of one training stage, in the lineage of an encoder, the card of a model and the result of a run.

    Hashes stand in one string, separated by spaces, by what the subjects were used for: "pool" (pretraining), "train",
    "val" (selection of weights) or "test".
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    salt: str
    data: str
    """Layout of the data set."""
    plane: str = ""
    """Plane of the exams; images of different planes cannot be compared."""
    key: str
    """Digest of the data set."""
    subjects: dict[str, str]
    """Salted hashes of the subjects' names."""
    images: dict[str, str]
    """Salted hashes of the content of their images: one for the middle slice of each volume and frame."""


def salted(text: str, salt: str) -> str:
    """BLAKE2b of a text, keyed by a salt: 16 hexadecimal digits."""
    content = text.encode(errors="surrogateescape")  # file names need not be UTF-8
    return hashlib.blake2b(content, key=salt.encode()[:64], digest_size=8).hexdigest()


def salted_all(texts: Iterable[str], salt: str) -> str:
    """The salted hashes of the different texts, none of an empty one, sorted and joined by spaces."""
    return " ".join(sorted(salted(text, salt) for text in {*texts} - {""}))


def pseudonyms() -> Callable[[str], str]:
    """The function that turns the name of a subject, exam or file into its code with `--anonymous`.

    Codes are made with a secret key in `cache_folder()`: the same in all runs on this machine, so that their tables fit
    together, and of no use to anyone who has the tables alone.
    """
    file = cache_folder() / "anonymous.key"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_suffix(".lock"), wait=True):
            if not file.is_file():
                write_text(file, secrets.token_hex(32))
    key = file.read_text().strip()

    def code(name: str) -> str:
        ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
        return f"anonymous-{salted(name, key)[:10]}{ending}" if name else ""

    return code


def anonymised(table: pd.DataFrame) -> pd.DataFrame:
    """A table with codes in place of the names of subjects, exams and files."""
    code = pseudonyms()
    return table.assign(**{name: table[name].astype(str).map(code) for name in NAMING if name in table})
