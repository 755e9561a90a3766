"""Images that several tests of centerlines read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def airway(real_data: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The airway of a chest CT, 512 × 512 × 767 voxels of 0 and 1, and its affine."""
    image = nib.load(real_data / "vessels" / "airway_CT_HR_label.nii.gz")
    stored = image.dataobj.get_unscaled()
    assert image.dataobj.slope == 1
    assert image.dataobj.inter == 0
    return (stored > 0).view(np.uint8), image.affine
