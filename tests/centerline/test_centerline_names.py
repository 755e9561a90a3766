"""`medpipe.centerline`: its names, loaded when they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

from medpipe import centerline


def test_import_is_free_until_a_name_is_used() -> None:
    code = (
        "import sys, medpipe.centerline as g; d = dir(g); "
        "heavy = {'torch', 'monai', 'numba', 'numpy', 'scipy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "from medpipe.centerline import SwcNodes; "
        "assert 'numpy' in sys.modules and 'monai' not in sys.modules; "
        "print(SwcNodes.__module__, 'Centerlined' in d)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["medpipe.centerline.swc", "True"]


@pytest.mark.parametrize("name", centerline.__all__)
def test_every_name_is_one_that_its_module_offers(name: str) -> None:
    module = importlib.import_module(f"medpipe.centerline.{centerline._LAZY[name]}")
    assert name in module.__all__
    assert getattr(centerline, name) is getattr(module, name)


def test_no_name_hides_a_module() -> None:
    modules = {found.name for found in pkgutil.iter_modules(centerline.__path__)}
    assert not modules & set(centerline.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"'medpipe\.centerline' has no attribute 'Nope'"):
        _ = centerline.Nope
