"""The settings of a study in words: the table "what was run" of its report."""

from collections.abc import Sequence
from typing import Any

from sweep.report.study_folder import Study, length_of, pixels


def what_was_run(study: Study) -> dict[str, str]:
    """The settings of a study in words, for the page."""
    facts, settings = study.facts, study.settings
    run, pretraining = settings["classify" if study.measure == "auc" else "segment"], settings["pretrain"]
    sizes = study.results.groupby("labels")["fraction"].first().items()
    spacing = run.get("spacing_mm")
    rows = {
        "Data set": facts.data,
        "Scored on": f"{facts.count_scored} of the {facts.split} split",
        "Pipelines": ", ".join(settings["pipelines"]),
        f"Labelled {facts.unit}": ", ".join(
            str(labels) if settings.get("sizes") else f"{labels} ({100 * fraction:.2g} %)" for labels, fraction in sizes
        ),
        "Seeds": _commas(settings["seeds"])
        + (" (every subset seed with every training seed)" if settings.get("cross_seeds") else ""),
        "Encoder": run["encoder"],
        "Images": pixels(run["image_size"]) + (f" of {spacing:g} mm" if spacing else ""),
        "Training": length_of(run),
    }
    if "labelled_subjects" in study.results:
        subjects = study.results.groupby("labels")["labelled_subjects"].mean()
        rows["Mean number of labelled patients"] = ", ".join(f"{count:.3g}" for count in subjects)
    epochs = {job["stage"]: job["epochs"] for job in study.runs if job.get("stage") in ("specialist", "hierarchical")}
    if epochs:
        if counts := settings.get("pretrain_epochs"):
            whole = ", ".join(f"{count:g} ({stage})" for stage, count in epochs.items())
            whole = f"{pretraining['steps']:,} steps" if pretraining["steps"] else f"{whole} epochs"
            length = f"{_commas(counts)} epochs of a schedule of {whole}"
        elif pretraining["steps"]:
            length = f"{pretraining['steps']:,} steps"
        else:
            length = ", ".join(f"{count:g} epochs ({stage})" for stage, count in epochs.items())
        size = pixels(pretraining["image_size"])
        masked = ["masked"] if any(each.startswith("masked") for each in settings["pipelines"]) else []
        methods = ", ".join(dict.fromkeys([pretraining.get("method", "byol"), *masked]))
        rows[f"Domain pretraining ({methods})"] = f"{length} with batch size {pretraining['batch_size']}, {size}"
    if facts.natural_image_starts:
        rows["Natural-image start"] = "; ".join(facts.natural_image_starts)
    if rates := _rates(study):
        rows["Learning rate"] = rates
    if run.get("keep_largest_component") == "yes":
        rows["Predictions"] = "only the largest connected component of each volume's foreground is kept"
    if len(settings["pretrain_seeds"]) > 1:
        rows["Pretraining seeds"] = _commas(settings["pretrain_seeds"])
    if "versions" in study.results:
        rows["Versions"] = str(study.results["versions"].iloc[0]).replace(" ", ", ").replace("=", " ")
    return rows


def _rates(study: Study) -> str:
    """The learning rate of each pipeline and how it was chosen; empty if all have one rate."""
    tried = study.settings.get("lr") or []
    if len(tried) < 2 or "lr" not in study.results:
        return ""
    chosen = study.results.groupby("pipeline", sort=False)["lr"].unique()  # folds choose their own
    rates = [(pipeline, rate) for pipeline, of_folds in chosen.items() for rate in of_folds]
    texts = [f"{' or '.join(f'{rate:g}' for rate in of_folds)} ({pipeline})" for pipeline, of_folds in chosen.items()]
    unit = study.facts.unit_scored
    how = f"each the best of {_commas([f'{rate:g}' for rate in tried])} on a third of the labelled training {unit}"
    ends = [f"{pipeline}: {'highest' if rate == max(tried) else 'lowest'}" for pipeline, rate in rates
            if rate in (min(tried), max(tried))]  # fmt: skip
    edge = f"; at the edge of those tried, so that a better one may lie beyond: {', '.join(ends)}" if ends else ""
    return f"{', '.join(texts)}, {how}, which nothing reported was scored on{edge}"


def _commas(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
