"""Airways in simulated chest CTs, whole and with holes in their walls."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.airway import AirwayMaskSettings, airway_mask
from medpipe.centerline.transforms.images import AirwayMask, AirwayMaskd
from medpipe.errors import StepError
from medpipe.phantoms.airway_ct import airway_ct
from medpipe.steps._components import label_components


@cache
def chest():
    return airway_ct(1, shape=(160, 120, 140), spacing_mm=(2.0, 2.0, 2.0), branches=15, vessels=9)


@cache
def found():
    return airway_mask(torch.from_numpy(chest().volume.data), chest().volume.affine)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_lumen_is_found_in_one_piece_and_no_vessel_with_it():
    mask, tree = found().mask, chest().tree
    assert dice(mask.numpy(), tree.mask) > 0.93
    voxels = np.rint((tree.points_mm - tree.affine[:3, 3]) / 2.0).astype(int)
    voxels = np.clip(voxels, 0, np.array(mask.shape) - 1)
    assert mask.numpy()[tuple(voxels.T)].mean() > 0.95
    assert (mask.numpy() & chest().other).sum() == 0
    assert label_components(mask, 1)[1] == 1
    assert found().volume_ml == pytest.approx(float(mask.sum()) * 0.008)


def test_the_diameter_of_the_trachea_is_measured():
    assert found().trachea_mm == pytest.approx(2 * chest().tree.radius_mm[0], abs=1.5)


def test_the_way_the_axes_run_does_not_matter():
    data, affine = torch.from_numpy(chest().volume.data), chest().volume.affine
    # superior axis first and pointing down
    order = np.zeros((4, 4))
    order[2, 0], order[0, 1], order[1, 2], order[3, 3] = -1, 1, 1, 1
    order[2, 3] = data.shape[2] - 1
    turned = airway_mask(data.permute(2, 0, 1).flip(0), affine @ order)
    assert torch.equal(turned.mask.flip(0).permute(1, 2, 0), found().mask)


def test_a_hole_in_a_wall_lowers_the_threshold_and_no_lung_is_taken():
    image = torch.from_numpy(chest().volume.data.copy())
    tree = chest().tree
    # a wide hole from a bronchus into the lung, on the way to its tip
    node = int(tree.leaves[0])
    for _ in range(12):
        node = int(tree.parents[node])
    at = np.rint((tree.points_mm[node] - tree.affine[:3, 3]) / 2.0).astype(int)
    box = tuple(slice(v - 3, v + 4) for v in at)
    image[box] = torch.where(image[box] > -850, -850.0, image[box])
    result = airway_mask(image, tree.affine)
    assert result.leak_hu is not None
    assert result.threshold_hu < result.leak_hu <= -700
    assert result.volume_ml < 1.3 * tree.mask.sum() * 0.008
    assert dice(result.mask.numpy(), tree.mask) > 0.85


def test_thin_branches_are_added_where_the_threshold_ends():
    image = torch.from_numpy(chest().volume.data)
    low = AirwayMaskSettings(highest_hu=-930, grow_branches=False)
    plain = airway_mask(image, chest().volume.affine, low)
    more = airway_mask(
        image, chest().volume.affine, AirwayMaskSettings(highest_hu=-930, branch_hu=80)
    )
    added = more.mask & ~plain.mask
    assert plain.branches_ml == 0 < more.branches_ml
    assert (plain.mask & ~more.mask).sum() == 0
    near = chest().tree.distance_mm(3.0)[0] < 2.0
    assert near[added.numpy()].mean() > 0.8
    refused = airway_mask(
        image,
        chest().volume.affine,
        AirwayMaskSettings(highest_hu=-930, branch_hu=80, branch_ml=1e-6),
    )
    assert refused.refused > 0
    assert torch.equal(refused.mask, plain.mask)


def test_the_step_tells_what_it_did():
    image = MetaTensor(
        torch.from_numpy(chest().volume.data[None]), affine=torch.from_numpy(chest().volume.affine)
    )
    out = AirwayMaskd("ct")({"ct": image})["ct"]
    assert torch.equal(out[0].as_tensor().bool(), found().mask)
    facts = out.meta["medpipe"]["source"]["airway_mask"]
    assert facts["threshold_hu"] == round(found().threshold_hu, 1)
    assert "HU" in out.meta["medpipe"]["findings"][0]["message"]
    with pytest.raises(StepError, match="chest in HU"):
        AirwayMask()(image + 1024)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: torch.full_like(x, 40.0), "chest in HU"),
        (lambda x: x / 1000, "chest in HU"),
        (lambda x: x.index_fill(2, torch.arange(70, 140), 40.0), "no trachea"),
        (lambda x: x.masked_fill(x > 1000, torch.nan).index_fill(0, torch.tensor([3]), torch.nan),
         "NaN"),
        (lambda x: x[..., 0], "volumes"),
    ],
)  # fmt: skip
def test_what_shows_no_airways_is_refused(change, text):
    with pytest.raises(StepError, match=text):
        airway_mask(change(torch.from_numpy(chest().volume.data)), chest().volume.affine)


def test_a_leak_at_the_lowest_threshold_is_an_error():
    with pytest.raises(StepError, match="leak"):
        airway_mask(
            torch.from_numpy(chest().volume.data),
            chest().volume.affine,
            AirwayMaskSettings(leak_ml=5.0),
        )
