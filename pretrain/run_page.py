"""What the page of a pretraining run shows, and the command that comes after it."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from core.program import program
from core.wording import count_of
from engine.run_page import RunPage
from pretrain.config import PretrainConfig


def run_page(cfg: PretrainConfig, result: Mapping[str, Any]) -> RunPage:
    """The page of a finished run, with the content of its `result.json`."""
    unit = next((name for name in ("images", "exams", "slices") if name in result), None)
    seen = count_of(result[unit], unit[:-1]) if unit else f"the weights of {cfg.generalist}"
    rows = {
        "Stage": cfg.stage,
        "Data": seen,
        "Encoder": f"{cfg.encoder}, {cfg.norm} norm",
        "Training": f"{count_of(result['steps'], 'step')} of {cfg.batch_size}, {cfg.image_size} pixels",
        "Seed": str(cfg.seed),
    }
    words = {
        "learning_rate": "Learning rate", "start_share": "Share of the initial weights left", "probe_jaccard": "Probe",
        "projection_std": "Spread of the projections",
    }  # fmt: skip
    rows |= {text: f"{result[name]:.3g}" for name, text in words.items() if name in result}
    return RunPage(
        title=f"Pretraining of {cfg.encoder} by {cfg.method}",
        lead=f"{cfg.stage.capitalize()} stage on {seen}. What an encoder is worth shows only after it is fine-tuned.",
        what_was_run=rows,
        notices=list(result.get("warnings", ())),
        curves={"loss": ["loss"], "probe Jaccard": ["probe_jaccard"], "spread of the projections": ["projection_std"]},
        following={"Fine-tune the encoder": next_command(cfg, result)},
    )


def result_table(cfg: PretrainConfig, result: Mapping[str, Any]) -> Table:
    """What the page of a finished run says was run, and what came of it, as a table for the terminal."""
    table = Table("", "", show_header=False, title=f"{cfg.method}, {cfg.stage} stage")
    for row in run_page(cfg, result).what_was_run.items():
        table.add_row(*row)
    return table


def next_command(cfg: PretrainConfig, result: Mapping[str, Any]) -> str:
    """The command that trains on labels from the encoder, or U-Net, of a finished run."""
    following = program("segment").split()
    if cfg.data.dataset == "acdc":  # 2 % of a few labels would be one slice
        following += ["--labelled-fraction", "0.02"]
    if cfg.on_exams:
        following = [*program("classify").split(), "--encoder", cfg.encoder]
        following += ["--plane", cfg.data.plane] if cfg.data.dataset == "mrnet" else []
    if cfg.on_images:
        following = program("classify.probe").split()
    following += ["--init", result.get("unet", result["encoder"])]
    following += ["--dataset", cfg.data.dataset] if cfg.data.dataset not in ("acdc", "mrnet") else []
    following += ["--data-root", str(cfg.data.data_root)] if cfg.data.data_root else []
    for name in ("task", "split_seed", "labels", "subject_pattern", "splits_file"):  # the subjects and their split
        value = getattr(cfg.data, name, None)
        if value != getattr(type(cfg.data)(), name, None):
            following += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(following)
