"""Simulated quantitative MR examinations as BIDS datasets, one per protocol, with the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.io.nifti import write_nifti
from medpipe.phantoms.qmri import (
    PROTOCOLS,
    TISSUES_3T,
    QmriPhantom,
    Sequence,
    find_protocol,
    measure,
)
from medpipe.types import Volume

__all__ = ["QmriCase", "write_qmri_folder"]

_FIELDS = {
    "flip_angle_deg": "FlipAngle",
    "repetition_time_preparation_s": "RepetitionTimePreparation",
    "echo_time_s": "EchoTime",
    "inversion_time_s": "InversionTime",
    "number_shots": "NumberShots",
}
_EXCITATION = ("VFA", "DESS", "MP2RAGE")
_KINDS = {"VFA": "SPGR", "DESS": "DESS"}


@dataclass(frozen=True, slots=True)
class QmriCase:
    """Where one simulated examination lies.

    Attributes
    ----------
    protocol : str
    dataset : Path
        The BIDS dataset.
    images : Path
        The folder of the weighted images.
    b1 : Path
        The map of flip-angle scaling.
    mask : Path
        The brain.
    """

    protocol: str
    dataset: Path
    images: Path
    b1: Path
    mask: Path


def write_qmri_folder(
    folder: Path, phantom: QmriPhantom, protocols: SequenceOf[str] = tuple(PROTOCOLS)
) -> list[QmriCase]:
    """Write ``folder/<protocol>/sub-01/anat/…`` for each protocol and ``folder/truth``.

    The M0 of the truth is that of the tissue; what a protocol measures holds the
    decay of its echo time or the saturation of its repetition time besides.

    Raises
    ------
    UsageError
        If there is no such protocol.
    """
    for name in protocols:
        find_protocol(name)
    _write_truth(folder / "truth", phantom)
    return [
        _write_dataset(folder / name, name, phantom, measure(phantom, name)) for name in protocols
    ]


def _write_truth(folder: Path, phantom: QmriPhantom) -> None:
    folder.mkdir(parents=True)
    for name, data, unit in (
        ("T1map", phantom.t1_s, "s"),
        ("T2map", phantom.t2_s, "s"),
        ("M0map", phantom.m0, "arbitrary"),
        ("TB1map", phantom.kappa, "arbitrary"),
    ):
        _write(folder / f"{name}.nii.gz", data.astype(np.float32), phantom, {"Units": unit})
    names = {str(rank): name for rank, name in enumerate(TISSUES_3T, start=1)}
    _write(folder / "tissue.nii.gz", phantom.tissue, phantom, {"Labels": names})


def _write_dataset(
    folder: Path, protocol: str, phantom: QmriPhantom, images: NDArray[np.complex128]
) -> QmriCase:
    anat, fmap = folder / "sub-01" / "anat", folder / "sub-01" / "fmap"
    for made in (anat, fmap):
        made.mkdir(parents=True)
    description = {"Name": f"medpipe phantom {protocol}", "BIDSVersion": "1.10.0"}
    _write_json(folder / "dataset_description.json", {**description, "DatasetType": "raw"})
    spec = PROTOCOLS[protocol]
    for image, sequence in zip(images, spec.sequences, strict=True):
        fields = sidecar_fields(sequence)
        parts = {"": np.abs(image)}
        if spec.phase:
            parts = {"_part-mag": np.abs(image), "_part-phase": np.angle(image)}
        for part, data in parts.items():
            entities = "".join(f"_{key}-{value}" for key, value in sequence.entities.items())
            name = f"sub-01{entities}{part}_{sequence.suffix}.nii.gz"
            unit = {"Units": "rad"} if part == "_part-phase" else {}
            _write(anat / name, data.astype(np.float32), phantom, {**fields, **unit})
    if protocol == "mp2rage":
        _write(anat / "sub-01_UNIT1.nii.gz", _uniform(*images), phantom, {"Units": "arbitrary"})
    if protocol == "spgr-dess":
        _write_json(folder / "protocol.json", _protocol_file(spec.sequences))
    b1, mask = fmap / "sub-01_TB1map.nii.gz", folder / "mask.nii.gz"
    kappa = {"Units": "arbitrary", "Description": "true over nominal flip angle, a fraction"}
    _write(b1, phantom.kappa.astype(np.float32), phantom, kappa)
    _write(mask, phantom.brain, phantom, {})
    return QmriCase(protocol, folder, anat, b1, mask)


def sidecar_fields(sequence: Sequence) -> dict[str, Any]:
    """Return the fields of BIDS for one image."""
    fields: dict[str, Any] = {"MagneticFieldStrength": 3.0}
    if sequence.suffix in _KINDS:
        fields["PulseSequenceType"] = _KINDS[sequence.suffix]
    for name, value in sequence.settings.items():
        if name == "repetition_time_s":
            excitation = sequence.suffix in _EXCITATION
            fields["RepetitionTimeExcitation" if excitation else "RepetitionTime"] = value
        elif name == "number_shots":
            fields[_FIELDS[name]] = list(value)
        elif name in _FIELDS:  # of a pair the one of this readout
            readout = sequence.settings.get("readout", 1)
            fields[_FIELDS[name]] = value[readout - 1] if isinstance(value, tuple) else value
    return fields


def _uniform(first: NDArray[np.complex128], second: NDArray[np.complex128]) -> NDArray[np.float32]:
    """Return the uniform image of MP2RAGE, from -0.5 to 0.5 (Marques 2010)."""
    power = np.abs(first) ** 2 + np.abs(second) ** 2
    return ((first.conj() * second).real / power).astype(np.float32)


def _protocol_file(sequences: SequenceOf[Sequence]) -> dict[str, Any]:
    spgr = [s.settings for s in sequences if s.suffix == "VFA"]
    double = next(s.settings for s in sequences if s.suffix == "DESS")
    times = ("repetition_time_s", "echo_time_s")
    return {
        "acquisitions": [
            {
                "model": "spgr",
                "flip_angle_deg": [s["flip_angle_deg"] for s in spgr],
                **{name: spgr[0][name] for name in times},
            },
            {
                "model": "dess",
                **{name: double[name] for name in ("flip_angle_deg", *times)},
            },
        ]
    }


def _write(path: Path, data: NDArray[Any], phantom: QmriPhantom, fields: dict[str, Any]) -> None:
    write_nifti(path, Volume(data, phantom.affine, {"kind": "phantom"}))
    _write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), fields)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
