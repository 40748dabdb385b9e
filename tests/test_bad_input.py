"""Every mistake a user can make ends in one sentence, exit code 2 and nothing lost."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import pretrain.__main__
import segment.__main__
from encoders.build import build_encoder
from encoders.weights import save_encoder
from engine.config import plain
from pretrain.config import PretrainConfig

FEW = ["--encoder", "test_resnet", "--image-size", "32", "--batch-size", "4", "--steps", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch, no_stale_handlers):
    """Run each test in its temporary folder, so that runs are written there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(monkeypatch, capsys) -> Callable[..., str]:
    """Run a command that must be refused; return its error message in one line."""

    def command(main: Callable[[], None], *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        message = capsys.readouterr()
        assert stop.value.code == 2
        assert "Traceback" not in message.out + message.err
        if not message.err.startswith("error: "):  # a box drawn by tyro
            return " ".join(re.sub(r"[│╭╮╰╯─]", " ", message.err).split())
        assert message.err.count("\n") == 1
        return message.err

    return command


COMMANDS = {
    "segment": (segment.__main__.main, FEW),
    "pretrain": (pretrain.__main__.main, [*FEW, "--stage", "specialist"]),
}
BOTH = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def acdc(tiny_acdc, tmp_path) -> Path:
    """A copy of the data set for a test to damage."""
    return shutil.copytree(tiny_acdc, tmp_path / "acdc")


def patient(acdc: Path, number: int = 4, kind: str = "") -> Path:
    return acdc / f"training/patient{number:03d}/patient{number:03d}_frame01{kind}.nii.gz"


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(file)
    changed = nib.Nifti1Image(change(np.asarray(image.dataobj)), np.eye(4))
    changed.header.set_zooms(image.header.get_zooms())
    changed.to_filename(file)


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        values[3, 4, 1] = value
        return values

    return change


# The data


@BOTH
@pytest.mark.slow
def test_missing_root(refused, command, tmp_path):
    main, few = COMMANDS[command]
    message = refused(main, *few, "--data-root", tmp_path / "nowhere", "--out", "run")
    assert re.search(r"nowhere is not a folder: --data-root must hold ACDC's training/", message)
    assert not Path("run").exists()


@pytest.mark.slow
@BOTH
def test_root_without_patients(refused, command, tmp_path):
    (tmp_path / "empty").mkdir()
    main, few = COMMANDS[command]
    message = refused(main, *few, "--data-root", tmp_path / "empty", "--out", "run")
    assert re.search(r"empty holds no patientNNN folders: --data-root must", message)
    message = refused(main, *few, "--dataset", "folder", "--data-root", tmp_path / "empty", "--out", "run")
    assert re.search(r"empty holds no \.nii, .* images: check --data-root", message)
    message = refused(main, *few, "--dataset", "folder", "--out", "run")
    assert "needs --data-root" in message
    assert not Path("run").exists()


DAMAGES = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:300]), r"frame01\.nii\.gz cannot be read .*copy it again"),
    "not NIfTI": (lambda f: f.write_text("hello"), r"frame01\.nii\.gz cannot be read .*damaged, or no image"),
    "empty": (lambda f: f.write_bytes(b""), r"frame01\.nii\.gz cannot be read .*copy it again"),
    "NaN": (lambda f: rewrite(f, put(np.nan)), r"frame01\.nii\.gz holds NaN or infinite values \(slice 1\): repair"),
    "infinite": (lambda f: rewrite(f, put(np.inf)), r"frame01\.nii\.gz holds NaN or infinite .* repair or remove it"),
    "constant": (lambda f: rewrite(f, lambda v: v * 0 + 7), r"frame01\.nii\.gz has the value 7 everywhere: remove it"),
}


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_image(refused, command, damage, acdc):
    do, sentence = DAMAGES[damage]
    do(patient(acdc))
    main, few = COMMANDS[command]
    assert re.search(f"patient004_{sentence}", refused(main, *few, "--data-root", acdc, "--out", "run"))
    assert not Path("run").exists()


LABEL_DAMAGES = {
    "other shape": (lambda v: v[:-1], r"_gt\.nii\.gz .*frame01\.nii\.gz \(shape 63 x 56 x 3 for 64 x 56 x 3\)"),
    "label 4": (put(4), r"_gt\.nii\.gz.* label values among \[4\]: the classes are 0\.\.3 \(background, RV"),
    "label 300": (put(300), r"_gt\.nii\.gz holds label values \[300\.0\]: class indices are whole"),
    "label -1": (put(-1), r"_gt\.nii\.gz holds label values \[-1\.0\]: class indices are whole"),
    "label 1.5": (put(1.5), r"_gt\.nii\.gz holds label values \[1\.5\]: class indices are whole"),
}


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("damage", LABEL_DAMAGES)
def test_damaged_label_map(refused, command, damage, acdc):
    do, sentence = LABEL_DAMAGES[damage]
    rewrite(patient(acdc, kind="_gt"), do)
    main, few = COMMANDS[command]
    assert re.search(f"patient004_frame01{sentence}", refused(main, *few, "--data-root", acdc, "--out", "run"))
    assert not Path("run").exists()


