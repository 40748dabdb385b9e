import albumentations as A
import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from core.errors import UserError
from data.augment import Augmenter, compose, draw_crop
from data.augmentation import Augmentation
from data.crops import change_intensities, cut
from data.preprocessing import z_score

ROWS, COLUMNS = 120, 100
STILL = {"flip": 0.0, "jitter": 0.0}


def disc() -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to a circle in pixels, positive inside, and the label map of the circle."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    image = (25 - np.hypot(y - 58, x - 47)).astype(np.float32)
    return image, (image > 0).astype(np.uint8)


PRESETS = {
    "paper": Augmentation(),
    "fixed": Augmentation(crop="fixed", foreground=2 / 3, affine=0.75, jitter=0.5),
    "everything": Augmentation(affine=1, jitter=1, blur=1, solarise=1, gamma=1, bias_field=1, noise=1),
    "every change": Augmentation(jitter=1, blur=1, solarise=1, gamma=1, bias_field=1, noise=1),
}


@pytest.mark.parametrize("recipe", PRESETS.values(), ids=PRESETS)
def test_the_same_seed_gives_the_same_view(recipe):
    image, label = disc()
    kept = image.copy(), label.copy()
    views = Augmenter(recipe, 48)
    first = [views(image, seed, label) for seed in range(20)]
    again = [Augmenter(recipe, 48)(image, seed, label) for seed in reversed(range(20))][::-1]
    for (a, b), (c, d) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((48, 48), (48, 48), np.float32, np.uint8)
    assert len({a.tobytes() for a, _ in first}) == 20
    np.testing.assert_array_equal(image, kept[0])  # the store's slices are never written to
    np.testing.assert_array_equal(label, kept[1])


def test_read_only_slices_are_augmented_without_an_error():
    image, label = disc()
    image.flags.writeable = label.flags.writeable = False
    for recipe in PRESETS.values():
        Augmenter(recipe, 32)(image, 0, label)


def test_values_outside_0_to_1_survive():
    """z-scored slices reach far beyond both: geometry must keep them, and intensities must not be clipped."""
    image = disc()[0] * 100
    crop = Augmentation(crop="fixed", affine=1, zoom=(1, 1), rotate_degrees=0, **STILL)
    view = Augmenter(crop, 48)(image, 0)[0]
    assert set(view.ravel()) <= set(image.ravel())
    whole = Augmentation(area=(1, 1), flip=0, jitter=1, blur=0.0)
    lowest, highest = zip(
        *((v.min(), v.max()) for v in (Augmenter(whole, 100)(image, s)[0] for s in range(10))), strict=True
    )
    assert max(lowest) < -2000
    assert min(highest) > 1500
    blurred = Augmenter(Augmentation(area=(1, 1), blur=1, **STILL), 100)(image, 0)[0]
    assert blurred.min() < -2000
    assert blurred.max() > 1500


@pytest.mark.parametrize("recipe", PRESETS.values(), ids=PRESETS)
def test_the_label_follows_the_image(recipe):
    """Zooms, turns, crops and flips: the label stays the inside of the circle, but for pixels on its edge."""
    image, label = disc()
    unchanged = dict.fromkeys(("jitter", "blur", "solarise", "gamma", "bias_field", "noise"), 0.0)
    geometry = Augmentation(**{**vars(recipe), **unchanged})
    views = Augmenter(geometry, 64)
    seen = 0
    for seed in range(60):
        view, moved = views(image, seed, label)
        seen += 0 < moved.sum() < moved.size
        assert set(np.unique(moved)) <= {0, 1}
        away = np.abs(view) > 3  # pixels of the slice from the edge
        np.testing.assert_array_equal(moved[away], view[away] > 0)
    assert seen > 30


def test_labels_are_not_displaced():
    """The centre of the label is the centre of the disc in the image, on average over views."""
    image, label = disc()
    views = Augmenter(Augmentation(area=(0.5, 1.0), **STILL), 64)
    shifts = []
    for seed in range(200):
        view, moved = views(image, seed, label)
        inside = view > 0
        edges = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        if inside.any() and not edges.any():
            shifts.append(np.mean(np.nonzero(moved), axis=1) - np.mean(np.nonzero(inside), axis=1))
    assert len(shifts) > 30
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=0.1)


