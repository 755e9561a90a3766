"""Relaxation times from weighted images, by whichever estimator, as a transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from monai.config.type_definitions import KeysCollection

from medpipe.qmri.protocol import Protocol
from medpipe.qmri.transforms._base import Fit, Fitd, Range
from medpipe.qmri.transforms.estimators import Method, MethodName, make_ranges

__all__ = ["FitRelaxation", "FitRelaxationD", "FitRelaxationDict", "FitRelaxationd"]


class FitRelaxation(Fit):
    """Estimate relaxation times and M0 from weighted images.

    Parameters
    ----------
    protocol : Protocol or path, optional
        What was measured: a protocol, or its file.
    model : str, optional
        Signal model of all images, with settings from their headers, where no protocol
        is given; by default what their BIDS suffixes say.
    estimator : {"hybrid", "least_squares", "perk", "dictionary"}
        Least squares started by PERK; least squares alone; PERK alone; the nearest
        atom of a dictionary.
    noise_sigma : float, optional
        Standard deviation of the noise in units of the images; estimated by default.
    t1_range_s, t2_range_s, t2star_range_s : (low, high), optional
        Where values are searched, and what PERK is trained for.
    trained : path, optional
        A PERK model to use instead of training one.
    leave_out : list of int
        Numbers of images, from 1, that are not fitted; the protocol describes the others.
    seed : int
        Of the training.
    """

    def __init__(
        self,
        protocol: Protocol | str | None = None,
        model: str | None = None,
        estimator: MethodName = "hybrid",
        noise_sigma: float | None = None,
        t1_range_s: Range = None,
        t2_range_s: Range = None,
        t2star_range_s: Range = None,
        trained: str | None = None,
        leave_out: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        ranges = make_ranges(t1_s=t1_range_s, t2_s=t2_range_s, t2star_s=t2star_range_s)
        self.set_up(
            protocol, model, noise_sigma, Method(estimator, ranges, trained, seed), leave_out
        )


class FitRelaxationd(Fitd):
    """Estimate relaxation times and M0 from weighted images.

    Maps are 0 outside the region that was fitted and NaN where a voxel has no answer.

    Parameters
    ----------
    keys : keys of the images (D, I, J, K), replaced by maps (C, I, J, K)
    protocol : str, optional
        Path of a protocol file: what was measured, in the order of the images.
    model : str, optional
        Signal model of all images, with settings from sidecars or headers, where no
        protocol is given: spgr, inversion_recovery, spin_echo, epg_spin_echo,
        epg_spin_echo_b1, gradient_echo or mp2rage. By default what their suffixes say.
    estimator : str
        hybrid (least squares started by PERK), least_squares, perk or dictionary.
    mask : str, optional
        Key of a mask or label map on the grid of the images: voxels above 0 are
        fitted. A case without it: voxels with a signal.
    b1 : str, optional
        Key of a map of the flip-angle scaling (B1+) as a fraction, on any grid. A case
        without it: flip angles are as nominal.
    noise_sigma : float, optional
        Standard deviation of the noise in units of the images; estimated by default.
    t1_range_s : list of two floats, optional
        Where T1 is searched, in s, and what PERK is trained for.
    t2_range_s : list of two floats, optional
        The same for T2.
    t2star_range_s : list of two floats, optional
        The same for T2*.
    trained : str, optional
        Path of a PERK model to use instead of training one.
    leave_out : list of int, optional
        Numbers of images, from 1, that are not fitted; the protocol describes the others.
    seed : int
        Of the training.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask", "b1")
    writes = ()
    files = ("protocol", "trained")
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        protocol: str | None = None,
        model: str | None = None,
        estimator: Literal["hybrid", "least_squares", "perk", "dictionary"] = "hybrid",
        mask: str | None = None,
        b1: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: list[float] | None = None,
        t2_range_s: list[float] | None = None,
        t2star_range_s: list[float] | None = None,
        trained: str | None = None,
        leave_out: list[int] | None = None,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.b1 = mask, b1
        self.step = FitRelaxation(
            protocol,
            model,
            estimator,
            noise_sigma,
            t1_range_s,
            t2_range_s,
            t2star_range_s,
            trained,
            leave_out or (),
            seed,
        )


FitRelaxationD = FitRelaxationDict = FitRelaxationd
