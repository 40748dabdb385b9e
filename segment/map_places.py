"""Where `segment.predict` puts uncertainty maps and contact sheets: never where they would be taken for images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import UserError
from data.readers.file_search import UNCERTAINTY, has_table, is_output, search_files
from data.readers.images import is_image
from segment.contact_sheet import is_contact_sheet


def require_outside(option: str, path: Path | None, *folders: Path) -> None:
    """Raise a UserError if a path lies in one of the folders, where its files would be taken for images or masks."""
    inside = [folder for folder in folders if path is not None and path.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise UserError(
            f"{option} {path} lies in {inside[0]}, where it would be taken for an image or a mask: choose another place"
        )


def refuse_image_folders(uncertainty: Path | None, contact_sheet: Path | None) -> None:
    """Raise a UserError if maps or the sheet would lie in a folder of images, whose readers would count them as such.

    Maps may join those of an earlier call, whose folder later commands know by its `uncertainty.csv` and leave out. A
    sheet may lie beside other sheets, or in an output folder; images in folders beside it do not matter.
    """
    if uncertainty is not None and uncertainty.is_dir() and not has_table(uncertainty, UNCERTAINTY):
        _refuse("--uncertainty", uncertainty, search_files(uncertainty).files)
    folder = contact_sheet.parent if contact_sheet is not None else None
    if folder is not None and folder.is_dir() and not is_output(folder):
        images = [file for file in sorted(folder.iterdir()) if is_image(file) and file != contact_sheet]
        _refuse("--contact-sheet", folder, [file for file in images if not is_contact_sheet(file)])


def _refuse(option: str, folder: Path, images: Sequence[Path]) -> None:
    if images:
        raise UserError(
            f"{option} would write into {folder}, which holds images ({images[0].relative_to(folder)}), and would be "
            "taken for one of them: choose a folder without images"
        )


def map_targets(
    targets: Mapping[Path, Path], output: Path, uncertainty: Path | None, contact_sheet: Path | None
) -> dict[Path, Path]:
    """{image: uncertainty map to write}, named as the label maps; none without a folder of uncertainty maps.

    Args:
        targets: {image: label map to write}.
        output: folder of the label maps.
        uncertainty: folder of the uncertainty maps.
        contact_sheet: PNG file that will be written.

    Raises:
        UserError: if a file would be replaced that no earlier call with the same `output` wrote.
    """
    maps: dict[Path, Path] = {}
    for image, target in targets.items():
        if uncertainty is None:
            break
        place = uncertainty / target.relative_to(output)
        maps[image] = place.with_name(f"{place.name}.tif") if place.suffix.lower() == ".png" else place
    sheet = [contact_sheet] if contact_sheet is not None else []
    present = sorted(place for place in [*maps.values(), *sheet] if place.exists())
    if present and not is_output(output):
        raise UserError(f"{present[0]} exists and was not written by this command; choose another place")
    return maps
