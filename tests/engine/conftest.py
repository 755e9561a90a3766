"""The fixture of the tests with toy steps."""

from __future__ import annotations

import pytest
from engine_toys import Recorderd


@pytest.fixture
def recorder() -> type[Recorderd]:
    """The toy step that remembers its calls, with nothing to remember yet."""
    Recorderd.calls.clear()
    return Recorderd
