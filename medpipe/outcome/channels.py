"""What a network is shown of a CT: windows of Hounsfield units as channels between 0 and 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medpipe.errors import StepError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CT_PRESETS", "CT_WINDOWS_HU", "ct_channels"]

CT_WINDOWS_HU: dict[str, tuple[tuple[float, float], ...]] = {
    # brain (W80 L40), blood (W200 L80), bone (W2800 L600)
    "windows": ((0.0, 80.0), (-20.0, 180.0), (-800.0, 2000.0)),
    # three equal ones, as networks of photographs read them
    "paper": ((0.0, 100.0),) * 3,
}
"""Least and greatest value of each channel, by preset."""

CT_PRESETS = tuple(CT_WINDOWS_HU)


def ct_channels(hu: Tensor, preset: str = "windows", *, spatial_dims: int = 3) -> Tensor:
    """Return windows of a CT as channels.

    Parameters
    ----------
    hu : Tensor (..., 1, I, J, K)
        Hounsfield units, integers or not.
    preset : {"windows", "paper"}
        Brain 0..80, blood -20..180 and bone -800..2000 HU, or three times 0..100 HU (the
        study of doi 10.3390/brainsci14010010).
    spatial_dims : int
        Axes after the channel: 3, or 2 for slices.

    Returns
    -------
    Tensor (..., 3, I, J, K), floating, 0 to 1, on the device of `hu`.

    Raises
    ------
    UsageError
        If the preset is unknown.
    StepError
        If there is not one channel.
    """
    import torch

    if preset not in CT_WINDOWS_HU:
        raise UsageError("unknown preset", expected=" | ".join(CT_PRESETS), got=repr(preset)[:40])
    axis = hu.ndim - spatial_dims - 1
    if axis < 0 or hu.shape[axis] != 1:
        raise StepError(
            "a CT has one channel",
            expected=f"(..., 1, {spatial_dims} axes)",
            got=f"shape {tuple(hu.shape)}",
        )
    values = hu if hu.is_floating_point() else hu.to(torch.float32)
    limits = torch.tensor(CT_WINDOWS_HU[preset], dtype=values.dtype, device=values.device)
    low, high = limits.reshape(-1, 2, *[1] * spatial_dims).unbind(1)
    return ((values - low) / (high - low)).clamp(0, 1)
