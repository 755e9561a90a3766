"""`LoadVolume` and `SaveVolume`: the only transforms that touch the disk.

`volume_from_metatensor` and `metatensor_from_volume` are the two ways between
a `Volume` (numpy, axes I, J, K[, T]) and MONAI's channel-first `MetaTensor`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import SpaceKeys, TransformBackends
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.io.checks import require_known_fixes
from medpipe.io.detect import detect_kind
from medpipe.io.dicom_options import (
    GantryTilt,
    MissingSlices,
    ResampleGrid,
    TimePoints,
    VariableStep,
)
from medpipe.io.nifti import read_nifti, write_nifti
from medpipe.types import Finding, Severity, Volume

__all__ = [
    "LoadVolume",
    "LoadVolumeD",
    "LoadVolumeDict",
    "LoadVolumed",
    "SaveVolume",
    "SaveVolumeD",
    "SaveVolumeDict",
    "SaveVolumed",
    "metatensor_from_volume",
    "volume_from_metatensor",
]

_EXACT_IN_FLOAT32 = 1 << 24


def metatensor_from_volume(volume: Volume) -> MetaTensor:
    """Turn a volume into a channel-first MetaTensor on the CPU.

    Parameters
    ----------
    volume : Volume
        Data of shape (I, J, K) or (I, J, K, T).

    Returns
    -------
    MetaTensor
        Shape (1, I, J, K) or (T, I, J, K), float32, or complex64 for complex
        data; affine float64 in RAS+ mm; ``meta["medpipe"]`` holds ``source``
        and ``findings`` as JSON values.

    Raises
    ------
    InputError
        If values are beyond the range of float32.
    """
    data = np.asarray(volume.data)
    findings = [*volume.findings, *_check_float32(data)]
    tensor = torch.from_numpy(_channel_first(data))
    meta: dict[str, Any] = {
        "space": SpaceKeys.RAS.value,
        "original_channel_dim": 0,
        "medpipe": {
            "source": dict(volume.source),
            "findings": [finding.to_dict() for finding in findings],
        },
    }
    affine = torch.from_numpy(np.array(volume.affine, np.float64))
    return MetaTensor(tensor, affine=affine, meta=meta)


def _channel_first(data: NDArray[Any]) -> NDArray[Any]:
    """Return (I, J, K[, T]) as a contiguous (1 or T, I, J, K) float32 or complex64 array."""
    frames = data[..., None] if data.ndim == 3 else data
    target = np.complex64 if data.dtype.kind == "c" else np.float32
    out = np.empty((frames.shape[3], *frames.shape[:3]), target)
    # Plane by plane: files are in Fortran order, and transposing planes that
    # fit the cache is six times faster than transposing the whole.
    with np.errstate(over="ignore"):
        for t in range(frames.shape[3]):
            for j in range(frames.shape[1]):
                out[t, :, j] = np.ascontiguousarray(frames[:, j, :, t].T).T
    narrowed = data.dtype.kind in "fc" and data.dtype.itemsize > out.dtype.itemsize
    if narrowed and np.isfinite(out).sum() != np.isfinite(data).sum():
        raise InputError(
            "voxel values are beyond the range of float32",
            hint="scale the image before it is loaded",
        )
    return out


def _check_float32(data: NDArray[Any]) -> list[Finding]:
    """Warn where integers are too large for float32 to tell neighbours apart."""
    if data.dtype.kind not in "iu" or data.dtype.itemsize < 4:
        return []
    if max(-int(data.min()), int(data.max())) <= _EXACT_IN_FLOAT32:
        return []
    message = "integers beyond ±16777216 were rounded to float32"
    return [Finding("volume.float32", Severity.WARNING, message)]


def volume_from_metatensor(tensor: MetaTensor) -> Volume:
    """Turn a channel-first MetaTensor into a volume with its source and findings.

    Parameters
    ----------
    tensor : MetaTensor
        Shape (1, I, J, K), or (T, I, J, K) for T > 1, on any device.

    Returns
    -------
    Volume
        Data of shape (I, J, K) or (I, J, K, T), a copy on the CPU in Fortran
        order, as NIfTI stores it.

    Raises
    ------
    UsageError
        If it is not a MetaTensor of four axes.
    """
    if not isinstance(tensor, MetaTensor) or tensor.ndim != 4:
        got = f"{type(tensor).__name__} of shape {tuple(np.shape(tensor))}"
        raise UsageError("a volume is needed", expected="a MetaTensor (C, I, J, K)", got=got)
    frames = tensor.detach().cpu().as_tensor().numpy()
    data = np.empty((*frames.shape[1:], frames.shape[0]), frames.dtype, order="F")
    for t, frame in enumerate(frames):
        for j in range(frame.shape[1]):  # plane by plane, as in _channel_first
            data[:, j, :, t] = np.ascontiguousarray(frame[:, j].T).T
    affine = np.array(tensor.affine.detach().cpu().numpy(), np.float64)
    record = tensor.meta.get("medpipe") or {}
    findings = [_finding(entry) for entry in record.get("findings", [])]
    data = data[..., 0] if data.shape[3] == 1 else data
    return Volume(data, affine, dict(record.get("source", {})), findings)


def _finding(record: Mapping[str, Any]) -> Finding:
    return Finding(**{**record, "severity": Severity[record["severity"].upper()]})


class LoadVolume(Transform):
    """Read a NIfTI file, a DICOM file or a folder of DICOM files into a MetaTensor.

    Parameters
    ----------
    ndim : int or list of int
        Axes the image may have: 3, 4 (a time or contrast axis becomes the
        channels), or both.
    fixes : list of str
        NIfTI repairs to apply, by the name of the check, e.g.
        ``"nifti.zero_pixdim"``.
    assume_orientation : str, optional
        For NIfTI files that state none: ``"qform"``, ``"sform"`` or axis codes
        such as ``"RAS"``.
    select : dict, optional
        Rules that choose one DICOM series of several, such as
        ``{modality = "CT", orientation = "axial", most_slices = true}``.
    missing_slices : str
        What to do with a DICOM series that lacks slices within.
    variable_step : str
        What to do where the distance between slices varies.
    gantry_tilt : str
        What to do with slices that lean against their normal; kept, the affine
        holds the shear.
    time_points : str
        What to do with several slices at each position; stacked, they make a
        4-D image.
    resample_spacing_mm : float or list of three floats, optional
        Voxel size that a repair resamples a DICOM series to.
    resample_grid : str
        Grid it resamples to: along the patient's axes or along the slices.
    max_gb : float
        Most memory the voxels may take, in GiB.

    Returns
    -------
    MetaTensor
        Of calling it with a path: see `metatensor_from_volume`.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's convention

    def __init__(
        self,
        ndim: int | list[int] = 3,
        fixes: Sequence[str] = (),
        assume_orientation: str | None = None,
        select: dict[str, Any] | None = None,
        missing_slices: MissingSlices = "refuse",
        variable_step: VariableStep = "refuse",
        gantry_tilt: GantryTilt = "keep",
        time_points: TimePoints = "refuse",
        resample_spacing_mm: float | list[float] | None = None,
        resample_grid: ResampleGrid = "patient",
        max_gb: float = 8.0,
    ) -> None:
        if not max_gb > 0:
            raise UsageError("max_gb is wrong", expected="a positive number", got=repr(max_gb))
        require_known_fixes(fixes)
        self.ndim = ndim
        self.fixes = tuple(fixes)
        self.assume_orientation = assume_orientation
        self.max_gb = max_gb
        self.dicom: dict[str, Any] = {
            "select": select,
            "missing_slices": missing_slices,
            "variable_step": variable_step,
            "gantry_tilt": gantry_tilt,
            "time_points": time_points,
            "resample_spacing_mm": (
                tuple(resample_spacing_mm)
                if isinstance(resample_spacing_mm, list)
                else resample_spacing_mm
            ),
            "resample_grid": resample_grid,
            "max_gb": max_gb,
        }

    def __call__(self, path: str | Path) -> MetaTensor:
        """Return the image at `path`; raise InputError if it is not right."""
        if detect_kind(path) == "nifti":
            return metatensor_from_volume(
                read_nifti(
                    path,
                    ndim=self.ndim,
                    fixes=self.fixes,
                    assume_orientation=self.assume_orientation,
                    max_bytes=int(self.max_gb * 2**30),
                )
            )
        from medpipe.io.dicom_series import read_dicom_series  # pydicom only where needed

        volume = read_dicom_series(Path(path), **self.dicom)
        allowed = {self.ndim} if isinstance(self.ndim, int) else set(self.ndim)
        if self.dicom["time_points"] == "stack":
            allowed.add(4)  # that is what was asked for
        if volume.data.ndim not in allowed:
            raise InputError(
                "the DICOM series has another number of axes than asked for",
                expected=f"ndim in {sorted(allowed)}",
                got=str(volume.data.ndim),
                hint="set ndim, or choose one time point",
            )
        return metatensor_from_volume(volume)


