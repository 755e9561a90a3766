"""The mosaic shows the patient where the affine says, in every voxel order."""

from __future__ import annotations

import io
import json
from itertools import permutations, product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medpipe.errors import UsageError
from medpipe.figures import qc
from medpipe.figures.drawing import contour_mask, scale_bar_mm
from medpipe.figures.sampling import VIEW_AXES
from medpipe.figures.scale import COLOURS, display_of

SHAPE = (40, 52, 30)
STEP = (2.0, 1.5, 3.0)
SIGN = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}


def meta(data: np.ndarray | torch.Tensor, affine: np.ndarray) -> MetaTensor:
    tensor = torch.as_tensor(data)
    return MetaTensor(tensor[None] if tensor.ndim == 3 else tensor, affine=torch.as_tensor(affine))


def ras_affine(step: tuple[float, ...] = STEP, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -np.array(step) * (np.array(shape) - 1) / 2
    return affine


def head(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """A bright ellipsoid with texture."""
    g = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = (sum(x**2 for x in g) < 0.8).astype(np.float32)
    noise = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return body * (100 + 40 * noise + 20 * g[0].astype(np.float32))


def picture(figure: qc.QcFigure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png)))


def reorder(data: np.ndarray, affine: np.ndarray, order: tuple, flips: tuple) -> tuple:
    """The same image stored in another voxel order."""
    out = affine.copy()
    out[:, :3] = affine[:, list(order)]
    data = data.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            out[:3, 3] += out[:3, axis] * (data.shape[axis] - 1)
            out[:3, axis] *= -1
            data = np.flip(data, axis)
    return np.ascontiguousarray(data), out


def pixel_of(panel: dict, mm: np.ndarray) -> tuple[float, float]:
    """Where a world point must be drawn, from the definition of the radiological view."""
    _, col, row = VIEW_AXES[panel["view"]]
    left, top, right, bottom = panel["box"]
    x = (left + right - 1) / 2 - (mm[col] - panel["centre_mm"][0]) / panel["mm_per_px"]
    y = (top + bottom - 1) / 2 - (mm[row] - panel["centre_mm"][1]) / panel["mm_per_px"]
    return x, y


@pytest.mark.parametrize("direction", range(6))
def test_marker_lies_on_the_radiological_side(direction: int) -> None:
    """A marker far to the right, left, anterior … side of the patient, in a plain RAS volume."""
    axis, positive = direction // 2, direction % 2 == 0
    offset = np.zeros(3)
    offset[axis] = 25 if positive else -25
    index = np.round((np.array(SHAPE) - 1) / 2 + offset / STEP).astype(int)
    data = np.zeros(SHAPE, np.float32)
    data[tuple(slice(i - 1, i + 2) for i in index)] = 100.0
    data[0, 0, 0] = 1.0
    figure = qc.render("mosaic", meta(data, ras_affine()), options={"window_hu": [0, 100]})
    grey = picture(figure).astype(float)
    expected_side = {
        "axial": {0: ("x", not positive), 1: ("y", not positive)},
        "coronal": {0: ("x", not positive), 2: ("y", not positive)},
        "sagittal": {1: ("x", not positive), 2: ("y", not positive)},
    }
    for panel in (p for p in figure.data["panels"] if p["full_fov"]):
        if axis not in expected_side[panel["view"]]:
            continue
        left, top, right, bottom = panel["box"]
        part = grey[top:bottom, left:right]
        # Only look along the middle band, away from letters, and where the marker is wide.
        side, far = expected_side[panel["view"]][axis]
        h, w = part.shape
        rows, cols = np.nonzero(part > 240)
        inner = (rows > 0.1 * h) & (rows < 0.8 * h) & (cols > 0.06 * w) & (cols < 0.94 * w)
        middle = (
            (cols[inner].mean() if side == "x" else rows[inner].mean()),
            (w if side == "x" else h) / 2,
        )
        assert (middle[0] > middle[1]) == far, (panel["view"], axis, positive)


