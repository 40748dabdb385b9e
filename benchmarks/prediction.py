"""Peak memory of `python -m segment.predict` as files grow in number and in size."""

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.machine import in_fresh_process, resident_mb
from benchmarks.outcome import Outcome, Row

SMALL = (64, 64, 10)
LARGE = (512, 512, 400)
SPACING = (0.7, 0.7, 1.0)
CLASSES = ["background", "RV", "MYO", "LV"]


def run(*, rounds: int, quick: bool) -> Outcome:
    """Measure every point once in a process of its own (`rounds` is ignored); `quick`: few and small files."""
    outcome = Outcome()
    counts, large = ((1, 2), (64, 64, 20)) if quick else ((1, 10, 100), LARGE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = in_fresh_process(write_networks, root, 3)
        peaks = {"none": in_fresh_process(peak_of, runs[:1], None, root)}
        for count in counts:
            images = in_fresh_process(write_images, root / f"images-{count}", count, SMALL)
            peaks[f"{count} small"] = in_fresh_process(peak_of, runs[:1], images, root)
        images = in_fresh_process(write_images, root / "large", 1, large)
        peaks["1 large"] = in_fresh_process(peak_of, runs[:1], images, root)
        peaks["1 large, 3 networks, uncertainty"] = in_fresh_process(peak_of, runs, images, root)
    size = " x ".join(map(str, SMALL))
    names = " -> ".join(map(str, counts))
    what = f"peak memory of predicting {names} files of {size}"
    value = " -> ".join(f"{peaks[f'{count} small']:.0f}" for count in counts) + " MB"
    outcome.add(Row(what=what, value=value), "peak memory, MB", peaks)
    size = " x ".join(map(str, large))
    for name in ("1 large", "1 large, 3 networks, uncertainty"):
        label = f"peak memory of predicting {name.replace('large', f'file of {size}')}"
        outcome.rows.append(Row(what=label, value=f"{peaks[name]:.0f} MB"))
    outcome.rows.append(Row(what="peak memory of the imports and one network alone", value=f"{peaks['none']:.0f} MB"))
    return outcome


def write_networks(folder: Path, count: int) -> list[Path]:
    """Write run folders of U-Nets with random weights; return them."""
    import torch

    from engine.model_file import save_model
    from segment.model import ModelCard, build_unet

    card = ModelCard(
        encoder="resnet10t", norm="batch", classes=CLASSES, normalisation="image", statistics=(0.0, 1.0),
        spacing_mm=1.5, keep_largest_component=True, dataset="", init="random",
    )  # fmt: skip
    runs = []
    for seed in range(count):
        torch.manual_seed(seed)
        runs.append(folder / f"run-{seed}")
        runs[-1].mkdir()
        save_model(build_unet(card.encoder, len(CLASSES)), runs[-1], card)
    return runs


def write_images(folder: Path, count: int, shape: tuple[int, int, int]) -> Path:
    """Write a folder of noisy int16 volumes, which no compression makes small."""
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(-1000, 1000, shape, dtype=np.int16)
        image = nib.Nifti1Image(noise, np.diag([*SPACING, 1.0]))
        nib.save(image, folder / f"case{number:03d}.nii")
    return folder


def peak_of(runs: list[Path], images: Path | None, folder: Path) -> float:
    """Peak resident memory (MB) of this process after predicting a folder; None: after loading the networks alone."""
    import torch

    from segment.predict import Predict
    from segment.predict import run as predict

    torch.set_num_threads(1)
    if images is None:
        from segment.ensemble import load_ensemble

        load_ensemble(runs, torch.device("cpu"))
    else:
        out = folder / f"{images.name}-{len(runs)}"
        maps = folder / f"{out.name}-maps" if len(runs) > 1 else None
        with redirect_stdout(io.StringIO()):
            predict(Predict(run=tuple(runs), input=images, output=out, uncertainty=maps, device="cpu"))
    return resident_mb(peak=True)
