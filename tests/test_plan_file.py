import ast
from pathlib import Path

import sweep
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig
from sweep.report.study_folder import read_plan
from sweep.study.grid import Job
from sweep.study.plan_file import write_plan

PACKAGES = ("core", "data", "encoders", "engine", "pretrain", "segment", "classify", "sweep", "benchmarks")


def test_the_report_reads_what_the_sweep_plans(tmp_path):
    key = {"pipeline": "hierarchical", "pretrain_epochs": None, "labels": 7, "seed": 0}
    encoder = Job(name="encoders/hierarchical", config=PretrainConfig(stage="hierarchical"), key={})
    cell = Job(name="cells/a", config=SegmentConfig(), needs=(encoder.name,), key=key)
    write_plan(tmp_path, [encoder, cell], "slices", "segment")
    jobs = [
        {"name": "encoders/hierarchical", "is_cell": False, "needs": [], "stage": "hierarchical", "epochs": 25},
        {"name": "cells/a", "is_cell": True, "needs": ["encoders/hierarchical"]} | key,
    ]
    assert read_plan(tmp_path) == {"unit": "slices", "task": "segment", "jobs": jobs}


def test_the_report_and_the_analysis_import_no_stage_and_no_study():
    """Report and analysis read the folder of a study, and import no code that runs one."""
    home = Path(sweep.__file__).parent
    # pictures in a study are files like any other: they are opened by the checked decoders
    rooms = {
        "analysis": ("core", "sweep.analysis"),
        "report": ("core", "data.pictures", "sweep.analysis", "sweep.report"),
    }
    for room, allowed in rooms.items():
        for file in (home / room).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            ours = {name for name in names if name.partition(".")[0] in PACKAGES}
            assert not {name for name in ours if not name.startswith(allowed)}, file