def test_several_damaged_files_are_counted(refused, acdc):
    for number in (3, 4, 5):
        rewrite(patient(acdc, number), put(np.nan))
    main, few = COMMANDS["segment"]
    message = refused(main, *few, "--data-root", acdc, "--out", "run")
    assert re.search(r"patient003_frame01.*\(and 2 more\); `python -m data\.inspect`", message)


def test_a_data_set_without_validation_is_refused_before_training(refused, acdc):
    shutil.rmtree(acdc / "training/patient002")
    main, few = COMMANDS["segment"]
    message = refused(main, *few, "--data-root", acdc, "--out", "run")
    assert re.search(r"acdc has no labelled volume in the val split to score; label a val subject", message)
    assert not Path("run").exists()


def test_a_test_split_asked_for_and_missing(refused, acdc):
    shutil.rmtree(acdc / "training/patient001")
    main, few = COMMANDS["segment"]
    message = refused(main, *few, "--test", "--data-root", acdc, "--out", "run")
    assert re.search("--test: no subject of .*acdc is in the test split; leave it out", message)
    assert not Path("run").exists()


def test_images_without_labels(refused, tmp_path):
    main, few = COMMANDS["segment"]
    (tmp_path / "scans").mkdir()
    nib.Nifti1Image(np.arange(96, dtype=np.int16).reshape(8, 6, 2), np.eye(4)).to_filename(tmp_path / "scans/a.nii")
    message = refused(main, *few, "--dataset", "folder", "--data-root", tmp_path / "scans", "--out", "run")
    assert "scans has no label map for any of its images, and segmentation is learned from them: add " in message
    assert not Path("run").exists()


@pytest.mark.slow
@BOTH
def test_a_subject_in_two_splits(refused, command, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for n in range(3):
            values = np.random.default_rng(n).integers(0, 3 if kind == "labels" else 99, (8, 6, 2)).astype(np.uint8)
            nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / f"set/{kind}/case{n}.nii.gz")
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["case0", "case1"], "val": ["case1"], "test": ["case2"]}))
    main, few = COMMANDS[command]
    options = ("--dataset", "folder", "--data-root", tmp_path / "set", "--splits-file", file, "--out", "run")
    message = refused(main, *few, *options)
    assert re.search(r"subject case1 is both in train and in val of .*splits\.json: keep one", message)
    for content, sentence in (
        ("[", "is not JSON"),
        ("[1]", "must hold"),
        ('{"train": ["case0"]}', "misses 2 labelled"),
    ):
        file.write_text(content)
        assert re.search(rf"splits\.json {sentence}", refused(main, *few, *options))
    assert not Path("run").exists()
    assert "goes with --dataset folder" in refused(main, *few, "--data-root", tmp_path / "set", "--splits-file", file)


# The choices


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1", "nan", "abc"])
def test_fraction(refused, fraction, tiny_acdc):
    main, few = COMMANDS["segment"]
    message = refused(main, *few, "--data-root", tiny_acdc, "--labelled-fraction", fraction, "--out", "run")
    expected = (
        "could not convert string to float: 'abc'" if fraction == "abc" else r"must lie in \(0, 1\], e\.g\. 0\.02"
    )
    assert re.search(f"--labelled-fraction.* {expected}", message)
    assert not Path("run").exists()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--steps", "0", r"--steps 0: must be above 0"),
        ("--batch-size", "-1", r"--batch-size -1: must be above 0"),
        ("--micro-batch-size", "0", r"--micro-batch-size 0: must be above 0"),
        ("--lr", "inf", r"--lr inf: must be above 0"),
        ("--image-size", "31", r"--image-size 31: must be (at least|a multiple of) 32"),
        ("--precision", "fp16", r"--precision fp16 needs a GPU; use fp32 or bf16"),
        ("--seed", "-1", r"--seed -1: must be 0 or more"),
        ("--augmentation.area", "1 0.5", r"--augmentation\.area 1\.0 0\.5: must rise and lie in \(0, 1\]"),
        ("--augmentation.zoom", "0 2", r"--augmentation\.zoom 0\.0 2\.0: must rise and be above 0"),
        ("--augmentation.noise-sd", "2 1", r"--augmentation\.noise-sd 2\.0 1\.0: must rise from 0 or more"),
        ("--devices", "0", r"--devices 0: must be above 0"),
        ("--workers", "-1", r"--workers -1: must be 0 or more"),
        ("--weight-decay", "-1", r"--weight-decay -1\.0: must be 0 or more"),
        ("--augmentation.flip", "3", r"--augmentation\.flip 3\.0: must lie in \[0, 1\]"),
        ("--recipe", "nonsense", r"--recipe nonsense: there is no such preset; choose demo, default, paper"),
        ("--norm", "layer", r"invalid choice 'layer'.*batch"),
        ("--stepz", "3", r"Unrecognized options: --stepz.*Perhaps you meant:.*--steps"),
    ],
)
def test_setting(refused, command, flag, value, sentence, tiny_acdc):
    main, few = COMMANDS[command]
    assert re.search(sentence, refused(main, *few, "--data-root", tiny_acdc, "--out", "run", flag, *value.split()))
    assert not Path("run").exists()