def test_intensities_leave_labels_alone():
    image, label = disc()
    plain, loud = (Augmentation(jitter=p, blur=p, solarise=p, gamma=p, bias_field=p, noise=p) for p in (0.0, 1.0))
    for seed in range(10):
        # the geometry comes first, so the same seed draws the same one
        np.testing.assert_array_equal(
            Augmenter(plain, 64)(image, seed, label)[1], Augmenter(loud, 64)(image, seed, label)[1]
        )


def test_crops_cover_the_area_asked_for():
    """Coordinates as image: their range in a view tells the crop."""
    y, x = np.mgrid[:ROWS, :COLUMNS].astype(np.float32)
    views = Augmenter(Augmentation(area=(0.2, 0.6), **STILL), 64)
    areas, ratios = [], []
    for seed in range(300):
        # the centres of 64 pixels span 63 / 64 of the crop
        height, width = (np.ptp(views(axis, seed)[0]) * 64 / 63 for axis in (y, x))
        areas.append(height * width / (ROWS * COLUMNS))
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.25
    assert 0.55 < max(areas) < 0.63
    assert np.mean(areas) == pytest.approx(0.4, abs=0.03)
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.4


def test_jitter_stays_in_its_range_and_comes_as_often_as_asked():
    image = disc()[0]
    views = Augmenter(Augmentation(crop="fixed", flip=0, jitter=0.8, brightness=0.3, contrast=0.2), 64)
    still = Augmenter(Augmentation(crop="fixed", **STILL), 64)
    gains, offsets = [], []
    for seed in range(400):
        before, after = still(image, seed)[0].ravel(), views(image, seed)[0].ravel()
        gain, offset = np.polyfit(before, after, 1)
        np.testing.assert_allclose(after, gain * before + offset, atol=1e-3)
        gains.append(gain)
        offsets.append(offset)
    moved = np.abs(np.array(gains) - 1) > 1e-6
    assert moved.mean() == pytest.approx(0.8, abs=0.06)
    assert (0.8 - 1e-3) <= min(gains) < 0.82
    assert 1.18 < max(gains) <= (1.2 + 1e-3)
    assert (-0.3 - 1e-3) <= min(offsets) < -0.28
    assert 0.28 < max(offsets) <= (0.3 + 1e-3)
    assert abs(np.corrcoef(gains, offsets)[0, 1]) < 0.15  # drawn apart


def test_flips_come_half_the_time():
    x = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    views = Augmenter(Augmentation(area=(1, 1), flip=0.5, jitter=0), 64)
    flipped = [view[0, 0] > view[0, -1] for view in (views(x, seed)[0] for seed in range(300))]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.1)


def test_solarising_reflects_values_above_the_mean():
    image = disc()[0]
    view = Augmenter(Augmentation(crop="fixed", solarise=1, **STILL), 64)(image, 0)[0]
    plain = Augmenter(Augmentation(crop="fixed", **STILL), 64)(image, 0)[0]
    np.testing.assert_array_equal(view, np.where(plain > 0, -plain, plain))


def test_crops_hold_foreground_as_often_as_asked():
    image = np.zeros((200, 200), np.float32)
    label = np.zeros((200, 200), np.uint8)
    label[3:8, 3:8] = 2
    always = Augmenter(Augmentation(crop="fixed", foreground=1, **STILL), 32)
    assert all(always(image, seed, label)[1].any() for seed in range(50))
    sometimes = Augmenter(Augmentation(crop="fixed", foreground=0.5, **STILL), 32)
    assert np.mean([sometimes(image, seed, label)[1].any() for seed in range(300)]) == pytest.approx(0.5, abs=0.1)
    assert always(image, 0, np.zeros_like(label))[1].shape == (32, 32)  # nothing to hold


def test_small_slices_are_padded_by_reflection():
    image, label = (array[40:70, 30:50] for array in disc())
    view, moved = Augmenter(Augmentation(crop="fixed", **STILL), 64)(image, 0, label)
    assert view.shape == moved.shape == (64, 64)
    assert view.min() == image.min()
    np.testing.assert_array_equal(moved, view > 0)


CUTS = {
    "paper": Augmentation(),
    "byolmed": Augmentation(bicubic=True, brightness=0.4, contrast=0.4, blur=0.5, solarise=0.2),
}


