"""The spellings of version 0.1 work for one version more."""

import pytest

import classify.config
import pretrain.config
import segment.config
import sweep.study.config
from engine.command_line import parse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (pretrain.config, "--trust 0.5 --resident no", "--trust-coefficient 0.5 --cache-on-device no"),
        (pretrain.config, "--pool everyone", "--unlabelled-splits all"),
        (pretrain.config, "--pool=everyone", "--unlabelled-splits=all"),
        (segment.config, "--mirror --ema 0.5", "--flip-tta --ema-decay 0.5"),
        (
            segment.config,
            "--recipe default --no-mirror --one-piece yes",
            "--recipe default --no-flip-tta --keep-largest-component yes",
        ),
        (segment.config, "--views.flip 0.1 --clip 3", "--augmentation.flip 0.1 --max-grad-norm 3"),
        (segment.config, "--clip=3", "--max-grad-norm=3"),
        (classify.config, "--clip maxpool2d --views.area 0.5 1", "--augmentation.area 0.5 1"),
        (pretrain.config, "--dataset mrnet --clip=maxpool2d", "--dataset mrnet"),
        (sweep.study.config, "--segment.clip 3", "--segment.max-grad-norm 3"),
        (sweep.study.config, "--pretrain.trust 0.5", "--pretrain.trust-coefficient 0.5"),
    ],
)
def test_old_spelling(module, old, new):
    presets_for = getattr(module, "presets_for", lambda _: module.PRESETS)
    now = parse(presets_for, "", new.split())
    assert parse(presets_for, "", old.split()) == now
    assert now != parse(presets_for, "", [])
