"""Priors that were trained with MONAI."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.orders import OrderKind, check_grid
from medpipe.synthesis.prior import Prior, PriorSettings

__all__ = ["prior_from_monai"]


def prior_from_monai(
    network: nn.Module | Mapping[str, Tensor],
    grid: tuple[int, ...],
    *,
    heads: int | None = None,
    order: OrderKind = "raster",
) -> Prior:
    """Return a prior with the weights of MONAI's ``DecoderOnlyTransformer``.

    Its logits are those of the network given the start token and the codes, without the
    last: the probability of the start itself, which MONAI's sampler sets to 0.

    Parameters
    ----------
    network : DecoderOnlyTransformer or mapping of str to Tensor
        The network, or its state. Its last token is the start, as for MONAI's
        ``VQVAETransformerInferer``.
    grid : tuple of int
        Tokens along each axis; the network may have been made for longer sequences.
    heads : int, optional
        Needed if a state is given, which does not say it.
    order : {"raster", "s-curve", "hilbert"}
        In which the network was trained. MONAI's ``s_curve`` is another than the one here.

    Returns
    -------
    Prior
        With a context to be given if the network has cross-attention. On the device and of
        the type of the network.

    Raises
    ------
    UsageError
        If the number of heads is not known, or the sequence is too long.
    InputError
        If the state is of something else.
    """
    if isinstance(network, nn.Module):
        state: Mapping[str, Tensor] = network.state_dict()
        heads = heads or getattr(network, "attn_layers_heads", None)
    else:
        state = network
    if heads is None:
        raise UsageError("the number of heads is not known", hint="give heads")
    try:
        settings = _settings(state, check_grid(grid), heads, order)
        prior = Prior(settings)
        prior.load_state_dict(_tensors(state, settings))
    except (KeyError, RuntimeError):  # a name or a shape that is not there
        raise InputError(
            "the weights are not of a DecoderOnlyTransformer of MONAI",
            hint="give the network that was trained, or its state_dict()",
        ) from None
    return prior.to(state["to_logits.weight"])


def _settings(
    state: Mapping[str, Tensor], grid: tuple[int, ...], heads: int, order: OrderKind
) -> PriorSettings:
    tokens, width = state["token_embeddings.weight"].shape
    longest = len(state["position_embeddings.embedding.weight"])
    if math.prod(grid) > longest:
        raise UsageError(
            "the network is for shorter sequences",
            expected=f"a grid of {longest} tokens or fewer",
            got=f"{math.prod(grid)} tokens",
        )
    return PriorSettings(
        codes=tokens - 1,
        grid=grid,
        width=width,
        layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        heads=heads,
        mlp_ratio=len(state["blocks.0.mlp.linear1.weight"]) // width,
        order=order,
        positions="learned",
        blocks="monai",
        context="blocks.0.cross_attn.to_q.weight" in state,
    )


def _tensors(state: Mapping[str, Tensor], settings: PriorSettings) -> dict[str, Tensor]:
    """Return the tensors under the names that a prior has for them."""
    codes = settings.codes
    found = {
        "embedding.weight": state["token_embeddings.weight"][:codes],
        "start": state["token_embeddings.weight"][codes],
        "position.0": state["position_embeddings.embedding.weight"][: settings.length],
        "to_logits.weight": state["to_logits.weight"][:codes],
        "to_logits.bias": state["to_logits.bias"][:codes],
    }
    for number in range(settings.layers):
        block = {
            name.removeprefix(f"blocks.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"blocks.{number}.")
        }
        found |= {f"blocks.{number}.{n}": t for n, t in _block(block, settings).items()}
    return found


def _block(block: Mapping[str, Tensor], settings: PriorSettings) -> dict[str, Tensor]:
    qkv = [block[f"attn.to_{name}.weight"] for name in "qkv" if f"attn.to_{name}.weight" in block]
    same = torch.eye(settings.width).to(block["norm1.weight"])
    found = {
        "qkv.weight": torch.cat(qkv) if qkv else block["attn.qkv.weight"],
        # a network without this layer passes on what attention found
        "out.weight": block.get("attn.out_proj.weight", same),
        "out.bias": block.get("attn.out_proj.bias", torch.zeros_like(same[0])),
    }
    names = {"norm": "norm1", "norm_mlp": "norm2", "up": "mlp.linear1", "down": "mlp.linear2"}
    if settings.context:
        names |= {"cross.norm": "norm_cross_attn", "cross.out": "cross_attn.out_proj"}
        found["cross.query.weight"] = block["cross_attn.to_q.weight"]
        found["cross.key_value.weight"] = torch.cat(
            [block["cross_attn.to_k.weight"], block["cross_attn.to_v.weight"]]
        )
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            found[f"{ours}.{part}"] = block[f"{theirs}.{part}"]
    return found
