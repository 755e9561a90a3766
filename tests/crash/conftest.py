"""The fixture of the tests that kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
