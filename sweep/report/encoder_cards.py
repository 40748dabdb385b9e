"""What the cards of a study's encoders, `encoders/NAME/encoder.json`, say about their training."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, model_validator

from sweep.analysis.study_files import read_json

FEWEST_STEPS = 1000
"""Optimiser steps of pretraining below which scores say little about a method."""
LARGEST_SHARE = 0.05
"""Share of the weights before pretraining, left in an encoder, above which its scores are partly those of its start."""


class _Images(BaseModel):
    name: str


class _Stage(BaseModel):
    """A stage of an encoder's card."""

    stage: str
    source: str | None = None
    data: _Images | None = None
    steps: int | None = None
    batch_size: int | None = None
    start_share: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _says_its_images(self) -> "_Stage":
        trained = self.data is not None and self.steps is not None and self.batch_size is not None
        if (self.stage == "foreign" and not self.source) or (
            self.stage == "generalist" and not (self.source or trained)
        ):
            raise ValueError("the origin of the encoder is missing")
        return self


class _Card(BaseModel):
    """encoder.json of an encoder."""

    lineage: Annotated[list[_Stage], Field(min_length=1)]


def natural_image_starts(folder: Path) -> Iterator[tuple[str, str]]:
    """What the cards of a study's encoders say about the first stage of those that began with natural images."""
    for card in sorted(folder.glob("encoders/*/encoder.json")):
        first = read_json(card, _Card)["lineage"][0]
        if first["stage"] == "foreign":
            yield (
                first["source"],
                f"The natural-image start is the file {first['source']}, whose card does not name its training data: "
                "results that start from it hold for these weights only.",
            )
        elif first["stage"] == "generalist" and "source" in first:
            yield first["source"], ""
        elif first["stage"] == "generalist":
            trained = f"{first['data']['name']} images, {first['steps']:,} steps with batch size {first['batch_size']}"
            yield (
                f"trained in this study on {trained}",
                f"The natural-image start was trained in this study ({trained}): it is not an ImageNet encoder.",
            )


def pretraining_lengths(folder: Path) -> tuple[str, bool]:
    """A sentence on the pretraining of each encoder that was trained in the study, and whether any was short.

    Several pretraining seeds of one pipeline are told once.
    """
    facts: dict[str, tuple[int, float | None]] = {}
    for card in sorted(folder.glob("encoders/*/encoder.json")):
        last = read_json(card, _Card)["lineage"][-1]
        if last["stage"] in ("generalist", "specialist", "hierarchical") and last.get("steps") is not None:
            name = re.sub(r"-pretrained\d+$", "", card.parent.name)
            facts.setdefault(name, (last["steps"], last.get("start_share")))
    if not facts:
        return "", False
    texts = []
    for name, (steps, share) in facts.items():
        left = "" if share is None else f" ({share:.1%} of the initial weights are left in the encoder)"
        texts.append(f"{name} {steps:,} optimiser steps{left}")
    is_few = any(steps < FEWEST_STEPS for steps, _ in facts.values())
    is_left = any((share or 0) > LARGEST_SHARE for _, share in facts.values())
    end = f"; with fewer than {FEWEST_STEPS:,} steps scores say little about a method" if is_few else ""
    return f"Pretraining: {', '.join(texts)}{end}.", is_few or is_left
