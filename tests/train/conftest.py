"""What two processes made together, for all the tests that compare it with one."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each training of `two_ranks` made when two processes shared its batches."""
    from two_ranks import shared

    return shared(tmp_path_factory.mktemp("two"))
