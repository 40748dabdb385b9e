"""The series in a folder of DICOM files: images as stacks, segmentations and structure sets as references to them."""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from core.errors import UserError
from core.progress import progress
from core.text import search as search_text
from core.wording import count_of
from data.dicom.files import DIRECTORY, read_header
from data.dicom.pixels import is_inverted, require_readable
from data.dicom.planes import Plane, planes_of
from data.dicom.search import files_below, is_dicom
from data.dicom.stacks import Stack, stacks_of
from data.readers.decoding import naming

SEGMENTATIONS = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
"""SOP classes of segmentations: of bits or fractions, and label maps."""
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class of RT structure sets."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
LEFT_OUT = "left out by --series"
WITH_PLACE = {"CT", "MR", "PT", "NM"}
"""Modalities whose images always have a place in the patient."""


@dataclass(kw_only=True)
class Series:
    """One DICOM series."""

    uid: str
    patient: str
    """What tells patients apart: PatientID, else name and date of birth, else the study."""
    modality: str
    number: str
    description: str
    frame_of_reference: str
    files: list[Path] = field(default_factory=list)
    planes: list[Plane] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why images of the series are no stack."""
    remarks: list[str] = field(default_factory=list)
    no_images: list[str] = field(default_factory=list)
    """Kinds of the files that are no images: reports, presentation states and the like."""
    outcome: str = "refused"
    """Why the images that are no stack are none: "refused", "no image" or "left out"."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A segmentation or structure set."""

    file: Path
    kind: str
    """SEG or RTSTRUCT."""
    series: str
    """UID of its own series."""
    patient: str


@dataclass
class Archive:
    """Everything that was found in a folder of DICOM files."""

    root: Path
    series: dict[str, Series] = field(default_factory=dict)
    annotations: list[Annotation] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    """Files that cannot be read, and why."""
    others: int = 0
    """Number of files that are no DICOM."""
    without_id: set[str] = field(default_factory=set)
    """Patients without a PatientID."""
    names: dict[str, set[str]] = field(default_factory=dict)
    """Patient -> the different names, to find identifiers that several patients share."""


def read_archive(root: Path, pattern: str | None = None) -> Archive:
    """Read the headers of all DICOM files below a folder (or of one file), and sort their images into stacks.

    Args:
        root: the folder, or a file.
        pattern: regular expression; only series whose description matches are sorted. Segmentations and structure sets
            always are.

    Raises:
        UserError: if there is no DICOM file.
    """
    archive = Archive(root=root)
    for file in progress([*_files(root)], "reading headers"):
        if not is_dicom(file):
            archive.others += 1
            continue
        try:
            with naming(file), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that break the standard's rules, which most archives hold
                _add(archive, file, read_header(file))
        except UserError as error:
            archive.damaged[file] = str(error)
    if not archive.series and not archive.annotations:
        first = f"; {next(iter(archive.damaged.values()))}" if archive.damaged else ""
        raise UserError(f"{root} holds no DICOM images{first or ': check the path'}")
    for series in archive.series.values():
        if pattern is not None and search_text(pattern, series.description) is None:
            series.reasons, series.outcome = [LEFT_OUT], "left out"
        elif not series.planes and not series.reasons:
            series.reasons, series.outcome = [f"no image ({', '.join(dict.fromkeys(series.no_images))})"], "no image"
        else:
            _sort(series)
    return archive


def _files(root: Path) -> Iterable[Path]:
    if root.is_dir():
        return files_below(root)
    if not root.is_file():
        raise UserError(f"{root} does not exist: check the path")
    return [root]


def _add(archive: Archive, file: Path, header: Dataset) -> None:
    kind = str(header.get("SOPClassUID", ""))
    if DIRECTORY in (kind, str(header.file_meta.get("MediaStorageSOPClassUID", ""))):
        return
    patient = _patient(archive, header)
    uid = str(header.get("SeriesInstanceUID", ""))
    if kind in SEGMENTATIONS or kind == STRUCTURES:
        name = "RTSTRUCT" if kind == STRUCTURES else "SEG"
        archive.annotations.append(Annotation(file=file, kind=name, series=uid, patient=patient))
        return
    series = archive.series.setdefault(
        uid,
        Series(
            uid=uid,
            patient=patient,
            modality=str(header.get("Modality", "")),
            number=str(header.get("SeriesNumber") or ""),
            description=str(header.get("SeriesDescription", "")),
            frame_of_reference=str(header.get("FrameOfReferenceUID", "")),
        ),
    )
    series.files.append(file)
    if series.patient != patient:
        series.reasons.append("images of different patients have one Series Instance UID: export each patient again")
    if "Rows" not in header or kind == DOSE:
        series.no_images.append(UID(kind).name)
        return
    try:
        if kind.startswith(SECONDARY_CAPTURE) or header.get("BurnedInAnnotation") == "YES":
            raise UserError(
                "a screenshot or an image with burned-in text, which may show the patient's name: export the original "
                "images"
            )
        require_readable(header)
        series.planes += planes_of(file, header)
    except UserError as error:
        series.reasons.append(str(error))
    except Exception as error:  # pydicom parses values when they are used, and raises errors of any type
        series.reasons.append(f"a header cannot be parsed ({type(error).__name__}): export it again")
    if is_inverted(header):
        series.remarks.append("MONOCHROME1: inverted, so that bright means dense")
    elif header.get("PhotometricInterpretation") == "MONOCHROME1":
        series.remarks.append("MONOCHROME1: low values are shown bright; the values are kept")


def _sort(series: Series) -> None:
    """Sort the planes of a series into stacks; a series of which images are refused gives none."""
    series.remarks = [*dict.fromkeys(series.remarks)]
    if series.no_images:
        series.remarks.append(f"{count_of(len(series.no_images), 'file')} without an image left out")
    if series.reasons:
        counts = Counter(series.reasons)
        series.reasons = [f"{reason} ({count} of {len(series.files)} files)" for reason, count in counts.most_common(2)]
        return
    try:
        if series.modality in WITH_PLACE and not any(plane.has_place for plane in series.planes):
            raise UserError(
                "the images have no position, orientation or pixel spacing: export the series again with them"
            )
        for each in stacks_of(series.planes):
            if isinstance(each, UserError):
                series.reasons.append(str(each))
            else:
                series.stacks.append(each)
    except UserError as error:
        series.reasons.append(str(error))


def _patient(archive: Archive, header: Dataset) -> str:
    name = str(header.get("PatientName", "")).strip()
    number = str(header.get("PatientID") or "").strip()
    if number:
        key = f"{str(header.get('IssuerOfPatientID') or '').strip()}|{number}"
    else:
        born = str(header.get("PatientBirthDate") or "")
        key = f"name|{name}|{born}" if name else f"study|{header.get('StudyInstanceUID', '')}"
        archive.without_id.add(key)
    archive.names.setdefault(key, set()).add(" ".join(name.replace("^", " ").casefold().split()))
    return key
