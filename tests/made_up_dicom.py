"""DICOM series of known geometry, written for tests: nothing in them is from a patient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR, CR = (f"1.2.840.10008.5.1.4.1.1.{ending}" for ending in ("4", "4.1", "1"))
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"

COSINE, SINE = np.sqrt(3) / 2, 0.5
ALONG_ROW, ALONG_COLUMN = np.array([COSINE, SINE, 0]), np.array([0, 0, -1.0])
NORMAL = np.array([-SINE, COSINE, 0])
"""Cross product of the two, by hand."""
ORIGIN = np.array([-10.0, 20, 30])
ROW_MM, COLUMN_MM, SLICE_MM = 1.5, 1.25, 8.0
ROWS, COLUMNS = 6, 5
RAS_AFFINE = np.array(
    [
        [-COLUMN_MM * COSINE, 0, SLICE_MM * SINE, 10],
        [-COLUMN_MM * SINE, 0, -SLICE_MM * COSINE, -20],
        [0, -ROW_MM, 0, 30],
        [0, 0, 0, 1],
    ]
)
"""From (column, row, slice) to NIfTI's coordinates, by hand: x and y of DICOM's change their sign."""


def numbers(values: Sequence[float] | np.ndarray) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [f"{value:.9g}" for value in values]


def pattern(z: int, t: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """(rows, columns): a value of its own for each voxel."""
    y, x = np.mgrid[:rows, :columns]
    return (1000 * t + 100 * z + 10 * y + x).astype(np.uint16)


def header(kind: str, patient: str = "Jane-7", **attributes: Any) -> Dataset:
    """The common part of an object of a SOP class."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, generate_uid()
    dataset.PatientID, dataset.PatientName = patient, f"Doe^{patient}"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.{len(patient)}", "1.2.3.4"
    dataset.FrameOfReferenceUID = "1.2.3.5"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200101", "100000", "1", ""
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "MR", "12", "cine SAX"
    dataset.Manufacturer = "none"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def with_pixels(dataset: Dataset, pixels: np.ndarray) -> Dataset:
    """Put (rows, columns) or (frames, rows, columns) uint16 pixels into an object."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


def image(z: float, t: int | None = None, **attributes: Any) -> Dataset:
    """Slice z (SLICE_MM apart, from 0) of the oblique stack, at t times 40 ms after the trigger."""
    pixels = attributes.pop("pixels", pattern(int(z), t or 0))
    dataset = header(MR, **attributes)
    if t is not None:
        dataset.TriggerTime = f"{40 * t}"
    dataset.PixelSpacing = numbers([ROW_MM, COLUMN_MM])
    dataset.SliceThickness = "6"
    if "ImageOrientationPatient" not in attributes:
        dataset.ImageOrientationPatient = numbers([*ALONG_ROW, *ALONG_COLUMN])
    if "ImagePositionPatient" not in attributes:
        dataset.ImagePositionPatient = numbers(ORIGIN + SLICE_MM * z * NORMAL)
    return with_pixels(dataset, pixels)


def save(datasets: Sequence[Dataset], folder: Path, seed: int = 0) -> list[Path]:
    """Write objects in a shuffled order, with shuffled instance numbers and names without extension."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    files: list[Path] = [folder] * len(datasets)
    for number, position in enumerate(order):
        datasets[position].InstanceNumber = str(number + 1)
        files[position] = folder / f"IM{number:04d}"
        datasets[position].save_as(files[position], enforce_file_format=True)
    return files


def volume(folder: Path, slices: Sequence[float] = range(4), **attributes: Any) -> list[Dataset]:
    """Write an oblique volume; returns its slices in order."""
    datasets = [image(z, **attributes) for z in slices]
    save(datasets, folder)
    return datasets


def cine(folder: Path, slices: int = 4, frames: int = 3, **attributes: Any) -> list[list[Dataset]]:
    """Write an oblique cine; returns its images as [frame][slice]."""
    datasets = [[image(z, t, **attributes) for z in range(slices)] for t in range(frames)]
    save([each for frame in datasets for each in frame], folder)
    return datasets


def enhanced(places: Sequence[tuple[int, int]], slope: float = 1.0, pixels: np.ndarray | None = None) -> Dataset:
    """A multi-frame MR image; frame k shows (slice, time) `places[k]`, with functional groups."""
    dataset = header(ENHANCED_MR)
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = numbers([ROW_MM, COLUMN_MM])
    shared.PixelMeasuresSequence[0].SliceThickness = "6"
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = numbers([*ALONG_ROW, *ALONG_COLUMN])
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z, t in places:
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = numbers(ORIGIN + SLICE_MM * z * NORMAL)
        group.CardiacSynchronizationSequence = [Dataset()]
        group.CardiacSynchronizationSequence[0].NominalCardiacTriggerDelayTime = 40.0 * t
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = f"{slope * (z + 1):g}"
        group.PixelValueTransformationSequence[0].RescaleIntercept = f"{z}"
        group.PixelValueTransformationSequence[0].RescaleType = "US"
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    stack = np.stack([pattern(z, t) for z, t in places]) if pixels is None else pixels
    return with_pixels(dataset, stack)


def structures(
    contours: dict[str, Sequence[tuple[Dataset, np.ndarray]]], kind: str = "CLOSED_PLANAR", **attributes: Any
) -> Dataset:
    """A structure set: for each name, (image, points (n, 2) as column and row) of its contours."""
    dataset = header(STRUCTURES, **{"SeriesInstanceUID": "1.2.3.9", **attributes})
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, members) in enumerate(contours.items(), 1):
        roi = Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, "1.2.3.5"
        dataset.StructureSetROISequence.append(roi)
        drawn = Dataset()
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for source, points in members:
            contour, reference = Dataset(), Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MR, source.SOPInstanceUID
            position = np.array([float(value) for value in source.ImagePositionPatient])
            world = (
                position + np.outer(points[:, 0] * COLUMN_MM, ALONG_ROW) + np.outer(points[:, 1] * ROW_MM, ALONG_COLUMN)
            )
            contour.ContourImageSequence = [reference]
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = numbers(world.ravel())
            drawn.ContourSequence.append(contour)
        dataset.ROIContourSequence.append(drawn)
    return dataset
