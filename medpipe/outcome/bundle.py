"""Models of outcomes as files: a MONAI bundle folder, or one file for packaging.

``configs/metadata.json`` says all that prediction needs and holds the digest of every file
of weights, so its own digest names the whole model. Weights are safetensors, or a state dict
read with ``weights_only``; nothing in a bundle is unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.models import MODELS, load_weights, pack_weights, unpack_weights
from medpipe.outcome.bundle_config import (
    BUNDLE_FORMAT,
    bundle_card,
    bundle_inference,
    bundle_metadata,
)
from medpipe.outcome.model_facts import DEMONSTRATION, SIMULATED, OutcomeFacts, unusable_model
from medpipe.types import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DEMONSTRATION",
    "SIMULATED",
    "OutcomeBundle",
    "OutcomeFacts",
    "pack_bundle",
    "read_bundle",
    "write_bundle",
]

METADATA = "configs/metadata.json"
LONGEST_METADATA = 20_000_000
LONGEST_WEIGHTS = 2_000_000_000
NO_LICENCE = "Those who trained this model decide on its licence; none is stated here.\n"


@dataclass(frozen=True, eq=False)
class OutcomeBundle:
    """A model that was read: its facts and the weights of its members.

    Parameters
    ----------
    facts : OutcomeFacts
    members : tuple of state dicts
        One per fold, on the CPU.
    digest : str
        sha256 that names facts and weights together.
    """

    facts: OutcomeFacts
    members: tuple[Mapping[str, Tensor], ...]
    digest: str

    def networks(self, device: Any = "cpu") -> list[nn.Module]:
        """Return the members as networks ready to be asked.

        Raises
        ------
        InputError
            If the weights do not fit the network that the facts describe.
        """
        from medpipe.outcome.network import OutcomeNetworkSettings, outcome_network

        made = []
        try:
            settings = OutcomeNetworkSettings(**_settings_of(self.facts.network))
            for tensors in self.members:
                network = outcome_network(settings)
                wanted = network.state_dict()
                network.load_state_dict(
                    {n: v.to(wanted[n].dtype) if n in wanted else v for n, v in tensors.items()}
                )
                made.append(network.to(device).eval().requires_grad_(True))
        except (MedpipeError, TypeError, ValueError, RuntimeError, KeyError):
            raise unusable_model("its weights are of another network") from None
        return made


def _settings_of(network: Mapping[str, Json]) -> dict[str, Any]:
    """Return settings with lists as the tuples that they were."""
    return {n: tuple(v) if isinstance(v, list) else v for n, v in network.items()}


def write_bundle(
    folder: str | Path,
    models: Iterable[nn.Module | Mapping[str, Tensor]],
    facts: OutcomeFacts,
    *,
    card: str = "",
    licence: str = NO_LICENCE,
) -> str:
    """Write a model as a MONAI bundle.

    Parameters
    ----------
    folder : path
        Made if it is absent; files of an earlier bundle in it are replaced.
    models : iterable of Module, FoldModel or state dict
        The members of the ensemble, one per fold.
    facts : OutcomeFacts
    card : str
        Markdown for ``docs/README.md``; by default made from the facts.
    licence : str
        Text of the file ``LICENSE``.

    Returns
    -------
    str
        The digest of the model, which is the sha256 of its metadata.

    Raises
    ------
    UsageError
        If there is no member.
    StoreError
        If a file cannot be written.
    """
    members = _state_dicts(models)
    root = Path(folder)
    for name in ("configs", "models", "docs"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for old in (root / "models").glob("fold*.safetensors"):
        old.unlink()
    weights = []
    for number, tensors in enumerate(members):
        content = pack_weights(tensors, {"model": facts.name, "fold": number})
        file = f"models/fold{number}.safetensors"
        write_bytes_atomic(root / file, content)
        weights.append({"file": file, "sha256": hashlib.sha256(content).hexdigest()})
    write_bytes_atomic(root / "LICENSE", licence.encode())
    write_bytes_atomic(
        root / "docs" / "README.md", (card or bundle_card(facts, len(members))).encode()
    )
    write_json_atomic(root / "configs" / "inference.json", bundle_inference(facts, weights))
    # last: a folder without it is no bundle
    write_json_atomic(root / METADATA, bundle_metadata(facts, weights))
    return hashlib.sha256((root / METADATA).read_bytes()).hexdigest()


def pack_bundle(models: Iterable[nn.Module | Mapping[str, Tensor]], facts: OutcomeFacts) -> bytes:
    """Return a model as the content of one safetensors file, to package under its name."""
    members = _state_dicts(models)
    tensors = {f"{k}/{name}": value for k, m in enumerate(members) for name, value in m.items()}
    return pack_weights(
        tensors,
        {
            "kind": BUNDLE_FORMAT,
            "model": facts.name,
            "folds": len(members),
            "facts": facts.to_json(),
        },
    )


def read_bundle(name_or_path: str | Path) -> OutcomeBundle:
    """Read a model of outcomes; nothing in it is run.

    Parameters
    ----------
    name_or_path : str or Path
        A packaged model, the folder of a bundle, its ``configs/metadata.json``, or a file
        that `pack_bundle` made.

    Raises
    ------
    UsageError
        If there is no such model.
    InputError
        If it is damaged, incomplete, or of another kind or version.
    """
    path = Path(name_or_path)
    if str(name_or_path) not in MODELS:
        if path.is_dir():
            return _read_folder(path)
        if path.name == Path(METADATA).name and path.is_file():
            return _read_folder(path.parent.parent)
        if not path.is_file():
            packaged = [name for name, model in MODELS.items() if model.task == "outcome"]
            raise UsageError(
                "no such model of outcomes",
                got=repr(path.name)[:60],
                expected=", ".join(packaged) or "a folder or file, as none is packaged here",
                hint="give the folder of a trained one to each step that asks a model, "
                "e.g. --set grid.model=OUT/model",
            )
    return _read_file(name_or_path)


def _read_file(name_or_path: str | Path) -> OutcomeBundle:
    """Read a model from one file."""
    packaged = MODELS.get(str(name_or_path))
    tensors, header = load_weights(name_or_path)
    folds = header.get("folds")
    if header.get("kind") != BUNDLE_FORMAT or not isinstance(folds, int) or not 1 <= folds <= 1000:
        raise unusable_model("it is not one of outcomes, or of another version")
    members: list[dict[str, Tensor]] = [{} for _ in range(folds)]
    for name, value in tensors.items():
        number, _, own = name.partition("/")
        if not number.isdecimal() or int(number) >= folds:
            raise unusable_model("it holds weights that belong to no member")
        members[int(number)][own] = value
    if packaged is not None:
        digest = packaged.sha256
    else:
        digest = hashlib.sha256(Path(name_or_path).read_bytes()).hexdigest()
    return OutcomeBundle(OutcomeFacts.from_json(header.get("facts")), tuple(members), digest)


def _read_folder(root: Path) -> OutcomeBundle:
    """Read a bundle folder, checking every file against its digest."""
    content = _content(root / METADATA, LONGEST_METADATA, METADATA)
    try:
        metadata = json.loads(content)
        record = metadata["medpipe"]
        weights = [(str(w["file"]), str(w["sha256"])) for w in record["weights"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise unusable_model("its metadata are damaged, or of another program", METADATA) from None
    if record.get("format") != BUNDLE_FORMAT:
        raise unusable_model("it is of another version", METADATA)
    if not weights:
        raise unusable_model("it lists no weights", METADATA)
    facts = OutcomeFacts.from_json(record.get("facts"))
    members = tuple(_weights(root, file, digest) for file, digest in weights)
    return OutcomeBundle(facts, members, hashlib.sha256(content).hexdigest())


def _weights(root: Path, file: str, digest: str) -> Mapping[str, Tensor]:
    """Return the tensors of one member; a state dict of torch is read as weights only."""
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts or "\0" in file:
        raise unusable_model("it names weights outside its folder", METADATA)
    content = _content(root / file, LONGEST_WEIGHTS, file)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            "weights of the model are not those that its metadata name",
            where=file,
            expected=f"sha256 {digest[:12]}…",
            hint="copy the whole folder of the model again",
        )
    if place.suffix == ".safetensors":
        return unpack_weights(content, file)[0]
    return _state_dict(content, file)


def _state_dict(content: bytes, file: str) -> Mapping[str, Tensor]:
    import io

    import torch

    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever its reader does for damaged files
        raise unusable_model("its weights are damaged, or more than tensors", file) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(n, str) and isinstance(v, torch.Tensor) for n, v in tensors.items()
    ):
        raise unusable_model("its weights are no state dict", file)
    return tensors


def _content(path: Path, longest: int, where: str) -> bytes:
    try:
        if path.stat().st_size > longest:
            raise unusable_model("a file of it is too large", where)
        return path.read_bytes()
    except FileNotFoundError:
        raise unusable_model("a file of it is missing", where) from None
    except OSError:
        raise InputError("a file of the model cannot be read", where=where) from None


def _state_dicts(
    models: Iterable[nn.Module | Mapping[str, Tensor]],
) -> list[dict[str, Tensor]]:
    """Return the tensors of each member on the CPU."""
    found = []
    for model in models:
        own = getattr(model, "network", model)
        tensors = own if isinstance(own, Mapping) else own.state_dict()
        # safetensors wants tensors that share no memory
        found.append({n: v.detach().to(device="cpu", copy=True) for n, v in tensors.items()})
    if not found:
        raise UsageError("a model needs members", expected="a trained network for each fold")
    return found
