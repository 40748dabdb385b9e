"""Two processes on one machine against one process, on the CPU (gloo)."""

import os
import socket
from copy import deepcopy
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from conftest import train_in_float64
from forking import fork
from safetensors.torch import load_file
from torch.optim import SGD

import engine.supervised
import segment.training
from data.augmentation import Augmentation
from data.sources import AcdcSource
from pretrain.config import PretrainConfig
from pretrain.stages import run
from segment.config import SegmentConfig


def tiny(root: Path, out: Path, **settings) -> PretrainConfig:
    settings |= {} if "method" in settings else {"predictor_hidden": 256}
    return PretrainConfig(
        data=AcdcSource(data_root=root),
        out=out,
        norm="group",
        image_size=32,
        generalist_images=9,
        generalist_epochs=1,
        batch_size=21,
        steps=3,
        projector_hidden=256,
        projection=32,
        device="cpu",
        log_every=1,
        checkpoint_every=2,
        **settings,
    )


def _run_in_two_processes(cfg: PretrainConfig | SegmentConfig) -> None:
    """What torchrun does, but forked: importing torch twice takes long."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [fork(_process, (rank, cfg, port)) for rank in range(2)]
    for process in processes:
        process.start()
    while running := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in running])
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()  # it would wait for the one that failed
    assert [process.exitcode for process in processes] == [0, 0]


def _process(rank: int, cfg: PretrainConfig | SegmentConfig, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    with pytest.MonkeyPatch.context() as patch:
        train_in_float64(patch)
        _run(cfg, patch)


def _run(cfg: PretrainConfig | SegmentConfig, patch: pytest.MonkeyPatch) -> None:
    if isinstance(cfg, PretrainConfig):
        run(cfg)
        return
    predict = segment.training.predict_split  # of float32 images
    patch.setattr(segment.training, "predict_split", lambda unet, *a: predict(deepcopy(unet).float(), *a))
    # Adam would scale the rounding errors of gradients that are zero up to its learning rate.
    patch.setattr(engine.supervised, "adamw", lambda network, lr, **_: SGD(network.parameters(), lr=lr))
    segment.training.run(cfg)


@pytest.mark.parametrize(("method", "micro"), [("byol", 4), ("simclr", 4), ("moco", None)])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_two_processes_equal_one(tiny_acdc, tmp_path, monkeypatch, in_float64, method, micro):
    """30 slices in batches of 21 and 9: unequal shares; in micro-batches of 4 one process has no sample at the end."""
    chain = {"stage": "hierarchical", "encoder": "test_resnet"}
    settings = chain if method == "byol" else {"stage": "specialist", "encoder": "test_resnet"}
    both = tiny(tiny_acdc, tmp_path / "both", method=method, micro_batch_size=micro, **settings)
    one = tiny(tiny_acdc, tmp_path / "one", method=method, **settings)
    _run_in_two_processes(both)
    _run(one, monkeypatch)
    for stage in ("generalist", ".") if method == "byol" else (".",):
        ours, alone = (load_file(cfg.run_folder / stage / "encoder.safetensors") for cfg in (both, one))
        assert ours.keys() == alone.keys()
        for key, value in ours.items():
            # the losses alone are in float32, whose rounding the gradients carry on
            torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-7, msg=key)
    losses = [
        [line.split(",")[3] for line in (cfg.run_folder / "metrics.csv").read_text().splitlines()[1:]]
        for cfg in (both, one)
    ]
    assert [float(loss) for loss in losses[0]] == pytest.approx([float(loss) for loss in losses[1]], abs=1e-5)


LEARNS_FROM_A_TEACHER = {
    "unlabelled": True,
    "confidence": 0.3,
    "unlabelled_ramp": (0.0, 0.0),
    "ema_decay": 0.5,
    "augmentation": Augmentation(crop="fixed", foreground=1.0),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, LEARNS_FROM_A_TEACHER], ids=["labels", "pseudo-labels"])
def test_two_processes_train_the_unet_of_one(tiny_acdc, tmp_path, monkeypatch, in_float64, settings):
    """The Jaccard loss is of the whole batch: 5 slices, of which one process has 2 and 1, the other 2 and none.

    With pseudo-labels the teacher's looks, the share of confident pixels and the foreground found are of both.
    """
    both, one = (
        SegmentConfig(
            data=AcdcSource(data_root=tiny_acdc),
            out=tmp_path / name,
            encoder="test_resnet",
            norm="group",
            image_size=32,
            loss="jaccard+ce",
            steps=3,
            batch_size=5,
            micro_batch_size=micro,
            lr=0.1,
            device="cpu",
            figures=False,
            labelled_fraction=0.2 if settings else 1.0,
            **settings,
        )
        for name, micro in (("both", 2), ("one", None))
    )
    _run_in_two_processes(both)
    _run(one, monkeypatch)
    ours, alone = (load_file(cfg.run_folder / "model.safetensors") for cfg in (both, one))
    for key, value in ours.items():
        torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-8, msg=key)
    losses = [(cfg.run_folder / "metrics.csv").read_text().splitlines()[1].split(",")[3] for cfg in (both, one)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-5)
