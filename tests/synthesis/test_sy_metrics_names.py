"""`medpipe.synthesis.metrics`: its names, loaded when they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

from medpipe.synthesis import metrics


def test_import_is_free_until_a_name_is_used():
    code = (
        "import sys, medpipe.synthesis.metrics as g; d = dir(g); "
        "heavy = {'torch', 'monai', 'numpy', 'scipy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert 'kid' in d"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_name_is_one_that_its_module_offers(name):
    module = importlib.import_module(f"medpipe.synthesis.metrics.{metrics._LAZY[name]}")
    assert name in module.__all__
    assert getattr(metrics, name) is getattr(module, name)


def test_no_name_hides_a_module():
    modules = {found.name for found in pkgutil.iter_modules(metrics.__path__)}
    assert not modules & set(metrics.__all__)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no_measure"):
        _ = metrics.no_measure
