"""Pictures show the right thing in the right place: read from the pixels written, not from what was drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from classify.explain import montage
from classify.model import Classifier, ModelCard
from encoders.build import MaxPoolFrames
from segment.figures import panel_case, prediction_panel

Picture = tuple[Figure, np.ndarray]


@pytest.fixture
def picture(monkeypatch, tmp_path) -> Callable[[Callable[[Path], object]], Picture]:
    """Draws a picture; returns matplotlib's figure, which knows where its axes lie, and the pixels of the file."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))

    def draw(function: Callable[[Path], object]) -> Picture:
        function(tmp_path / "picture.png")
        return figures[-1], np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")) / 255

    return draw


def pixels_of(axis: Axes, picture: Picture) -> np.ndarray:
    """The part of a picture that an image's axes fill, (rows, columns, 3), top left first."""
    figure, pixels = picture
    rows, columns = pixels.shape[:2]
    box = axis.get_window_extent()
    width, height = figure.get_size_inches() * figure.dpi
    left, right = (round(x / width * columns) for x in (box.x0, box.x1))
    top, bottom = (round((1 - y / height) * rows) for y in (box.y1, box.y0))
    return pixels[top:bottom, left:right]


def at(panel: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    """The colour in the middle of an image's pixel, of `size` pixels a side."""
    return panel[int((row + 0.5) / size * panel.shape[0]), int((column + 0.5) / size * panel.shape[1])]


def test_label_maps_lie_on_their_pixels_in_the_colours_of_the_legend(picture):
    """A white upper left quarter; RV upper left and LV lower right in the reference, MYO upper right predicted."""
    image, reference, prediction = np.zeros((1, 40, 40)), np.zeros((1, 40, 40), int), np.zeros((1, 40, 40), int)
    image[0, :20, :20] = 1
    reference[0, 2:10, 2:10] = 1
    reference[0, 28:38, 24:38] = 3
    prediction[0, 2:12, 28:38] = 2
    case = panel_case("a", image, reference, prediction, (8, 1.5, 1.5))
    drawn = picture(lambda path: prediction_panel([case], path, ("RV", "MYO", "LV")))
    figure = drawn[0]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    colour = {n: np.array(to_rgb(line.get_color())) for n, line in zip(names, legend.get_lines(), strict=True)}
    assert list(colour) == ["RV", "MYO", "LV"]
    assert len({tuple(value) for value in colour.values()}) == 3

    panels = {axis.get_title(): pixels_of(axis, drawn) for axis in figure.subfigs[0].axes}
    middles = {"upper left": (6, 6), "upper right": (6, 33), "lower left": (33, 6), "lower right": (33, 31)}
    marks = {"image": {}, "reference": {"upper left": "RV", "lower right": "LV"}, "prediction": {"upper right": "MYO"}}
    for name, marked in marks.items():
        for corner, place in middles.items():
            expected = np.full(3, float(corner == "upper left"))
            if corner in marked:
                expected = 0.65 * expected + 0.35 * colour[marked[corner]]
            np.testing.assert_allclose(at(panels[name], *place, 40), expected, atol=0.02, err_msg=f"{name}, {corner}")


class Brightness(nn.Module):
    """Feature maps of a frame: its bright places, at half the resolution."""

    num_features = 1

    def forward_features(self, frames):
        return nn.functional.avg_pool2d(frames.clamp(min=0), 2)

    def forward_head(self, maps):
        return maps.mean(dim=(2, 3))


@pytest.mark.slow
def test_heat_lies_on_the_frame_and_the_place_that_matter(picture):
    """Six frames, of which the third has a bright square at the right, above the middle."""
    classifier = Classifier(MaxPoolFrames(Brightness())).eval()
    nn.init.ones_(classifier.head.weight)
    card = ModelCard(
        encoder="test_resnet", clip="maxpool2d", norm="batch", image_size=32, clip_frames=4, test_clips=6, test_seed=0,
        threshold=0.5, task="acl", plane="sagittal", dataset="mrnet", init="random",
    )  # fmt: skip
    frames = np.random.default_rng(0).integers(0, 20, (6, 32, 32)).astype(np.float32)
    frames[2, 8:16, 20:28] = 200
    drawn = picture(lambda path: montage(classifier, card, frames, (20.0, 20.0), "a", path))
    images, heats, bars = drawn[0].axes[:-1:2], drawn[0].axes[1:-1:2], drawn[0].axes[-1]
    assert [axis.get_title() for axis in images] == [f"frame {k} of 6" for k in range(1, 7)]
    assert np.argmax([bar.get_height() for bar in bars.patches]) == 2

    plain, hot = ([pixels_of(axis, drawn) for axis in row] for row in (images, heats))
    square = np.zeros((32, 32), bool)
    square[8:16, 20:28] = True
    places = list(np.ndindex(32, 32))
    brightness = np.reshape([at(plain[2], *place, 32).mean() for place in places], (32, 32))
    assert brightness[square].min() > 0.9 > 0.5 > brightness[~square].max()
    # grey has no saturation: what colour there is comes from the heat
    colour = [np.reshape([np.ptp(at(panel, *place, 32)) for place in places], (32, 32)) for panel in hot]
    assert colour[2][square].mean() > 10 * colour[2][~square].mean()
    assert colour[2].mean() > 3 * max(colour[k].mean() for k in (0, 1, 3, 4, 5))
