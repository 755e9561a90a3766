"""Applying the steps of a workflow: import once, seed, copy what is needed, check."""

from __future__ import annotations

import copy
import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medpipe.engine.schedule import StepSchedule
from medpipe.errors import InputError, StepError
from medpipe.io.atomic import sha256_file
from medpipe.seeds import derive_seed
from medpipe.workflow.compiled import CompiledStep

__all__ = ["StepRunner"]


def _seed_everything(seed: int) -> None:
    """Seed every generator that a step may use without saying so."""
    random.seed(seed)
    # A library that is not loaded cannot be used before the next step.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class StepRunner:
    """Holds the transforms of a workflow, models included, from case to case.

    Parameters
    ----------
    device : str
        For `medpipe.device.choose_device`; asked only when a step brings torch in.
    """

    def __init__(self, device: str) -> None:
        self._device_name = device
        self._device: Any = None
        self._transforms: dict[tuple[str, tuple[str, ...]], Any] = {}

    @property
    def device(self) -> str:
        """Device that images are on, ``"cpu"`` as long as torch is not loaded."""
        return "cpu" if self._device is None else str(self._device)

    def to_device(self, value: Any) -> Any:
        """Return an image on the device of the run; anything else as it is."""
        if not _is_tensor(value):
            return value
        device = self._chosen_device()
        return value if value.device == device else value.to(device)

    def _chosen_device(self) -> Any:
        if self._device is None:
            from medpipe.device import choose_device

            self._device = choose_device(self._device_name)
        return self._device

    def apply(
        self, step: CompiledStep, todo: StepSchedule, data: dict[str, Any], seed: int | None,
        checkpoints: Callable[[], Path],
    ) -> dict[str, Any]:  # fmt: skip
        """Return the values of the case after a step.

        Parameters
        ----------
        step : CompiledStep
        todo : StepSchedule
            Its `live` keys are those that must survive the step unchanged.
        data : dict
            Values before the step; values that nothing needs afterwards are taken from it.
        seed : int or None
            For random steps.
        checkpoints : callable
            Returns the folder where a step that can continue keeps what it has done.
        """
        pairs = [(i, o) for i, o in zip(step.inputs, step.outputs, strict=True) if i in data]
        transform = self._transform(step, tuple(target for _, target in pairs))
        optional = getattr(transform, "optional_reads", ())
        for parameter, name in step.reads.items():
            if name not in data and parameter not in optional:
                raise StepError(
                    f'the step reads "{name}", which this case does not have',
                    hint="give that input, or use a workflow without the step",
                )
        data = self._with_outputs(step, todo, data, pairs)
        _seed_everything(derive_seed(0, todo.key) if seed is None else seed)
        if seed is not None and hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed)
        if hasattr(transform, "set_checkpoints"):
            transform.set_checkpoints(checkpoints())
        result = transform(data)
        if not isinstance(result, dict):
            raise StepError(
                "the step did not return its data",
                expected="a dict",
                got=type(result).__name__,
                hint="a dictionary transform returns the dict it was given, changed",
            )
        for name in step.keys_written():
            if name in result:
                result[name] = self.to_device(result[name])
        return result

    @staticmethod
    def _with_outputs(
        step: CompiledStep,
        todo: StepSchedule,
        data: dict[str, Any],
        pairs: list[tuple[str, str]],
    ) -> dict[str, Any]:
        """Put the input values under the output keys, copied only when both are used."""
        stays = todo.live | set(step.reads.values())
        if step.qc is not None:
            stays |= {step.qc.key, step.qc.overlay or step.qc.key}
        targets = {}
        for source, target in pairs:
            value = data[source]
            if source != target and source in stays:
                value = value.clone() if _is_tensor(value) else copy.deepcopy(value)
            targets[target] = value
        return {k: v for k, v in data.items() if k in stays} | targets

    def _transform(self, step: CompiledStep, outputs: tuple[str, ...]) -> Any:
        known = self._transforms.get((step.id, outputs))
        if known is not None:
            return known
        for name, path in step.paths.items():
            if sha256_file(Path(path)) != step.files[name]:
                raise InputError(
                    f'the file of parameter "{name}" changed after the run was planned',
                    hint="run the same command again",
                )
        module, _, name = step.target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        parameters = {**step.params, **step.reads, **step.writes, **step.paths}
        transform = cls(keys=list(outputs), **parameters)
        if hasattr(transform, "set_device"):  # its images are not given to it
            transform.set_device(self._chosen_device())
        self._transforms[step.id, outputs] = transform
        return transform
