"""What a segmentation run says at its end."""

from typing import Any

from rich.console import Console
from rich.table import Table

from segment.config import SegmentConfig


def print_result(result: dict[str, Any], cfg: SegmentConfig) -> None:
    """The scores per class and the commands that come next."""
    console = Console()
    table = Table(title=f"{result['split']}: {result['volumes']} volumes of {result['patients']} patients")
    for heading in ("class", "Dice", "Jaccard", "HD95 mm", "ASSD mm", "not counted", "no distance"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    left_out = result["not_counted"]
    for name in result["dice"]:
        counts = [left_out[kind].get(name, "") for kind in ("both_empty", "one_empty")]
        scores = [
            result["dice"][name],
            result["jaccard"][name],
            result["hd95_mm"][name],
            result["assd_mm"][name],
        ]
        digits = (3, 3, 1, 2)
        cells = ["-" if s is None else f"{s:.{d}f}" for s, d in zip(scores, digits, strict=True)]
        table.add_row(name, *cells, *map(str, counts))
    console.print(table)
    if result["synthetic"]:
        console.print("synthetic phantom: this shows that the plumbing works, not how good the method is")
    folder = cfg.run_folder
    console.print(f"result:  {folder}/result.json, per_volume.csv, predictions.png, learning_curve.png", soft_wrap=True)
    given = f"{cfg.data_root}" if cfg.data_root else "FILE.nii.gz"
    console.print(f"next:    python -m segment.predict --run {folder} --input {given} --output OUT", soft_wrap=True)