@pytest.mark.parametrize("recipe", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_cut_views_equal_the_reference_step_by_step(recipe, dtype):
    """z-score the whole slice, crop, resize, flip, jitter, blur, solarise with albumentations, from the same draw."""
    image = np.random.default_rng(0).gamma(2, 40, (90, 70)).clip(0, 255).astype(dtype)
    mean, std = float(image.mean()), float(image.std())
    for seed in range(40):
        crop = draw_crop(recipe, image.shape, seed)
        view = np.empty((64, 64), np.float32)  # nothing shrinks by more than 1.5
        cut(crop, image, view, (mean, std), bicubic=recipe.bicubic, antialias=recipe.antialias)
        view = change_intensities(crop, view)
        how = cv2.INTER_CUBIC if recipe.bicubic else cv2.INTER_LINEAR
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        steps = [A.Crop(*box), A.Resize(64, 64, interpolation=how), A.HorizontalFlip(p=float(crop.flip))]
        expected = A.Compose(steps)(image=z_score(image, mean, std))["image"]
        expected = expected * np.float32(crop.gain) + np.float32(crop.offset)
        expected = cv2.GaussianBlur(expected, (23, 23), crop.sigma) if crop.sigma else expected
        np.testing.assert_allclose(view, -np.abs(expected) if crop.solarise else expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(120, 100), (60, 200), (300, 40)], ids=["slice", "wide", "tall"])
