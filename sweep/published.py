"""Results that the papers print, for `python -m sweep.tables`, each with its place.

The studies of segmentation are shown as figures without numbers: what stands here is what their text says. None of the
papers gives an interval.
"""

from dataclasses import dataclass

EXAMS = 120
"""Knees that the scores of exams are of, MRNet's official validation set."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A statement about segmentation, and its place."""

    quantity: str
    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ExamScores:
    """Scores of a classifier of torn anterior cruciate ligaments, and their place; None where the paper has none."""

    start: str
    accuracy: float
    auc: float
    sensitivity: float | None = None
    specificity: float | None = None
    source: str


STEPS = Finding(
    quantity="steps to convergence, BYOL on ImageNet and then on ACDC",
    value="about 200",
    source="Kalapos and Gyires-Toth 2022, section 5.1",
)
SPEEDUP = Finding(
    quantity="times fewer steps than other starts",
    value="4 to 5",
    source="Kalapos and Gyires-Toth 2022, sections 5.1 and 6",
)
FEWEST_LABELS = Finding(
    quantity="hierarchical less generalist with the fewest labels",
    value="below 0",
    source="Kalapos and Gyires-Toth 2022, section 5.2 and figure 4",
)
BEND = Finding(
    quantity="labels at which the power law bends",
    value="30 to 75",
    source="Kalapos and Gyires-Toth 2022, section 5.2",
)
EPOCHS = Finding(
    quantity="epochs on the target images that suffice",
    value="3 to 4",
    source="Kalapos and Gyires-Toth 2022, section 5.3",
)

KNEES = (
    ExamScores(
        start="BYOLMed3D, 30 epochs",
        accuracy=0.708,
        auc=0.81,
        sensitivity=0.463,
        specificity=0.909,
        source="Manna et al. 2022, table 1",
    ),
    ExamScores(
        start="BYOLMed3D, 50 epochs",
        accuracy=0.758,
        auc=0.824,
        sensitivity=0.574,
        specificity=0.909,
        source="Manna et al. 2022, table 1",
    ),
    ExamScores(
        start="BYOLMed3D, 100 epochs",
        accuracy=0.742,
        auc=0.825,
        sensitivity=0.5,
        specificity=0.939,
        source="Manna et al. 2022, table 1",
    ),
    ExamScores(
        start="Kinetics-400",
        accuracy=0.683,
        auc=0.902,
        sensitivity=0.296,
        specificity=1.0,
        source="Manna et al. 2022, table 3",
    ),
    ExamScores(
        start="random",
        accuracy=0.742,
        auc=0.804,
        sensitivity=0.537,
        specificity=0.909,
        source="Manna et al. 2022, table 3",
    ),
    ExamScores(start="BYOLMed2D", accuracy=0.733, auc=0.801, source="Ray 2022, section 5.3 and table 5.2"),
)
