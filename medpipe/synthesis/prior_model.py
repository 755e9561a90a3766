"""A prior that was trained: what it knows of patients, whose codes it draws, its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.models import load_weights, pack_weights, unpack_weights
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.model_file import plain_json
from medpipe.synthesis.prior import Prior, PriorSettings
from medpipe.synthesis.tokeniser_training import TokeniserModel
from medpipe.types import Json

__all__ = ["PriorModel", "likelihoods"]

KIND = "prior"
_SAID = ("training", "history", "best_iteration", "iterations", "tokeniser")
_AT_ONCE = 16
"""Cases whose likelihood is computed together."""


@dataclass(frozen=True, eq=False)
class PriorModel:
    """A prior that was trained, and how.

    Parameters
    ----------
    prior : Prior
        Ready to be asked (``eval``).
    conditions : Conditions
        What it is told of a patient.
    training : dict
        The settings of the training.
    history : list of dict
        A row per validation, see `medpipe.train.TrainResult`.
    best_iteration, iterations : int
        Whose weights were kept, and how many there were.
    tokeniser : str
        `TokeniserModel.digest` of what made the codes; empty if it was not said.
    facts : dict
        ``trained`` and ``held_out``: negative log likelihood in nats per token with
        conditions and without, and how much they gain.
    """

    prior: Prior
    conditions: Conditions
    training: dict[str, Any]
    history: list[dict[str, Json]]
    best_iteration: int
    iterations: int
    tokeniser: str = ""
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def settings(self) -> PriorSettings:
        """Those of the network."""
        return self.prior.settings

    def check_tokeniser(self, model: TokeniserModel) -> None:
        """Check that codes of this prior can be decoded by a tokeniser.

        Raises
        ------
        UsageError
            If it was trained on codes of another, or their codebooks differ in size.
        """
        digest = model.digest
        if self.tokeniser and self.tokeniser != digest:
            raise UsageError(
                "the prior was trained on codes of another tokeniser",
                expected=f"sha256 {self.tokeniser[:12]}…",
                got=f"{digest[:12]}…",
                hint="give the two that were trained one after the other",
            )
        if self.settings.codes != model.settings.codes:
            raise UsageError(
                "the prior was trained on codes of another tokeniser",
                expected=f"a codebook of {self.settings.codes}",
                got=str(model.settings.codes),
            )

    def nll(self, codes: Tensor, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return the negative log likelihood of volumes with what is known of them, and without.

        Parameters
        ----------
        codes : Tensor
            int64 (N, *grid).
        rows : sequence of mapping
            What is known of each; see `Conditions.encode`.

        Returns
        -------
        conditional, unconditional : Tensor
            (N,), in nats per token.
        """
        if len(rows) != len(codes):
            raise UsageError(
                "there is not one row of conditions for each volume",
                expected=str(len(codes)), got=str(len(rows)),
            )  # fmt: skip
        sequences = self.prior.to_sequence(codes.to(self.prior.order.device))
        return likelihoods(self.prior, sequences, *self.conditions.encode(rows))

    def to_bytes(self, facts: dict[str, Json] | None = None, *, half: bool = False) -> bytes:
        """Return the content of a safetensors file, with all settings in its header.

        Parameters
        ----------
        facts : dict of JSON values, optional
            Said in the header besides.
        half : bool
            Weights in half precision.
        """
        weights = {n: v.half() if half else v for n, v in self.prior.state_dict().items()}
        metadata = {
            "model": KIND,
            "network": self.settings.to_json(),
            **self.conditions.to_json(),
            "facts": {**self.facts, **(facts or {})},
            **{name: getattr(self, name) for name in _SAID},
        }
        return pack_weights(weights, plain_json(metadata))

    @classmethod
    def read(cls, name_or_path: str | Path) -> PriorModel:
        """Return what `to_bytes` wrote, on the CPU.

        Raises
        ------
        UsageError
            If there is no such model or file.
        InputError
            If it is no prior.
        """
        return cls._from(*load_weights(name_or_path), Path(name_or_path).name)

    @classmethod
    def from_bytes(cls, content: bytes) -> PriorModel:
        """Return what `to_bytes` returned; see `read`."""
        return cls._from(*unpack_weights(content), None)

    @classmethod
    def _from(
        cls, tensors: dict[str, Tensor], header: dict[str, Json], where: str | None
    ) -> PriorModel:
        said = cast(dict[str, Any], header)
        try:
            if said.pop("model") != KIND:
                raise ValueError
            prior = Prior(PriorSettings(**said.pop("network")))
            prior.load_state_dict({name: value.float() for name, value in tensors.items()})
            conditions = Conditions.from_json({"conditions": said.pop("conditions")})
            if conditions.columns != prior.settings.conditions:
                raise ValueError
            return cls(prior.eval(), conditions, **said)
        except (KeyError, TypeError, ValueError, RuntimeError, MedpipeError):
            raise InputError(
                "the model is no prior", where=where, hint="use a file written by training"
            ) from None


@torch.no_grad()
def likelihoods(
    prior: Prior, codes: Tensor, values: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihood of cases with their conditions and with none.

    Parameters
    ----------
    prior : Prior
        In evaluation mode.
    codes : Tensor
        int64 (N, L), in the order of the sequence.
    values, present : Tensor
        (N, C).

    Returns
    -------
    conditional, unconditional : Tensor
        (N,), in nats per token, on the device of the prior; equal for a prior without
        conditions.
    """
    where = prior.start.device
    told, untold = [], []
    for first in range(0, len(codes), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        some = codes[part].to(where)
        untold.append(prior.nll(some))
        if prior.conditions is not None:
            told.append(prior.nll(some, values[part].to(where), present[part].to(where)))
    without = torch.cat(untold)
    return (torch.cat(told) if told else without), without