def test_cut_views_follow_the_distribution_of_the_reference(shape):
    """Kolmogorov-Smirnov tests against albumentations of traits read from views of coordinates and of constants."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    zero, one = np.zeros_like(x), np.ones_like(x)
    still, loud = Augmentation(jitter=0), Augmentation(jitter=0.8, brightness=0.3, contrast=0.2)

    def traits(geometry: Augmenter, intensities: Augmenter, seed: int) -> list[float]:
        rows, columns = (geometry(axis, seed)[0] for axis in (y, x))
        offset, sum_ = (intensities(level, seed)[0][0, 0] for level in (zero, one))
        flipped = columns[0, 0] > columns[0, -1]
        return [rows.min(), np.ptp(rows), columns.min(), np.ptp(columns), flipped, offset, sum_ - offset]

    ours = [Augmenter(still, 32), Augmenter(loud, 32)]
    theirs = [Augmenter(still, 32), Augmenter(loud, 32)]
    for augmenter in theirs:
        augmenter.transform = compose(augmenter.augmentation, 32)  # the same specification through albumentations
    a, b = (np.array([traits(*pair, seed) for seed in range(600)], float) for pair in (ours, theirs))
    for k in range(a.shape[1]):
        assert ks_2samp(a[:, k], b[:, k]).pvalue > 1e-3
        assert a[:, k].mean() == pytest.approx(b[:, k].mean(), abs=4 * b[:, k].std() * (2 / 600) ** 0.5 + 1e-6)


def test_only_plain_resized_crops_are_cut():
    assert Augmenter(Augmentation(), 32).cuts
    assert not Augmenter(Augmentation(affine=0.5), 32).cuts
    assert not Augmenter(Augmentation(crop="fixed"), 32).cuts


@pytest.mark.parametrize(
    "recipe", [Augmentation(), Augmentation(affine=1, blur=1, solarise=1)], ids=["cut", "composed"]
)
def test_z_scoring_while_augmenting_equals_z_scoring_before(recipe):
    image = (disc()[0] * 7 + 300).astype(np.int16)
    statistics = float(image.mean()), float(image.std())
    for seed in range(5):
        before = Augmenter(recipe, 48)(z_score(image, *statistics), seed)[0]
        np.testing.assert_allclose(Augmenter(recipe, 48)(image, seed, statistics=statistics)[0], before, atol=1e-4)
        frames = np.stack([image, image[::-1]])
        clip = Augmenter(recipe, 48).clip(frames, seed, statistics)
        np.testing.assert_allclose(clip[0], before, atol=3e-3)  # warpAffine rounds frames together otherwise


def grating(period: float, size: int = 240) -> np.ndarray:
    """Vertical stripes about 0, of amplitude 1."""
    return np.tile(np.sin(2 * np.pi * np.arange(size) / period).astype(np.float32), (size, 1))


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("way", ["cut", "composed", "clip"])
def test_what_is_too_fine_for_a_small_view_is_averaged_away(way, bicubic):
    """Stripes of 3 pixels shrunk by 3.75: interpolation makes coarse stripes of them, their average is near 0."""
    energies = {}
    for antialias in (True, False):
        augmenter = Augmenter(Augmentation(area=(1, 1), bicubic=bicubic, antialias=antialias, **STILL), 64)
        if way == "composed":
            augmenter.transform = compose(augmenter.augmentation, 64)
        views = [
            augmenter.clip(grating(3)[None], seed)[0] if way == "clip" else augmenter(grating(3), seed)[0]
            for seed in range(3)
        ]
        energies[antialias] = np.square(views).mean()
    assert energies[False] > 0.2  # of the stripes' 0.5
    assert energies[True] < 0.02  # sinc(3.75 / 3)^2 / 2 = 0.016 is left of stripes averaged over 3.75 pixels


def test_a_shrunk_crop_is_the_mean_of_what_its_pixels_cover():
    """Each side by its own ratio: 2.8125 and 1.25 of a tall crop, where only rows are averaged."""
    image = np.random.default_rng(0).normal(size=(180, 80)).astype(np.float32)
    crop = draw_crop(Augmentation(**STILL), (180, 80), 0)._replace(top=0, left=0, height=180, width=80)
    view = np.empty((64, 64), np.float32)
    cut(crop, image, view, bicubic=False, antialias=True)
    sums = np.vstack([np.zeros(80), image.cumsum(axis=0, dtype=float)])
    edges = np.linspace(0, 180, 65)
    means = np.diff([[np.interp(y, np.arange(181), column) for column in sums.T] for y in edges], axis=0) * 64 / 180
    expected = cv2.resize(means.astype(np.float32), (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(view, expected, atol=1e-5)


def test_averaging_leaves_labels_where_they_are():
    """Of views that shrink by 2 to 3.3, the label is where the averaged image is above 0, but for its edge."""
    image, label = (np.kron(array, np.ones((3, 3), array.dtype)) for array in disc())
    views = Augmenter(Augmentation(area=(0.5, 1.0), **STILL), 96)
    for seed in range(20):
        view, moved = views(image, seed, label)
        away = np.abs(view) > 1.5
        np.testing.assert_array_equal(moved[away], view[away] > 0)
        unaveraged = Augmenter(Augmentation(area=(0.5, 1.0), antialias=False, **STILL), 96)(image, seed, label)[1]
        np.testing.assert_array_equal(moved, unaveraged)


def test_crops_that_shrink_little_are_interpolated_as_before():
    for seed in range(10):
        on, off = (Augmenter(Augmentation(antialias=antialias), 80)(disc()[0], seed)[0] for antialias in (True, False))
        np.testing.assert_array_equal(on, off)  # the slice has 120 rows, 1.5 times 80


def only(**changes) -> Augmenter:
    return Augmenter(Augmentation(area=(1, 1), **{**STILL, **changes}), 64)


def test_gamma_keeps_mean_spread_and_order():
    image = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) * 50 - 20
    plain = only()(image, 0)[0]
    dark, bright = (only(gamma=1, gamma_range=(power, power))(image, 0)[0] for power in (3.0, 0.3))
    for view in (dark, bright):
        assert view.mean() == pytest.approx(plain.mean(), abs=1e-2)
        assert view.std() == pytest.approx(plain.std(), rel=1e-3)
        assert (np.diff(view.ravel()[plain.ravel().argsort()]) >= -1e-4).all()
    assert np.median(dark) < np.median(plain) < np.median(bright)
    height = (plain - plain.min()) / np.ptp(plain)
    np.testing.assert_allclose((dark - dark.min()) / np.ptp(dark), height**3, atol=1e-4)


def test_a_bias_field_is_smooth_and_multiplies():
    rng = np.random.default_rng(0)
    flat = rng.uniform(100, 110, (64, 64)).astype(np.float32)
    flat[0, 0] = 0  # black, which stays where it is
    fields = []
    for seed in range(40):
        plain, view = (only(bias_field=p, bias_strength=0.5)(flat, seed)[0] for p in (0.0, 1.0))
        assert view.mean() == pytest.approx(plain.mean(), rel=1e-4)
        assert view.std() == pytest.approx(plain.std(), rel=1e-3)
        inside = plain > 50
        field = (view - view.min())[inside] / (plain - plain.min())[inside]
        fields.append(np.log(field / field.mean()))
        y, x = (axis[inside] / 31.5 - 1 for axis in np.mgrid[:64, :64])
        terms = np.stack([y**i * x**j for i in range(4) for j in range(4) if i + j < 4], axis=1)
        residual = np.linalg.lstsq(terms, fields[-1], rcond=None)[1]
        assert np.sqrt(residual / inside.sum()) < 2e-3  # the logarithm is a polynomial of order 3
    assert 0.1 < np.std(fields) < 1


def test_noise_has_the_standard_deviation_asked_for():
    image = disc()[0]
    plain, views = only(), only(noise=1, noise_sd=(0.2, 0.4))
    sds = [(views(image, seed)[0] - plain(image, seed)[0]).std() for seed in range(100)]
    assert 0.19 < min(sds) < 0.22
    assert 0.38 < max(sds) < 0.41
    often = only(noise=0.3)
    assert np.mean([not np.array_equal(often(image, s)[0], plain(image, s)[0]) for s in range(300)]) == pytest.approx(
        0.3, abs=0.1
    )


def test_the_blur_has_the_sigma_asked_for():
    image = np.zeros((64, 64), np.float32)
    image[32, 32] = 1
    view = only(blur=1, blur_sigma=(3, 3))(image, 0)[0]
    y, x = np.mgrid[:64, :64] - 32
    assert (view * (y**2 + x**2)).sum() / view.sum() == pytest.approx(2 * 9, rel=0.02)  # the kernel ends at 11 pixels


@pytest.mark.parametrize("change", ["gamma", "bias_field"])
def test_both_ways_of_augmenting_change_intensities_alike(change):
    """Crops draw jitter, gamma and bias field from one generator and albumentations from another: same distribution."""
    image = np.random.default_rng(0).gamma(2, 1, (48, 48)).astype(np.float32)
    recipe = Augmentation(area=(1, 1), flip=0, **{change: 1.0})
    ours, theirs = Augmenter(recipe, 48), Augmenter(recipe, 48)
    theirs.transform = compose(recipe, 48)
    traits = [
        [[np.median(view), view.std(), view.min()] for view in (augmenter(image, seed)[0] for seed in range(200))]
        for augmenter in (ours, theirs)
    ]
    for a, b in zip(*(np.transpose(trait) for trait in traits), strict=True):
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-3


def test_constant_images_survive_every_change():
    flat = np.full((64, 64), 7, np.int16)
    for recipe in (PRESETS["every change"], PRESETS["everything"]):
        assert np.isfinite(Augmenter(recipe, 32)(flat, 0, statistics=(7.0, 0.0))[0]).all()


def test_settings_without_new_changes_draw_what_they_drew():
    """Further changes are drawn last, so that a seed's crop, flip, jitter, blur and solarisation stay."""
    old = Augmentation(blur=0.5, solarise=0.5)
    new = Augmentation(blur=0.5, solarise=0.5, gamma=0.5, bias_field=0.5, noise=0.5)
    for seed in range(50):
        assert draw_crop(old, (90, 70), seed)[:9] == draw_crop(new, (90, 70), seed)[:9]