def test_marker_lies_at_its_position_in_every_panel_that_cuts_it() -> None:
    point = np.array([17.0, -14.25, 22.5])
    affine = ras_affine()
    index = np.round(np.linalg.inv(affine) @ [*point, 1])[:3].astype(int)
    point = (affine @ [*index, 1])[:3]
    data = head() * 0.3
    data[tuple(slice(i - 1, i + 2) for i in index)] = 400.0
    label = np.zeros(SHAPE, np.float32)
    label[tuple(index)] = 1
    # The overlay makes the full-FOV cuts go through the marker.
    figure = qc.render(
        "mosaic", meta(data, affine), overlay=meta(label, affine), options={"window_hu": [0, 400]}
    )
    grey = picture(figure).astype(float).sum(-1)
    full = [p for p in figure.data["panels"] if p["full_fov"]]
    assert [p["view"] for p in full] == ["axial", "coronal", "sagittal"]
    for panel in full:
        across = VIEW_AXES[panel["view"]][0]
        assert panel["position_mm"] == pytest.approx(point[across])
        x, y = pixel_of(panel, point)
        left, top, right, bottom = panel["box"]
        part = np.zeros_like(grey)
        reach = 40
        part[round(y) - reach : round(y) + reach, round(x) - reach : round(x) + reach] = grey[
            round(y) - reach : round(y) + reach, round(x) - reach : round(x) + reach
        ]
        assert left < x < right
        assert top < y < bottom
        rows, cols = np.nonzero(part > 0.6 * part.max())
        assert abs(rows.mean() - y) < 2
        assert abs(cols.mean() - x) < 2


def test_all_48_voxel_orders_of_one_image_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, size in {"STRIP_MAX": 110, "ROW_MAX": 60}.items():  # small pictures, for speed
        monkeypatch.setattr(f"medpipe.figures.layout.{name}", size)
    data, affine, few = np.round(head() / 16) * 16, ras_affine(), {"slices": 3}
    label = (data > 130).astype(np.float32)
    wanted = qc.render("mosaic", meta(data, affine), overlay=meta(label, affine), options=few)
    seen = set()
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        moved, moved_affine = reorder(data, affine, order, flips)
        labels, _ = reorder(label, affine, order, flips)
        image, overlay = meta(moved, moved_affine), meta(labels, moved_affine)
        figure = qc.render("mosaic", image, overlay=overlay, options=few)
        assert figure.png == wanted.png, (order, flips)
        seen.add(figure.data["axis_codes"])
        assert figure.data["percentiles"] == wanted.data["percentiles"]
        assert figure.data["labels"] == wanted.data["labels"]
    assert len(seen) == 48


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        out = turn @ out
    return out


def world_function(mm: np.ndarray) -> np.ndarray:
    """A smooth image of the world with no symmetry, within the range of the window."""
    x, y, z = np.moveaxis(mm, -1, 0)
    return 128 + 50 * np.sin(x / 23) + 40 * np.cos(y / 17 + x / 60) + 30 * np.sin(z / 19 - y / 70)


@pytest.mark.parametrize("case", ["oblique", "sheared", "both, left-handed"])
def test_oblique_and_sheared_grids_show_the_world(case: str) -> None:
    """Voxels filled from a world function must be drawn as that function on the RAS planes."""
    linear = np.diag([1.5, 1.5, 2.0])
    if case != "sheared":
        linear = rotation((12.0, -20.0, 33.0)) @ linear
    if case != "oblique":
        shear = np.eye(3)
        shear[1, 2] = np.tan(np.radians(18.5))
        linear = shear @ linear
    if case.endswith("left-handed"):
        linear[:, 0] *= -1
    shape = (60, 64, 48)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2) + [5.0, -8.0, 11.0]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    data = world_function(index @ linear.T + affine[:3, 3]).astype(np.float32)
    figure = qc.render("mosaic", meta(data, affine), options={"window_hu": [0, 255]})
    grey = picture(figure).astype(float)
    inverse = np.linalg.inv(affine)
    for panel in figure.data["panels"]:
        across, col, row = VIEW_AXES[panel["view"]]
        left, top, right, bottom = panel["box"]
        w, h = right - left, bottom - top
        mm = np.zeros((h, w, 3))
        mm[..., across] = panel["position_mm"]
        mm[..., col] = panel["centre_mm"][0] + ((w - 1) / 2 - np.arange(w)) * panel["mm_per_px"]
        mm[..., row] = (
            panel["centre_mm"][1] + ((h - 1) / 2 - np.arange(h)[:, None]) * panel["mm_per_px"]
        )
        place = mm @ inverse[:3, :3].T + inverse[:3, 3]
        inside = ((place > 1) & (place < np.array(shape) - 2)).all(-1)
        outside = ((place < -1) | (place > np.array(shape))).any(-1)
        if inside.sum() < 8000:
            continue
        difference = np.abs(grey[top:bottom, left:right] - world_function(mm))
        assert np.median(difference[inside]) < 0.8
        assert np.percentile(difference[inside], 80) < 2.5  # the rest is under letters
        if outside.any():
            assert np.median(grey[top:bottom, left:right][outside]) == 26
    checks = {f["check"] for f in figure.data["flags"]}
    assert ("qc.oblique" in checks) == (case == "oblique")
    assert ("qc.sheared" in checks) == (case != "oblique")


