"""The model card of an export: a README.md in the format of the Hugging Face hub, filled from the run."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from encoders.export.runs import Trained

LIBRARIES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "smp": "segmentation-models-pytorch",
    "onnx": "onnx",
    "torchscript": "pytorch",
}
TASKS = {"encoder": "image-feature-extraction", "segmenter": "image-segmentation", "classifier": "image-classification"}
UNKNOWN = "not recorded"


def model_card(trained: Trained, target: str, name: str, lines: dict[str, str], merged: bool) -> str:
    """The text of a model card.

    Args:
        trained: the network that was exported.
        target: the format, a key of `LIBRARIES`.
        name: name of the model.
        lines: from the export: `sizes` of images that it takes, and code to `use` it.
        merged: whether the normalisation is inside the graph.
    """
    scores = _scores(trained)
    data = ModelCardData(
        license="unknown",
        library_name=LIBRARIES[target],
        pipeline_tag=TASKS["encoder" if target in ("timm", "torchvision") else trained.kind],
        tags=["medical-imaging", "fewslice", *([trained.decoder] if trained.kind == "segmenter" else [])],
        model_name=name,
        eval_results=_eval_results(trained, scores) or None,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _what(trained),
        f"## Use\n\n```python\n{lines['use']}\n```\n\n{_input(trained, lines['sizes'], merged)}",
        f"## Training\n\n{_training(trained)}",
        f"## Scores\n\n{_score_text(scores)}",
        _limits(trained),
    ]
    return "\n\n".join(sections) + "\n"


def _what(trained: Trained) -> str:
    norm = {"batch": "batch norm", "frozen": "frozen batch norm"}.get(trained.norm, trained.norm)
    if trained.kind == "segmenter":
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(trained.classes))
        network = {"unet": "U-Net", "dpt": "DPT"}[trained.decoder]
        return f"A {network} on {trained.encoder} ({norm}), trained with fewslice. Classes: {classes}."
    if trained.kind == "classifier":
        task = trained.facts.get("task") or UNKNOWN
        return f"A classifier of exams (task: {task}) on {trained.encoder} ({norm}), trained with fewslice."
    return f"An encoder, {trained.encoder} ({norm}), pretrained with fewslice. It gives features, not classes."


def _input(trained: Trained, sizes: str, merged: bool) -> str:
    channels = "one channel" if trained.in_channels == 1 else f"{trained.in_channels} channels"
    text = [f"Images: {channels}, {sizes}; trained on {trained.side} x {trained.side} pixels."]
    if trained.spacing_mm:
        text.append(f"Slices must be resampled to square pixels of {trained.spacing_mm:g} mm first.")
    if merged:
        text.append("The graph takes intensities in file units (float32) and normalises them itself.")
        if trained.spacing_mm and trained.over == "image":
            text.append(
                "fewslice normalises before it resamples; here it is done after, on slightly different intensities."
            )
    elif trained.over == "dataset" and trained.statistics:
        mean, std = trained.statistics
        text.append(f"Intensities must be normalised first: (intensity - {mean:.6g}) / {std:.6g}.")
    else:
        text.append(
            f"Intensities must be normalised first: minus their mean over each {trained.over}, divided by their "
            "standard deviation over it."
        )
    return " ".join(text)


def _training(trained: Trained) -> str:
    facts, rows = trained.facts, ["| stage | method | data | steps |", "|---|---|---|---|"]
    for stage in facts.get("lineage", []):
        data = stage.get("data", {})
        counted = next((f", {data[unit]} {unit}" for unit in ("slices", "exams", "images") if unit in data), "")
        source = data.get("name", UNKNOWN) + counted
        if stage.get("source"):
            source += f" (weights: {stage['source']})"
        cells = (stage.get("stage", UNKNOWN), stage.get("method", ""), source, stage.get("steps", ""))
        rows.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    if trained.kind != "encoder":
        result = facts.get("result", {})
        kind = "segmentation" if trained.kind == "segmenter" else "classification"
        labelled = result.get("labelled_slices") or result.get("train", {}).get("exams")
        of = "slices" if trained.kind == "segmenter" else "exams"
        dataset = str(facts.get("dataset", UNKNOWN)).split(" ")[0]
        count = f", {labelled} labelled {of}" if labelled else ""
        rows.append(f"| supervised | {kind} | {dataset}{count} | {result.get('steps') or ''} |")
    if len(rows) == 2:
        return "The run records no training: random weights."
    start = "" if trained.kind == "encoder" else f"\n\nStart of the encoder: {facts.get('init', UNKNOWN)}."
    return "\n".join(rows) + start


def _scores(trained: Trained) -> list[dict[str, Any]]:
    """The scores of a run: name, split, value and, where the run has them, low and high of the 95 % interval."""
    result = trained.facts.get("result", {})
    scores = []
    for split in ("val", "test"):
        part = result.get(split)
        if trained.kind == "segmenter":
            part = result if split == "val" else part
            values = part.get("dice") if isinstance(part, dict) else None
            if isinstance(values, dict) and isinstance(values.get("mean"), float):
                unit = f"{part.get('patients', '?')} patients"
                scores.append({"name": "Dice", "split": split, "value": values["mean"], "of": unit})
        elif trained.kind == "classifier" and isinstance(part, dict) and isinstance(part.get("auc"), dict):
            scores.append({"name": "AUC", "split": split, "of": f"{part.get('exams', '?')} exams"} | part["auc"])
    return scores


def _score_text(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return "The run has no scores."
    rows = ["| score | split | value | over |", "|---|---|---|---|"]
    for score in scores:
        value = f"{score['value']:.3f}"
        if "low" in score:
            value += f" (95 % interval {score['low']:.3f} to {score['high']:.3f})"
        rows.append(f"| {score['name']} | {score['split']} | {value} | {score['of']} |")
    return "\n".join(rows)


def _eval_results(trained: Trained, scores: list[dict[str, Any]]) -> list[EvalResult]:
    dataset = str(trained.facts.get("dataset", "unknown")).split(" ")[0]
    return [
        EvalResult(
            task_type=TASKS[trained.kind],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=score["split"],
            metric_type=score["name"].lower(),
            metric_value=round(score["value"], 4),
        )
        for score in scores
    ]


def _limits(trained: Trained) -> str:
    notes = [
        "## Licence and limits",
        "The licence is for you to set in the first lines of this file. Weights inherit the terms of the weights that "
        "training started from and of the data that it used, which fewslice does not know: the table above names them.",
        "A research model: it is no medical device, and scores hold for data like those that it was scored on.",
    ]
    if warnings := trained.facts.get("warnings"):
        notes.append("Scores may be too high: " + "; ".join(warnings))
    if trained.facts.get("result", {}).get("synthetic"):
        notes.append("Trained on synthetic images: it only shows that the software runs.")
    return "\n\n".join(notes)
