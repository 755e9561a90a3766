"""`medpipe.synthesis`: its names, loaded when they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

from medpipe import synthesis


def test_import_is_free_until_a_name_is_used() -> None:
    code = (
        "import sys, medpipe.synthesis as g; d = dir(g); "
        "heavy = {'torch', 'monai', 'numpy', 'scipy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); assert 'Prior' in d"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", synthesis.__all__)
def test_every_name_is_one_that_its_module_offers(name: str) -> None:
    module = importlib.import_module(f"medpipe.synthesis.{synthesis._LAZY[name]}")
    assert name in module.__all__
    assert getattr(synthesis, name) is getattr(module, name)


def test_no_name_hides_a_module() -> None:
    modules = {found.name for found in pkgutil.iter_modules(synthesis.__path__)}
    assert not modules & set(synthesis.__all__)
