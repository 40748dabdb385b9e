"""Print the scores of a finished segmentation run."""

from typing import Any

from rich.console import Console

from segment.config import SegmentConfig
from segment.evaluate import result_tables


def print_result(result: dict[str, Any], cfg: SegmentConfig) -> None:
    """Print the scores per class and the commands that come next."""
    console = Console()
    scores = {"val": result} | ({"test": result["test"]} if "test" in result else {})
    for split, summary in scores.items():
        console.print(f"{split} split:")
        for table in result_tables(summary):
            console.print(table)
    if result["synthetic"]:
        console.print("synthetic data: this checks that the software runs; it is no evidence about any method")
    folder = cfg.run_folder
    console.print(
        f"result:  {folder}: result.json, per_volume.csv, predictions.png, learning_curve.png", soft_wrap=True
    )
    images = cfg.data.data_root or "FILE.nii.gz"
    console.print(f"next:    python -m segment.predict --run {folder} --input {images} --output OUT", soft_wrap=True)
