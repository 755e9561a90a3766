"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. A commit is tested with the same
# examples everywhere; with MEDPIPE_FUZZ_EXAMPLES set, every run looks at new ones.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize="MEDPIPE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent


def real_data_folder() -> Path:
    """Where the real images are: MEDPIPE_REAL_DATA, else shared/data beside the checkout."""
    return Path(os.environ.get("MEDPIPE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that use it are marked ``real_data``."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip("the folder of real images is absent (set MEDPIPE_REAL_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _gpu_only_when_present(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