class LoadVolumed(MapTransform):
    """Dictionary form of `LoadVolume`: ``data[key]`` is a path and becomes a MetaTensor.

    Parameters
    ----------
    keys : str or sequence of str
    ndim, fixes, assume_orientation, select, missing_slices, variable_step, gantry_tilt, \
time_points, resample_spacing_mm, resample_grid, max_gb
        See `LoadVolume`.
    allow_missing_keys : bool
    """

    version = "1"
    makes = "volume"
    backend = LoadVolume.backend

    def __init__(
        self,
        keys: KeysCollection,
        ndim: int | list[int] = 3,
        fixes: list[str] | tuple[str, ...] = (),
        assume_orientation: str | None = None,
        select: dict[str, Any] | None = None,
        missing_slices: MissingSlices = "refuse",
        variable_step: VariableStep = "refuse",
        gantry_tilt: GantryTilt = "keep",
        time_points: TimePoints = "refuse",
        resample_spacing_mm: float | list[float] | None = None,
        resample_grid: ResampleGrid = "patient",
        max_gb: float = 8.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadVolume(
            ndim=ndim,
            fixes=fixes,
            assume_orientation=assume_orientation,
            select=select,
            missing_slices=missing_slices,
            variable_step=variable_step,
            gantry_tilt=gantry_tilt,
            time_points=time_points,
            resample_spacing_mm=resample_spacing_mm,
            resample_grid=resample_grid,
            max_gb=max_gb,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the paths under `keys` replaced by images."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.load(out[key])
        return out


class SaveVolume(Transform):
    """Write a MetaTensor to a NIfTI file, verify it, and return it as re-read.

    Parameters
    ----------
    folder : str
        Must exist.
    dtype : str, optional
        Type to store; see `medpipe.io.nifti.write_nifti`.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's convention

    def __init__(self, folder: str, dtype: str | None = None) -> None:
        self.folder = Path(folder)
        self.dtype = dtype

    def __call__(self, image: MetaTensor, name: str) -> MetaTensor:
        """Write `image` as ``folder/name``; raise StoreError if it cannot be."""
        if Path(name).name != name:
            raise UsageError("a file name holds a folder", got=repr(name), hint="set folder")
        volume = volume_from_metatensor(image)
        saved = metatensor_from_volume(write_nifti(self.folder / name, volume, dtype=self.dtype))
        return saved.to(image.device)


class SaveVolumed(MapTransform):
    """Dictionary form of `SaveVolume`; what travels on is what the file holds.

    Parameters
    ----------
    keys : str or sequence of str
    folder : str
        Must exist.
    names : str or list of str
        File name for each key, ending in ``.nii`` or ``.nii.gz``.
    dtype : str, optional
        Type to store, for all keys.
    allow_missing_keys : bool
    """

    version = "1"
    makes = "volume"
    backend = SaveVolume.backend

    def __init__(
        self,
        keys: KeysCollection,
        folder: str,
        names: str | list[str],
        dtype: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = [names] if isinstance(names, str) else list(names)
        if len(self.names) != len(self.keys) or len(set(self.names)) != len(self.names):
            raise UsageError(
                "names must hold one name for each key, all different",
                expected=f"{len(self.keys)} names",
                got=f"{len(self.names)}",
            )
        self.save = SaveVolume(folder, dtype)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the images under `keys` as they were re-read."""
        out = dict(data)
        for key, name in self.key_iterator(out, self.names):
            out[key] = self.save(out[key], name)
        return out


LoadVolumeD = LoadVolumeDict = LoadVolumed
SaveVolumeD = SaveVolumeDict = SaveVolumed
