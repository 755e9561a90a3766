"""Templates: a brain made here, and the real ones."""

import nibabel as nib
import numpy as np
import pytest

from medpipe.errors import InputError
from medpipe.phantoms.head_ct import head_ct
from medpipe.phantoms.sah import SahLabel, SahScan, simulate_patient
from medpipe.phantoms.sah_template import load_template

SCAN = SahScan((4.0, 4.0, 4.0))
PATIENT = {
    "age_years": 60.0,
    "sex": 1.0,
    "sah_ml": 14.0,
    "ivh_ml": 3.0,
    "ich_ml": 10.0,
    "shift_mm": 4.0,
    "wfns": 3.0,
}


def check(template):
    case = simulate_patient(2, PATIENT, scan=SCAN, template=template)
    ml = case.facts["blood_ml"]
    assert ml["cisterns"] + ml["sulci"] == pytest.approx(14.0, rel=0.01)
    assert ml["ventricles"] == pytest.approx(3.0, rel=0.01)
    assert ml["parenchyma"] == pytest.approx(10.0, rel=0.01)
    assert ml["cisterns"] > 2
    assert case.facts["modified_fisher"] == 4
    assert case.facts["head"] == "template"
    clot = case.volume.data[case.labels == SahLabel.BLOOD_BRAIN]
    assert 55 < np.median(clot) < 82
    brain = case.volume.data[case.labels == SahLabel.BRAIN]
    assert 20 < np.median(brain) < 45
    return case


def test_the_procedural_head_as_a_file_is_taken_apart_as_it_was_made(tmp_path):
    made = head_ct(3, shape=(68, 80, 60), spacing_mm=(3.0, 3.0, 3.0), noise_hu=2.0)
    path = tmp_path / "head.nii.gz"
    nib.save(nib.Nifti1Image(made.volume.data.astype(np.int16), made.volume.affine), path)
    template = load_template(path)
    assert not template.stripped
    voxel_ml = 3.0**3 / 1000
    brain_ml = sum(v for k, v in made.facts["volumes_ml"].items() if k in BRAIN)
    assert template.values[3].sum() * voxel_ml == pytest.approx(brain_ml, rel=0.12)
    ventricle = made.facts["volumes_ml"]["ventricle"]
    assert template.values[2].sum() * voxel_ml == pytest.approx(ventricle, rel=0.5)
    # the frame: what it calls the midline and the front is where it was drawn
    centre = np.linalg.inv(template.from_frame @ np.eye(4))
    assert np.all(np.diag(centre)[:3] > 0)
    check(template)


BRAIN = (
    "grey",
    "white",
    "caudate",
    "putamen",
    "pallidum",
    "thalamus",
    "cerebellum_grey",
    "cerebellum_white",
    "brainstem",
)


def test_an_image_without_a_head_is_refused(tmp_path):
    path = tmp_path / "air.nii.gz"
    rng = np.random.default_rng(0)
    air = rng.normal(-1000, 5, (40, 40, 40)).astype(np.int16)
    air[18:22, 18:22, 18:22] = 40
    nib.save(nib.Nifti1Image(air, np.diag([3.0, 3, 3, 1])), path)
    with pytest.raises(InputError, match="no head was found"):
        load_template(path)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("ct_template/scct.nii", False),
        ("ct_template/ct_brain_atlas_1mm.nii.gz", True),
        ("head_ct_ge_tilt_dicom/derived_GE_head_tilt_corrected_1mm_HU.nii.gz", False),
    ],
)
def test_real_templates_take_the_blood(real_data, name, stripped):
    template = load_template(real_data / name)
    assert template.stripped == stripped
    hu, fluid, ventricle, brain = template.values
    assert 20 < np.median(hu[brain > 0.9]) < 45
    assert (fluid + ventricle + brain).max() <= 1.001
    if name.startswith("head_ct"):
        case = check(template)
        assert 150 < (case.volume.data > 300).sum() * 4**3 / 1000 < 1500  # ml of bone
