"""How a network and its settings become one file, and are read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from medpipe.errors import InputError, UsageError
from medpipe.models import load_weights, pack_weights, unpack_weights
from medpipe.types import Json

__all__ = [
    "network_bytes",
    "network_digest",
    "packed_parts",
    "part_of",
    "plain_json",
    "read_network",
]

N = TypeVar("N", bound=nn.Module)


def network_bytes(
    network: nn.Module, model: str, settings: Any, *, half: bool = False,
    rounded: Sequence[str] = (), **more: Json,
) -> bytes:  # fmt: skip
    """Return weights, the fields of `settings` and more facts as a safetensors file.

    With `half` weights are in half precision; what was measured (buffers) is as it is, but
    for buffers that are `rounded` too.
    """
    said: dict[str, Json] = {"model": model, "settings": asdict(settings), **more}
    short = {*dict(network.named_parameters()), *rounded} if half else set()
    tensors = {n: v.half() if n in short else v for n, v in network.state_dict().items()}
    return pack_weights(tensors, said)


def network_digest(network: nn.Module) -> str:
    """Return the sha256 that tells these weights from others."""
    return hashlib.sha256(pack_weights(network.state_dict(), {})).hexdigest()


def plain_json(value: dict[str, Any]) -> dict[str, Json]:
    """Return JSON values: lists for tuples."""
    return json.loads(json.dumps(value))


def read_network(
    source: str | Path | bytes, model: str, what: str, make: Callable[[dict[str, Any]], N]
) -> N:
    """Return the network of what `network_bytes` made, on the CPU, ready to be asked.

    Parameters
    ----------
    source : str, Path or bytes
        Name of a packaged model, a file, or the content of one.
    model : str
        What the file must say it is.
    what : str
        The same in words, for the message.
    make : callable
        From what the file says to the network; its weights are loaded here.

    Raises
    ------
    UsageError
        If there is no such file.
    InputError
        If it holds something else.
    """
    tensors, said = unpack_weights(source) if isinstance(source, bytes) else load_weights(source)
    try:
        if said["model"] != model:
            raise ValueError
        network = make(said)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError):
        raise InputError(
            f"the model is not {what}", hint="use a file written by training"
        ) from None
    return network.eval()


def packed_parts(parts: Mapping[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Return several safetensors files as tensors and headers of one, prefixed by name."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, Json] = {}
    for name, content in parts.items():
        own, header[name] = unpack_weights(content)
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
    return tensors, header


def part_of(name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return one of the files that `packed_parts` put together."""
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }
    return pack_weights(own, header[name])
