import pandas as pd
import pytest
from forking import run_forked

from encoders.build import build_encoder
from encoders.weights import save_encoder


def run_example(name, *arguments):
    done = run_forked(f"examples/{name}.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_load_encoder(tmp_path):
    card = {"normalisation": {"kind": "z-score", "over": "image"}, "norm": "batch", "lineage": []}
    encoder = build_encoder("resnet18")
    file = save_encoder(encoder, tmp_path, name="resnet18", in_channels=1, network="target", **card)
    printed = run_example("load_encoder", file)
    assert "(1, 512) features" in printed
    assert "(1, 4, 96, 96) logits" in printed


@pytest.mark.slow
def test_python_api():
    assert "validation Dice with 18 labelled slices" in run_example("python_api", 2)


@pytest.mark.slow
def test_read_study(tmp_path):
    runs = [(pipeline, size) for pipeline in ("random", "specialist") for size in (2, 10)]
    cells = pd.DataFrame(runs, columns=["pipeline", "labelled_slices"]).assign(dice=[0.1, 0.2, 0.3, 0.4], split="val")
    cells.to_csv(tmp_path / "results.csv")
    cells.assign(cell="c", subject="001", phase="ED", dice_LV=0.5).to_csv(tmp_path / "per_volume.csv")
    printed = run_example("read_study", tmp_path)
    assert "0.4" in printed
    assert "001" in printed
