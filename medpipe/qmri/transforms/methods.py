"""One transform for each estimator of relaxation, with the parameters that it takes."""

from __future__ import annotations

from monai.config.type_definitions import KeysCollection

from medpipe.qmri.protocol import Protocol
from medpipe.qmri.transforms._base import Fit, Fitd, Range
from medpipe.qmri.transforms.estimators import Method, make_ranges

__all__ = [
    "FitDictionary",
    "FitDictionaryD",
    "FitDictionaryDict",
    "FitDictionaryd",
    "FitLeastSquares",
    "FitLeastSquaresD",
    "FitLeastSquaresDict",
    "FitLeastSquaresd",
    "FitPerk",
    "FitPerkD",
    "FitPerkDict",
    "FitPerkd",
]


class FitPerk(Fit):
    """Estimate relaxation times and M0 by regression with kernels (PERK).

    Nataraj, Nielsen, Scott and Fessler 2018, doi 10.1109/TMI.2018.2817547. One
    regression, trained on simulated voxels of the protocol, serves all voxels.

    Parameters
    ----------
    protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s, trained, seed
        See `FitRelaxation`.
    """

    def __init__(
        self,
        protocol: Protocol | str | None = None,
        model: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: Range = None,
        t2_range_s: Range = None,
        t2star_range_s: Range = None,
        trained: str | None = None,
        seed: int = 0,
    ) -> None:
        ranges = make_ranges(t1_s=t1_range_s, t2_s=t2_range_s, t2star_s=t2star_range_s)
        self.set_up(protocol, model, noise_sigma, Method("perk", ranges, trained, seed))


class FitLeastSquares(Fit):
    """Estimate relaxation times and M0 by nonlinear least squares.

    Batched Levenberg-Marquardt from a coarse dictionary, M0 by variable projection
    (Golub and Pereyra 1973, doi 10.1137/0710036).

    Parameters
    ----------
    protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        See `FitRelaxation`.
    """

    def __init__(
        self,
        protocol: Protocol | str | None = None,
        model: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: Range = None,
        t2_range_s: Range = None,
        t2star_range_s: Range = None,
    ) -> None:
        ranges = make_ranges(t1_s=t1_range_s, t2_s=t2_range_s, t2star_s=t2star_range_s)
        self.set_up(protocol, model, noise_sigma, Method("least_squares", ranges))


class FitDictionary(Fit):
    """Estimate relaxation times and M0 by the nearest atom of a dictionary of signals.

    Parameters
    ----------
    protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        See `FitRelaxation`.
    """

    def __init__(
        self,
        protocol: Protocol | str | None = None,
        model: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: Range = None,
        t2_range_s: Range = None,
        t2star_range_s: Range = None,
    ) -> None:
        ranges = make_ranges(t1_s=t1_range_s, t2_s=t2_range_s, t2star_s=t2star_range_s)
        self.set_up(protocol, model, noise_sigma, Method("dictionary", ranges))


class FitPerkd(Fitd):
    """Estimate relaxation times and M0 by regression with kernels (PERK).

    Parameters
    ----------
    keys : keys of the images (D, I, J, K), replaced by maps (C, I, J, K)
    protocol, model, mask, b1, noise_sigma, t1_range_s, t2_range_s, t2star_range_s, trained, seed
        As for `fit_relaxation`.
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
        mask: str | None = None,
        b1: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: list[float] | None = None,
        t2_range_s: list[float] | None = None,
        t2star_range_s: list[float] | None = None,
        trained: str | None = None,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.b1 = mask, b1
        self.step = FitPerk(
            protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s, trained, seed
        )


class FitLeastSquaresd(Fitd):
    """Estimate relaxation times and M0 by nonlinear least squares.

    Parameters
    ----------
    keys : keys of the images (D, I, J, K), replaced by maps (C, I, J, K)
    protocol, model, mask, b1, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        As for `fit_relaxation`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask", "b1")
    writes = ()
    files = ("protocol",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        protocol: str | None = None,
        model: str | None = None,
        mask: str | None = None,
        b1: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: list[float] | None = None,
        t2_range_s: list[float] | None = None,
        t2star_range_s: list[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.b1 = mask, b1
        self.step = FitLeastSquares(
            protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        )


class FitDictionaryd(Fitd):
    """Estimate relaxation times and M0 by the nearest atom of a dictionary of signals.

    Parameters
    ----------
    keys : keys of the images (D, I, J, K), replaced by maps (C, I, J, K)
    protocol, model, mask, b1, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        As for `fit_relaxation`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask", "b1")
    writes = ()
    files = ("protocol",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        protocol: str | None = None,
        model: str | None = None,
        mask: str | None = None,
        b1: str | None = None,
        noise_sigma: float | None = None,
        t1_range_s: list[float] | None = None,
        t2_range_s: list[float] | None = None,
        t2star_range_s: list[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.b1 = mask, b1
        self.step = FitDictionary(
            protocol, model, noise_sigma, t1_range_s, t2_range_s, t2star_range_s
        )


FitPerkD = FitPerkDict = FitPerkd
FitLeastSquaresD = FitLeastSquaresDict = FitLeastSquaresd
FitDictionaryD = FitDictionaryDict = FitDictionaryd
