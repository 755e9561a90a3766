"""Packages that exist for one test, found the way pip-installed ones are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medpipe.workflow import registry

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package: its files and its entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(name: str, files: dict[str, str], **groups: dict[str, str]) -> Path:
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for group, points in groups.items():
            lines += [f"[medpipe.{group}]", *(f"{k} = {v}" for k, v in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        registry._added.cache_clear()
        return site

    yield add
    registry._added.cache_clear()


LAB = '''
"""Steps of a laboratory."""

raise RuntimeError("checking a workflow must not run this module")

from typing import Literal, Optional

Mode = Literal["linear", "nearest"]
HALF = 0.5


class _Base:
    version = "7"
    reads = ("mask",)


class Blend:
    """Array form.

    Parameters
    ----------
    amount : float
        How much, from 0 to 1,
        in steps of your choice.
    """


class Blendd(_Base):
    """Blend an image
    with another.

    Longer words.

    Parameters
    ----------
    keys : keys
    mask : str, optional
        Key of the mask.
    mode : str
        How to interpolate.

    Returns
    -------
    nothing : str
        That matters.
    """

    def __init__(self, keys, mask: Optional[str] = None, amount: float = HALF,
                 size: tuple[int, int] = (3, 4), *, mode: Mode = "linear",
                 flag: bool = False, count: int = 1, note: str = "",
                 allow_missing_keys=False) -> None: ...


class Modeld:
    """Apply a model file."""

    version = "1"
    files = ("weights",)
    random = True
    makes = "labels"

    def __init__(self, keys, weights: str | None = None, allow_missing_keys=False): ...


class Countd:
    """Count."""

    version = "1"
    makes = "table"

    def __init__(self, keys, least: int, allow_missing_keys=False): ...


class Splitd:
    """Write a second key."""

    version = "1"
    writes = ("rest",)

    def __init__(self, keys, rest: str, allow_missing_keys=False): ...
'''


@pytest.fixture
def lab(install: Install) -> Path:
    """Install steps `blend`, `model`, `count` and `split` whose module cannot be imported."""
    steps = {
        "blend": "lab.steps:Blendd",
        "model": "lab.steps:Modeld",
        "count": "lab.steps:Countd",
        "split": "lab.steps:Splitd",
    }
    broken = 'raise RuntimeError("checking a workflow must not run this package")\n'
    return install("lab", {"lab/__init__.py": broken, "lab/steps.py": LAB}, steps=steps)