@pytest.mark.slow
def test_one_value_has_no_statistics(refused, tiny_acdc):
    main, few = COMMANDS["segment"]
    for sizes in (("--batch-size", "1"), ("--batch-size", "5", "--micro-batch-size", "4")):
        message = refused(main, *few, "--data-root", tiny_acdc, "--out", "run", *sizes)
        assert re.search(r"micro-batch of one sample.*use --norm group or larger images", message)
    assert not Path("run").exists()


@pytest.mark.slow
@BOTH
def test_unknown_encoder(refused, command, tiny_acdc):
    main, few = COMMANDS[command]
    message = refused(main, *few, "--data-root", tiny_acdc, "--out", "run", "--encoder", "resnet81")
    assert re.search(r"encoder 'resnet81' is not a model of timm; the nearest names are .*resnet18", message)
    message = refused(main, *few, "--data-root", tiny_acdc, "--out", "run", "--encoder", "vit_tiny_patch16_224")
    advice = "pass --decoder dpt" if command == "segment" else "take a convolutional network such as resnet18"
    assert re.search(rf"vit_tiny_patch16_224' .*[;:] {advice}", message)
    assert not Path("run").exists()


def test_unknown_stage(refused, tiny_acdc):
    main, few = COMMANDS["pretrain"]
    message = refused(main, *few, "--data-root", tiny_acdc, "--stage", "specialists", "--out", "run")
    assert re.search(r"invalid choice 'specialists'.*generalist.*specialist.*hierarchical", message)
    assert not Path("run").exists()


