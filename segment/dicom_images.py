"""Images from DICOM for `segment.predict`, and their label maps as DICOM segmentations that refer to them."""

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError
from core.files import write_atomically
from data.dicom.names import names_for, read_salt
from data.dicom.search import holds_dicom
from data.readers.images import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from data.dicom.stacks import Stack

LONGEST_LABEL = 64
"""Characters of a segment's label in DICOM (LO)."""
FIRST_SERIES = 1000
"""Added to the number of the images' series, so that the segmentations' is another one."""
TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
"""Attributes that every object has, if only empty, but those of careless exports."""


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """One stack of a DICOM series, under the name that ``python -m data.convert`` gives it."""

    name: str
    """SUBJECT/SUBJECT_SERIES."""
    stack: "Stack"

    @property
    def subject(self) -> str:
        """Hashed name of the patient."""
        return self.name.partition("/")[0]

    @property
    def known_spacing(self) -> tuple[bool, bool]:
        """Whether the header states the size of the pixels, and the distance or thickness of the slices."""
        first, slices = self.stack.planes[0][0], len(self.stack.planes[0])
        return first.spacing is not None, first.has_place and (slices > 1 or first.thickness is not None)

    def read(self) -> Volume:
        """The values as a volume in memory.

        Raises:
            UserError: if they cannot be decoded.
        """
        from data.dicom.nifti import volume_of

        return volume_of(self.stack, Path(f"{self.name}.nii.gz"))


def dicom_images(path: Path) -> tuple[list[DicomImage], list[str]] | None:
    """The images in a DICOM file or folder, and why others are left out; None if there is no DICOM.

    Raises:
        UserError: if no header can be read.
    """
    if not holds_dicom(path):
        return None
    from data.dicom.series import read_archive  # pydicom is slow to import

    archive = read_archive(path)
    names = names_for((), read_salt(), keep=False)
    images, problems = [], []
    for series in archive.series.values():
        subject = names.subject(series.patient)
        stem = f"{subject}/{subject}_{names.series(series.uid)}"
        several = len(series.stacks) > 1
        for number, stack in enumerate(series.stacks, 1):
            images.append(DicomImage(name=stem + (f"_part{number}" if several else ""), stack=stack))
        if series.outcome == "refused":
            problems += [f"{series.files[0]} and its series: {reason}" for reason in dict.fromkeys(series.reasons)]
    return images, [*problems, *archive.damaged.values()]


def write_segmentations(
    target: Path, labels: np.ndarray, image: DicomImage, classes: Sequence[str], model: str, first_frame: int = 0
) -> list[Path]:
    """Write label maps as DICOM segmentations of one series, one for each time frame.

    They lie on the planes of the images, carry their patient and study, and refer to them frame by frame. Every class
    is a segment, also where it is empty.

    Args:
        target: ``NAME.dcm``, of a cine ``NAME_frame01.dcm`` and so on.
        labels: (columns, rows, slices, frames) class indices.
        image: the image.
        classes: names of the classes, background first.
        model: identifies the model: written as serial number of the device.
        first_frame: time frame, from 0, of the first label map.

    Returns:
        The files.

    Raises:
        UserError: if the images lack what a segmentation must refer to.
    """
    import highdicom
    from highdicom import UID

    series_uid, files = UID(), []
    for number in range(labels.shape[3]):
        planes = image.stack.planes[first_frame + number]
        file = (
            target if labels.shape[3] == 1 else target.with_stem(f"{target.stem}_frame{first_frame + number + 1:02d}")
        )
        try:
            sources = _sources(image.stack, first_frame + number)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values in the images that break the standard's rules
                segmentation = highdicom.seg.Segmentation(
                    source_images=sources,
                    pixel_array=np.ascontiguousarray(labels[..., number].T),
                    segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                    segment_descriptions=_descriptions(classes),
                    series_instance_uid=series_uid,
                    series_number=FIRST_SERIES + int(sources[0].get("SeriesNumber") or 0),
                    sop_instance_uid=UID(),
                    instance_number=number + 1,
                    manufacturer="fewslice",
                    manufacturer_model_name="fewslice segment.predict",
                    software_versions=version("fewslice"),
                    device_serial_number=model,
                    omit_empty_frames=False,
                    series_description="fewslice segmentation",
                )
        except Exception as error:  # highdicom raises errors of any type on images that break the standard's rules
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{image.name}: its images allow no DICOM segmentation ({reason})") from error
        _refer_to_frames(segmentation, [plane.index for plane in planes])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, segmentation.save_as)
        files.append(file)
    return files


def _descriptions(classes: Sequence[str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="fewslice U-Net", family=codes.DCM.ArtificialIntelligence, version=version("fewslice")
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LONGEST_LABEL],
            segmented_property_category=codes.SCT.Tissue,  # what a class is, its name says; no code is guessed from it
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes[1:], 1)
    ]


def _sources(stack: "Stack", frame: int) -> list["Dataset"]:
    """Headers of the images of one time frame, slice by slice; of a multi-frame image, its header with these frames."""
    from data.dicom.files import read_header

    planes = stack.planes[frame]
    headers = {file: _complete(read_header(file)) for file in dict.fromkeys(plane.file for plane in planes)}
    groups = next(iter(headers.values())).get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [headers[plane.file] for plane in planes]
    if len(headers) > 1:
        raise UserError("slices of several multi-frame files, which one DICOM segmentation cannot refer to")
    (header,) = headers.values()
    header.PerFrameFunctionalGroupsSequence = [copy(groups[plane.index]) for plane in planes]
    header.NumberOfFrames = len(planes)
    return [header]


def _complete(header: "Dataset") -> "Dataset":
    for keyword in (*TYPE_2, "StudyTime"):
        if keyword not in header:
            setattr(header, keyword, "")
    return header


def _refer_to_frames(segmentation: Any, indices: Sequence[int]) -> None:
    """Replace numbers of frames, which count those of one time, by their numbers in the multi-frame file."""
    sources = {
        id(source): source  # frames of several segments share them
        for group in segmentation.PerFrameFunctionalGroupsSequence
        for derivation in group.get("DerivationImageSequence") or []
        for source in derivation.SourceImageSequence
    }
    for source in sources.values():
        if (number := source.get("ReferencedFrameNumber")) is not None:
            source.ReferencedFrameNumber = indices[int(number) - 1] + 1