def test_crops_are_drawn_towards_probable_places():
    """All probability in one cell of 4 x 4: the crop's centre lies in it, unless the crop would leave the image."""
    density = np.zeros((4, 4))
    density[1, 2] = 1
    centres = density.cumsum().reshape(4, 4)
    recipe = Augmentation(area=(0.02, 1))
    seen = []
    for seed in range(600):
        crop = draw_crop(recipe, (200, 100), seed, centres)
        assert 0 <= crop.top <= 200 - crop.height
        assert 0 <= crop.left <= 100 - crop.width
        row, column = crop.top + crop.height / 2, crop.left + crop.width / 2
        if crop.height < 90 and crop.width < 40:  # these fit whatever their place in the cell
            seen.append((row, column))
            assert 49.5 <= row <= 100.5
            assert 49.5 <= column <= 75.5
        anywhere = draw_crop(recipe, (200, 100), seed)
        assert crop[2:4] == anywhere[2:4]  # the size is drawn first
    assert len(seen) > 50
    assert np.ptp(seen, axis=0) == pytest.approx([50, 25], abs=8)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"gamma": 1.5}, r"--augmentation\.gamma 1\.5: must lie in \[0, 1\], a probability"),
        ({"bias_field": -1}, r"--augmentation\.bias-field -1: must lie in \[0, 1\]"),
        ({"noise": float("nan")}, r"--augmentation\.noise nan: must lie in \[0, 1\]"),
        ({"gamma_range": (0, 1)}, r"--augmentation\.gamma-range 0 1: must rise and be above 0"),
        ({"blur_sigma": (2, 1)}, r"--augmentation\.blur-sigma 2 1: must rise and be above 0"),
        ({"noise_sd": (-1, 1)}, r"--augmentation\.noise-sd -1 1: must rise from 0 or more"),
        ({"bias_strength": 9}, r"--augmentation\.bias-strength 9: must lie in \[0, 5\]"),
    ],
)
def test_wrong_ranges_are_named(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        Augmentation(**setting)
