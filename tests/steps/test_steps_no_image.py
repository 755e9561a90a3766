"""Steps that are given something that is no image."""

from __future__ import annotations

import pytest

from medpipe.errors import StepError
from medpipe.steps.intensity import ClipIntensity


@pytest.mark.parametrize(
    ("value", "got"), [(b"<VTKFile/>", "a document"), ({"rows": []}, "a table")]
)
def test_what_is_no_image_is_named(value: object, got: str) -> None:
    with pytest.raises(StepError, match=f"expected an image, got {got}"):
        ClipIntensity(0.0, 1.0)(value)
