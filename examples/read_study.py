"""Read the results of a data-efficiency study with pandas.

uv run python examples/read_study.py [runs/sweep]

The folder is that of a finished `python -m sweep`.
"""

import sys
from pathlib import Path

from core.tables import read_table


def read_study(folder: Path) -> None:
    """Print the scores of a finished study of segmentation."""
    results = read_table(folder / "results.csv")  # a row for each training run and split
    results = results[results["split"] == "val"]
    dice = results.pivot_table(index="labelled_slices", columns="pipeline", values="dice", aggfunc=["mean", "std"])
    print("Validation Dice, mean and standard deviation over seeds:", dice.round(3), sep="\n")

    volumes = read_table(folder / "per_volume.csv")  # a row for each scored volume
    classes = [name for name in volumes if name.startswith("dice_")]
    print("\nDice of each class:", volumes.groupby("pipeline")[classes].mean().round(3), sep="\n")
    worst = volumes.assign(dice=volumes[classes].mean(axis=1)).nsmallest(3, "dice")
    print("\nThe three worst volumes:", worst[["cell", "subject", "phase", "dice"]].round(3).to_string(), sep="\n")


if __name__ == "__main__":
    read_study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sweep"))
