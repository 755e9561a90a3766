"""`medpipe.graphcut`: its names, loaded when they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import medpipe.graphcut as graphcut


def test_import_is_free_until_a_name_is_used() -> None:
    code = (
        "import sys, medpipe.graphcut as g; d = dir(g); "
        "heavy = {'torch', 'monai', 'numba', 'numpy', 'scipy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "from medpipe.graphcut import read_octexplorer; "
        "assert 'numpy' in sys.modules and 'torch' not in sys.modules; "
        "print(read_octexplorer.__module__, 'GraphCutd' in d)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["medpipe.graphcut.octexplorer", "True"]


@pytest.mark.parametrize("name", graphcut.__all__)
def test_every_name_is_one_that_its_module_offers(name: str) -> None:
    module = importlib.import_module(f"medpipe.graphcut.{graphcut._LAZY[name]}")
    assert name in module.__all__
    assert getattr(graphcut, name) is getattr(module, name)


def test_no_name_hides_a_module() -> None:
    modules = {found.name for found in pkgutil.iter_modules(graphcut.__path__)}
    assert not modules & set(graphcut.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"'medpipe\.graphcut' has no attribute 'Nope'"):
        _ = graphcut.Nope