def test_proportions_follow_the_spacing() -> None:
    """0.5 × 0.5 × 5 mm: a cube of 40 mm is drawn square in all three views."""
    shape, step = (160, 160, 16), (0.5, 0.5, 5.0)
    affine = ras_affine(step, shape)
    data = np.zeros(shape, np.float32)
    data[40:120, 40:120, 4:12] = 100
    figure = qc.render("mosaic", meta(data, affine), options={"window_hu": [0, 100]})
    grey = picture(figure)
    for panel in (p for p in figure.data["panels"] if p["full_fov"]):
        left, top, right, bottom = panel["box"]
        part = grey[top:bottom, left:right] >= 128
        wide = part[(bottom - top) * 2 // 5].sum() * panel["mm_per_px"]
        tall = part[:, (right - left) * 2 // 5].sum() * panel["mm_per_px"]
        assert wide == pytest.approx(40, abs=1.0)
        assert tall == pytest.approx(40, abs=1.0)
    assert any("1:10" in f["message"] for f in figure.data["flags"])


def test_scale_bars_are_as_long_as_they_say() -> None:
    figure = qc.render("mosaic", meta(head() * 0, ras_affine()))
    grey = picture(figure)
    assert len(figure.data["scale_bars"]) == 6
    for bar in figure.data["scale_bars"]:
        x0, y0, x1, y1 = bar["box"]
        assert bar["px"] == x1 - x0
        assert bar["px"] * bar["mm_per_px"] == pytest.approx(bar["mm"], abs=bar["mm_per_px"] / 2)
        assert (grey[y0:y1, x0:x1] == 255).all()
        assert (grey[y0:y1, [x0 - 1, x1]] < 128).all()


@pytest.mark.parametrize(
    ("width", "bar"), [(180, 20), (210, 50), (37, 5), (0.9, 0.2), (4000, 1000)]
)
def test_scale_bar_is_round_and_fits(width: float, bar: float) -> None:
    assert scale_bar_mm(width) == pytest.approx(bar)


def test_contour_is_the_inner_edge_of_each_label() -> None:
    labels = np.zeros((9, 12), np.int32)
    labels[2:7, 2:6] = 1
    labels[2:7, 6:10] = 2
    edge = contour_mask(labels)
    wanted = np.zeros_like(edge)
    wanted[2:7, 2:10] = True
    wanted[3:6, 3:5] = wanted[3:6, 7:9] = False
    np.testing.assert_array_equal(edge, wanted)


def test_overlay_on_its_own_grid_is_drawn_where_it_is_in_the_world() -> None:
    """A box label on a coarser, flipped grid: its contour lies on the box's faces."""
    data, affine = head() * 0 + np.linspace(0, 60, SHAPE[2], dtype=np.float32), ras_affine()
    coarse = np.diag([-4.0, -4.0, 4.0, 1.0])
    coarse[:3, 3] = [40, 40, -40]
    label = np.zeros((21, 21, 21), np.float32)
    label[8:13, 6:15, 7:14] = 3  # x -10..10, y -18..18, z -14..14 between outer faces
    figure = qc.render("mosaic", meta(data, affine), overlay=meta(label, coarse))
    rgb = picture(figure).astype(int)
    (entry,) = figure.data["labels"]
    assert entry["label"] == 3
    assert entry["voxels"] == 5 * 9 * 7
    assert entry["ml"] == pytest.approx(5 * 9 * 7 * 0.064)
    colour = [int(entry["colour"][i : i + 2], 16) for i in (1, 3, 5)]
    box = np.array([[-10, 10], [-18, 18], [-14, 14]], float)
    for panel in (p for p in figure.data["panels"] if p["full_fov"]):
        left, top, right, bottom = panel["box"]
        inked = (np.abs(rgb[top:bottom, left:right] - colour) < 3).all(-1)
        rows, cols = np.nonzero(inked)
        high = pixel_of(panel, np.array([box[0, 1], box[1, 1], box[2, 1]]))
        low = pixel_of(panel, np.array([box[0, 0], box[1, 0], box[2, 0]]))
        assert cols.min() + left == pytest.approx(high[0], abs=1.5)
        assert cols.max() + left == pytest.approx(low[0], abs=1.5)
        assert rows.min() + top == pytest.approx(high[1], abs=1.5)
        assert rows.max() + top == pytest.approx(low[1], abs=1.5)


def test_same_input_same_bytes_without_metadata() -> None:
    image = meta(head(), ras_affine())
    first, second = qc.render("mosaic", image), qc.render("mosaic", image.clone())
    assert first.png == second.png
    assert json.dumps(first.data, allow_nan=False) == json.dumps(second.data, allow_nan=False)
    chunks, at = set(), 8
    while at < len(first.png):
        size = int.from_bytes(first.png[at : at + 4])
        chunks.add(first.png[at + 4 : at + 8])
        at += size + 12
    assert chunks == {b"IHDR", b"IDAT", b"IEND"}


def test_numbers_agree_with_numpy() -> None:
    data = head()
    figure = qc.render("mosaic", meta(data, ras_affine()))
    assert figure.data["min"] == data.min()
    assert figure.data["max"] == data.max()
    assert figure.data["mean"] == pytest.approx(data.mean(dtype=np.float64), rel=1e-6)
    assert figure.data["percentiles"]["p95"] == pytest.approx(np.percentile(data, 95), rel=1e-3)
    histogram = figure.data["histogram"]
    assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == data.size
    counts, _ = np.histogram(data, histogram["edges"])
    # float32 and float64 bin borders may put single voxels into neighbouring bins
    assert np.abs(counts - histogram["counts"]).sum() <= 20
    assert figure.data["window"] == pytest.approx(np.percentile(data, [1, 99]), rel=2e-3)
    assert figure.data["fov_mm"] == [80.0, 78.0, 90.0]


BROKEN = {
    "constant": (np.full(SHAPE, 7, np.float32), "qc.constant"),
    "all nan": (np.full(SHAPE, np.nan, np.float32), "qc.not_finite"),
    "empty": (np.zeros((4, 0, 4), np.float32), "qc.empty"),
    "one voxel": (np.ones((1, 1, 1), np.float32), "qc.constant"),
    "a nan": (np.where(np.arange(40)[:, None, None] < 10, np.nan, head()), "qc.not_finite"),
    "mostly zero": (np.where(head() > 148, head(), 0), "qc.mostly_constant"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_give_a_picture_that_says_so(name: str) -> None:
    data, check = BROKEN[name]
    figure = qc.render("mosaic", meta(data.astype(np.float32), ras_affine()))
    assert check in {f["check"] for f in figure.data["flags"]}
    assert picture(figure).shape[0] > 30
    json.dumps(figure.data, allow_nan=False)
    if name == "a nan":
        assert figure.data["nan_percent"] == pytest.approx(25)
        assert ((picture(figure) == (214, 64, 200)).all(-1)).sum() > 1000


def test_unusable_affine_is_drawn_and_flagged() -> None:
    affine = np.eye(4)
    affine[2, 2] = 0
    figure = qc.render("mosaic", meta(head(), affine))
    assert figure.data["flags"][0]["check"] == "qc.affine"
    assert figure.data["spacing_mm"] == [1, 1, 1]


def test_complex_shows_magnitude_and_more_channels_a_note() -> None:
    data, affine = head(), ras_affine()
    plain = qc.render("mosaic", meta(data, affine))
    turned = torch.polar(torch.as_tensor(data), torch.full(SHAPE, 0.7))
    both = meta(torch.stack([turned, turned * 2]), affine)
    figure = qc.render("mosaic", both)
    assert figure.data["notes"] == ["volume 1 of 2", "magnitude of complex values"]
    np.testing.assert_allclose(figure.data["mean"], plain.data["mean"], rtol=1e-5)


def ct(offset: float = 0.0, width: float = 2.0) -> MetaTensor:
    rng = np.random.default_rng(1)
    body = head() > 0
    data = np.where(body, rng.normal(35, 12, SHAPE), -1000)
    data[18:22, 24:28, 10:20] = 900
    data = np.round(np.maximum(data + offset, 0 if offset else -1024))
    data[0, 0, 0] = 2000 + offset
    return meta(data.astype(np.float32), ras_affine((width, 1.5, 3.0)))


def test_windows_follow_the_kind_of_image() -> None:
    assert qc.render("mosaic", ct()).data["window"] == [0, 80]
    assert qc.render("mosaic", ct(width=9.0)).data["window"] == [-160, 240]
    assert qc.render("mosaic", ct(), options={"window_hu": [-5, 5.5]}).data["window"] == [-5, 5.5]
    labels = (head() > 0).astype(np.float32) * 3
    assert qc.render("mosaic", meta(labels, ras_affine())).data["window"] == [0, 3]
    mr = ct()
    mr.meta["medpipe"] = {"source": {"modality": "MR"}}
    assert qc.render("mosaic", mr).data["window"] != [0, 80]


def test_hounsfield_units_without_offset_are_noticed() -> None:
    checks = {f["check"] for f in qc.render("mosaic", ct(offset=1024)).data["flags"]}
    assert "qc.hu_offset" in checks
    assert "qc.hu_offset" not in {f["check"] for f in qc.render("mosaic", ct()).data["flags"]}


def test_labels_outside_the_image_or_absent_are_noticed() -> None:
    image, affine = meta(head(), ras_affine()), ras_affine()
    label = np.ones(SHAPE, np.float32)
    affine[:3, 3] += 1000
    figure = qc.render("mosaic", image, overlay=meta(label, affine))
    assert "qc.overlay_outside" in {f["check"] for f in figure.data["flags"]}
    figure = qc.render("mosaic", image, overlay=meta(label * 0, ras_affine()))
    assert "qc.overlay_empty" in {f["check"] for f in figure.data["flags"]}


def test_slices_pass_through_a_small_label() -> None:
    label = np.zeros(SHAPE, np.float32)
    label[5:9, 40:44, 20:23] = 1
    figure = qc.render("mosaic", meta(head(), ras_affine()), overlay=meta(label, ras_affine()))
    z = [p["position_mm"] for p in figure.data["panels"] if p["view"] == "axial"]
    low, high = (ras_affine() @ [0, 0, k, 1] for k in (20, 22))
    assert sum(low[2] <= v <= high[2] for v in z) >= 3


def test_single_slice_shows_one_view_once() -> None:
    data = head((64, 48, 3))[:, :, 1:2]
    figure = qc.render("mosaic", meta(data, ras_affine((1, 1, 5), (64, 48, 1))))
    assert {p["view"] for p in figure.data["panels"]} == {"axial"}
    assert len(figure.data["panels"]) == 2
    assert "qc.single_slice" in {f["check"] for f in figure.data["flags"]}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("movie", {}),
        ("mosaic", {"windows": [0, 1]}),
        ("mosaic", {"window_hu": [3, 1]}),
        ("mosaic", {"window_hu": "brain"}),
        ("mosaic", {"slices": 0}),
        ("mosaic", {"labels": ["a"]}),
    ],
)
def test_wrong_options_are_refused(kind: str, options: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        qc.render(kind, meta(head(), ras_affine()), options=options)


@pytest.mark.real_data
def test_real_head_ct_gets_the_brain_window(real_data) -> None:
    import nibabel

    path = real_data / "head_ct_ge_tilt_dicom" / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz"
    image = nibabel.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    figure = qc.render("mosaic", meta(data, image.affine))
    assert figure.data["window_name"] == "brain window"
    assert len(figure.png) < 2_500_000


@pytest.mark.gpu
def test_device_does_not_change_the_picture() -> None:
    image = meta(head(), ras_affine())
    on_gpu = qc.render("mosaic", image.to("cuda"))
    a, b = picture(qc.render("mosaic", image)).astype(int), picture(on_gpu).astype(int)
    assert np.abs(a - b).max() <= 1


def test_thin_head_holder_does_not_widen_the_slices() -> None:
    """A sheet one voxel thick, 60 mm below the head, is not foreground."""
    data = np.full((40, 100, 30), -1000, np.float32)
    data[8:32, 50:90, 3:27] = 40
    data[2:38, 10, :] = 100
    affine = ras_affine((2.0, 2.0, 2.0), data.shape)
    figure = qc.render("mosaic", meta(data, affine))
    y = [p["position_mm"] for p in figure.data["panels"] if p["view"] == "coronal"]
    assert min(y[1:]) > -10


def test_a_map_of_a_quantity_is_shown_in_its_unit_with_a_scale() -> None:
    shape = (60, 50, 40)
    t1_s = np.zeros(shape, np.float32)
    t1_s[10:30, 10:40, 10:30] = 0.8
    t1_s[30:50, 10:40, 10:30] = 1.9
    t1_s[20, 20, 20] = np.nan
    image = meta(t1_s, ras_affine((2.0, 2.0, 2.0), shape))
    plain = qc.render("mosaic", image)
    shown = {"name": "T1", "unit": "ms", "factor": 1000.0}
    image.meta["medpipe"] = {"source": {"display": shown, "modality": "MR"}}
    figure = qc.render("mosaic", image)
    data = figure.data
    assert (data["window"], data["window_name"], data["unit"]) == ([0.0, 2000.0], "T1", "ms")
    # voxels without a value are in no statistic
    assert data["min"] == pytest.approx(800, rel=1e-6)
    assert data["percentiles"]["p50"] == pytest.approx(1900, rel=1e-6)
    pixels = picture(figure)
    panel = next(p for p in data["panels"] if p["full_fov"] and p["view"] == "axial")
    for mm, level in (((-21.0, 4.0, 0.0), 0.4), ((21.0, 4.0, 0.0), 0.95)):
        x, y = pixel_of(panel, np.array(mm))
        expected = COLOURS[round(level * 255)]
        assert np.abs(pixels[round(y), round(x)].astype(int) - expected).max() <= 2
    # the scale below the panels runs through all colours, and the picture has grown by it
    assert pixels.shape[0] > picture(plain).shape[0]
    row = pixels[-36, 22:482].astype(int)
    assert np.abs(row[0] - COLOURS[0]).max() <= 2
    assert np.abs(row[-1] - COLOURS[-1]).max() <= 2
    given = qc.render("mosaic", image, options={"window_hu": [0, 3000]}).data
    assert (given["window"], given["unit"]) == ([0.0, 3000.0], "ms")


@pytest.mark.parametrize(
    "broken", [1, {"name": "T1"}, {"name": "T1", "unit": "ms", "factor": 0}, {"name": 2}]
)
def test_a_display_that_is_none_is_left(broken: object) -> None:
    assert display_of({"display": broken}) is None


def test_colours_rise_in_lightness() -> None:
    light = COLOURS.astype(float) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) >= -0.5).all()
    assert light[-1] - light[0] > 200


def test_labels_that_want_no_mark_have_none() -> None:
    labels = np.zeros(SHAPE, np.float32)
    labels[10:30, 10:40, 8:24] = 1
    labels[18:22, 20:30, 12:20] = 2
    image, overlay = meta(head(), ras_affine()), meta(labels, ras_affine())
    whole = qc.render("mosaic", image, overlay=overlay)
    overlay.meta["medpipe"] = {"source": {"display": {"unmarked": [1]}}}
    some = qc.render("mosaic", image, overlay=overlay)
    assert some.data["labels"] == whole.data["labels"]  # counted all the same
    panel = next(p for p in some.data["panels"] if p["full_fov"] and p["view"] == "axial")
    for mm, coloured in (((-15.0, 0.0, 0.0), False), ((0.0, 0.0, 0.0), True)):
        x, y = pixel_of(panel, np.array(mm))
        pixel = picture(some)[round(y), round(x)].astype(int)
        assert (np.ptp(pixel) > 5) == coloured
