"""Steps by name, without importing any.

medpipe's own are in `medpipe.transforms.STEPS`. An installed package adds its
own through the entry-point group ``medpipe.steps``::

    [project.entry-points."medpipe.steps"]
    my_step = "my_package.steps:MyStepd"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from medpipe.errors import StepError, UsageError
from medpipe.transforms import STEPS
from medpipe.workflow.suggest import did_you_mean

__all__ = ["GROUP", "STEPS", "check_step_names", "is_own_step", "step_names", "step_target"]

GROUP = "medpipe.steps"

_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@lru_cache(maxsize=1)
def _added() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return entry points by name; several may claim one name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        others = [p for p in found.get(point.name, ()) if p.value != point.value]
        found[point.name] = (*others, point)
    return found


def is_own_step(name: str) -> bool:
    """Return whether medpipe itself brings the step."""
    return name in STEPS


def step_names() -> list[str]:
    """Return the names of all steps, medpipe's first."""
    return [*STEPS, *sorted(set(_added()) - set(STEPS))]


def step_target(name: str) -> str:
    """Return ``"module:Class"`` of a step.

    Raises
    ------
    UsageError
        If no step has that name.
    StepError
        If an installed package declares it wrongly or two claim the name.
    """
    if name in STEPS:
        return STEPS[name]
    points = _added().get(name, ())
    if not points:
        raise UsageError(
            f'unknown step "{name}"',
            hint=did_you_mean(name, step_names()),
        )
    if len(points) > 1:
        raise StepError(
            f'two installed packages add a step "{name}"',
            got=" and ".join(sorted(_value(p) for p in points)),
            hint="uninstall one of them",
        )
    value = _value(points[0])
    if not _TARGET.fullmatch(value):
        raise StepError(
            f'step "{name}" is declared wrongly by its package',
            expected='an entry point "module:Class"',
            got=f'"{value}"',
        )
    return value


def _value(point: EntryPoint) -> str:
    return re.sub(r"\s*:\s*", ":", point.value.strip())


def check_step_names(names: Iterable[str]) -> None:
    """Raise UsageError or StepError for the first name that is no usable step."""
    for name in names:
        step_target(name)