@BOTH
def test_no_cuda(refused, command, tiny_acdc, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main, few = COMMANDS[command]
    message = refused(main, *few, "--data-root", tiny_acdc, "--out", "run", "--device", "cuda")
    assert re.search("--device cuda: .* no CUDA device.*; try --device cpu", message)
    assert not Path("run").exists()


@BOTH
def test_config_file(refused, command, tmp_path):
    main, few = COMMANDS[command]
    message = refused(main, "--config", "nowhere.json")
    pattern = r"cannot read the configuration nowhere\.json \(No such file.*\); pass a run's config\.json"
    assert re.search(pattern, message)
    for content, sentence in (
        ("{", r"mine\.json is not YAML \(line 1: expected the node content"),
        ("[1]", "mine.json holds a list, not settings"),
        ('{"stepz": 3}', "it has no setting stepz"),
        ('{"steps": "many"}', "steps is 'many': Input should be a valid integer"),
        ('{"steps": -3}', "mine.json: --steps -3: must be above 0"),
        ('{"norm": "layer"}', "norm is 'layer': Input should be 'batch', 'group', "),
    ):
        (tmp_path / "mine.json").write_text(content)
        assert re.search(sentence, refused(main, *few, "--config", "mine.json"))
    assert not Path("runs").exists()


# Encoder files


@pytest.fixture
def narrow(tmp_path) -> Path:
    """An encoder file of test_resnet."""
    about = {"normalisation": {}, "lineage": [], "norm": "batch"}
    encoder = build_encoder("test_resnet")
    save_encoder(encoder, tmp_path / "narrow", name="test_resnet", in_channels=1, network="target", **about)
    return tmp_path / "narrow/encoder.safetensors"


INITS = {
    "segment": (segment.__main__.main, FEW, "--init"),
    "hierarchical": (pretrain.__main__.main, [*FEW, "--stage", "hierarchical"], "--generalist"),
    "generalist": (pretrain.__main__.main, [*FEW, "--stage", "generalist"], "--generalist"),
}


@pytest.mark.parametrize("command", INITS)
@pytest.mark.slow
def test_encoder_file(refused, command, tiny_acdc, narrow, tmp_path):
    main, few, flag = INITS[command]
    options = (*few, "--data-root", tiny_acdc, "--out", "run", flag)
    message = refused(main, *options, narrow, "--encoder", "resnet18")
    assert re.search(r"encoder\.safetensors holds a test_resnet, not a resnet18; build a test_resnet for it", message)
    narrow.with_name("encoder.json").unlink()
    message = refused(main, *options, narrow, "--encoder", "resnet18")
    assert re.search(r"encoder\.safetensors does not hold a resnet18: .*or with --encoder the architecture", message)
    message = refused(main, *options, "missing.pth")
    assert re.search(r"missing\.pth.*(check the path|pass an encoder file)", message)
    (tmp_path / "text.pth").write_text("hello")
    message = refused(main, *options, tmp_path / "text.pth")
    assert re.search(r"text\.pth is neither a safetensors file nor a torch file of tensors", message)
    assert not Path("run").exists()


# Nothing is lost


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_folder_in_use(refused, command, tiny_acdc, tmp_path, monkeypatch):
    main, few = COMMANDS[command]
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")
    for force in ([], ["--overwrite"], ["--resume"]):
        message = refused(main, *few, "--data-root", tiny_acdc, "--out", notes, *force)
        assert re.search(r"notes is not empty and holds no fewslice run; choose another --out", message)
    (notes / "config.json").write_text('{"model": "of another program"}')
    message = refused(main, *few, "--data-root", tiny_acdc, "--out", notes, "--overwrite")
    assert "holds no fewslice run" in message
    assert sorted(file.name for file in notes.iterdir()) == ["config.json", "thesis.txt"]


@pytest.mark.slow
def test_an_earlier_run_is_kept(refused, tiny_acdc, narrow, monkeypatch, capsys):
    main, few = COMMANDS["segment"]
    options = (*few, "--data-root", tiny_acdc, "--out", "run")
    monkeypatch.setattr(sys, "argv", ["segment", *map(str, options)])
    main()
    capsys.readouterr()
    before = {file: file.read_bytes() for file in Path("run").iterdir() if file.is_file()}
    assert "holds an earlier run; continue it with --resume, replace it with --overwrite" in refused(main, *options)
    message = refused(main, *options, "--resume", "--lr", "0.5")
    assert re.search(r"cannot resume run with other settings \(lr was 0\.001 and is now 0\.5\)", message)
    # A mistake beside --overwrite must not cost the earlier run.
    refused(main, *options, "--overwrite", "--init", narrow, "--encoder", "resnet18")
    refused(main, *options, "--overwrite", "--init", "missing.pth")
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_a_mistake_beside_overwrite_keeps_the_encoder(refused, tiny_acdc, narrow):
    """Pretraining reads what it starts from before it removes anything."""
    out = Path("run")
    out.mkdir()
    earlier = PretrainConfig(stage="generalist")
    (out / "config.json").write_text(json.dumps(plain(earlier)))
    (out / "encoder.safetensors").write_text("hours of work")
    for command in ("hierarchical", "generalist"):
        main, few, flag = INITS[command]
        wrong = (flag, narrow, "--encoder", "resnet18")
        assert "not a resnet18" in refused(main, *few, "--data-root", tiny_acdc, "--out", out, "--overwrite", *wrong)
        assert (out / "encoder.safetensors").read_text() == "hours of work"


# Command lines


@BOTH
def test_help(command, monkeypatch, capsys):
    main, _ = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", ["/some/where/__main__.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    message = capsys.readouterr().out
    assert f"usage: python -m {command} " in message
    for text in ("--recipe {demo,default,paper}", "--config", "--data-root", "--resume", "examples:\n  python -m"):
        assert text in message
    assert "/some/where" not in message


@pytest.mark.parametrize("flag", ["--data-root ", "--data-root="])
def test_a_path_with_spaces_without_quotes(flag, tmp_path, monkeypatch, capsys):
    (tmp_path / "my scans 2").mkdir()
    line = f"segment {flag}{tmp_path}/my scans 2 --out no/such/run"
    monkeypatch.setattr(sys, "argv", line.split(" "))
    with pytest.raises(SystemExit) as stop:
        COMMANDS["segment"][0]()
    assert stop.value.code == 2
    assert f'"{tmp_path}/my scans 2" exists: write a path with spaces in quotes' in capsys.readouterr().err


@pytest.mark.slow
def test_values_keep_their_underscores(monkeypatch, tiny_acdc, refused):
    main, few = COMMANDS["segment"]
    message = refused(main, *few, f"--data_root={tiny_acdc}", "--out", "run", "--init=my_new_encoder.pth")
    assert "my_new_encoder.pth" in message
