"""A population of brain MRs whose anatomy, age and every deformation are known.

A subject is a label map, aged to a wanted volume of brain and ventricles, deformed by a
smooth random map, given intensities, a bias field and noise, and sampled with partial
volumes on a coarse grid. The truth is counted on the finer grid the voxels are made of.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special
from scipy.spatial.transform import Rotation

from medpipe.errors import UsageError
from medpipe.geometry import affine_from_parts
from medpipe.phantoms.anatomy import HeadLabel
from medpipe.phantoms.brain_ageing import GRID, Ageing
from medpipe.phantoms.brain_mr import TIMING, relaxation, signal
from medpipe.phantoms.brain_population_labels import BRAIN, BrainRegion, LabelHead
from medpipe.phantoms.diffeomorphism import Warp, random_velocity
from medpipe.phantoms.shapes import Array, F
from medpipe.types import Affine, Volume

__all__ = [
    "BrainScan",
    "BrainSubject",
    "Person",
    "PopulationModel",
    "draw_person",
    "simulate_brain",
]

PopulationContrast = Literal["t1", "t2", "pd", "flair", "random"]

LEAST_MM = 180.0
"""A field of view below this cuts brains."""


@dataclass(frozen=True, slots=True)
class PopulationModel:
    """How age and sex go with the brain in a simulated population: chosen, not measured.

    Attributes
    ----------
    age_years : tuple of float
        Ages are drawn evenly between these.
    ventricle_ml : float
        Median volume of the lateral ventricles in women of 65.
    ventricle_per_year, ventricle_male, ventricle_spread : float
        What a year and being a man add to its logarithm, and its standard deviation.
    loss_per_year, loss_spread : float
        Share of its brain that a head has lost per year after 65, and its deviation.
    male_size, size_spread : float
        How much wider a man's head is, and the standard deviation of the width.
    """

    age_years: tuple[float, float] = (45.0, 85.0)
    ventricle_ml: float = 22.0
    ventricle_per_year: float = 0.025
    ventricle_male: float = 0.15
    ventricle_spread: float = 0.35
    loss_per_year: float = 0.002
    loss_spread: float = 0.012
    male_size: float = 0.03
    size_spread: float = 0.02


@dataclass(frozen=True, slots=True)
class Person:
    """What a subject was asked to be.

    Attributes
    ----------
    age_years : float
    sex : {"F", "M"}
    ventricle_ml : float
        Wanted volume of the lateral ventricles.
    brain_share : float
        Wanted volume of the brain relative to that of the label map, at equal head size.
    size : float
        Width of the head relative to that of the label map.
    """

    age_years: float
    sex: Literal["F", "M"]
    ventricle_ml: float
    brain_share: float
    size: float


def draw_person(
    rng: np.random.Generator,
    model: PopulationModel,
    reach_ml: tuple[float, float] = (0.0, np.inf),
) -> Person:
    """Draw age, sex and what follows from them.

    Parameters
    ----------
    rng : numpy Generator
    model : PopulationModel
    reach_ml : tuple of float
        Least and most volume of the ventricles that the head can have, see
        `Ageing.reach_ml`. What a person's age leaves open is drawn from the part of its
        distribution that lies between these, so that what is wanted is what is got.
    """
    age = round(float(rng.uniform(*model.age_years)), 1)
    male = bool(rng.random() < 0.5)
    loss = model.loss_per_year * (age - 65) + model.loss_spread * rng.standard_normal()
    width = 1 + model.male_size * (male - 0.5) + model.size_spread * rng.standard_normal()
    size = float(np.clip(width, 0.92, 1.06))
    expected = (
        np.log(model.ventricle_ml)
        + model.ventricle_per_year * (age - 65)
        + model.ventricle_male * male
    )
    with np.errstate(divide="ignore"):
        ends = np.log(np.array(reach_ml) * size**3)
    log_ml = _between(rng.random(), expected, model.ventricle_spread, ends)
    return Person(
        age, "M" if male else "F", float(np.exp(log_ml)), float(1 - np.clip(loss, -0.06, 0.1)),
        size,
    )  # fmt: skip


def _between(share: float, mean: float, deviation: float, ends: NDArray[np.float64]) -> float:
    """Return a quantile of a normal distribution that is cut at both ends."""
    if deviation == 0:
        return float(np.clip(mean, *ends))
    low, high = special.ndtr((ends - mean) / deviation)
    drawn = mean + deviation * special.ndtri(low + share * (high - low))
    return float(np.clip(drawn, *ends))  # where the part lies too far out to be told apart


@dataclass(frozen=True, slots=True)
class BrainScan:
    """How a subject is imaged and deformed.

    Attributes
    ----------
    shape : tuple of int
        Voxels along x, y, z.
    spacing_mm : float
        Their size.
    contrast : {"t1", "t2", "pd", "flair", "random"}
        A signal model with drawn relaxation times, or an intensity drawn for each tissue.
    deform_mm, smooth_mm : float
        Standard deviation and smoothness of the random velocity.
    tilt_deg, shift_mm : float
        Standard deviations of the pose of the head.
    bias : float
        Standard deviation of the logarithm of the bias field.
    noise_percent : float
        Noise of each channel, of the mean signal of white matter; the magnitude is Rician.
    samples : int
        Points along each axis of a voxel: their share gives partial volumes.
    """

    shape: tuple[int, int, int] = (64, 64, 64)
    spacing_mm: float = 3.0
    contrast: PopulationContrast = "t1"
    deform_mm: float = 2.5
    smooth_mm: float = 20.0
    tilt_deg: float = 0.0
    shift_mm: float = 0.0
    bias: float = 0.1
    noise_percent: float = 2.0
    samples: int = 2

    def __post_init__(self) -> None:
        if self.contrast not in get_args(PopulationContrast):
            raise UsageError(
                "unknown contrast",
                expected=" | ".join(get_args(PopulationContrast)), got=repr(self.contrast),
            )  # fmt: skip
        narrow = min(self.shape) * self.spacing_mm
        if narrow < LEAST_MM:
            raise UsageError(
                "the field of view cuts the brain",
                expected=f"{LEAST_MM:g} mm or more along each axis", got=f"{narrow:g} mm",
                hint="take more or larger voxels",
            )  # fmt: skip
        if not 1 <= self.samples <= 4:
            raise UsageError("unknown number of samples", expected="1..4", got=str(self.samples))


@dataclass(slots=True)
class BrainSubject:
    """A simulated brain MR and the truth behind it.

    Attributes
    ----------
    volume : Volume
        Magnitude image; white matter is about 100 on average.
    labels : ndarray of uint8, shape (I, J, K)
        The `BrainRegion` that most of each voxel is.
    growth : ndarray of float32, shape (I, J, K)
        By which factor each place is larger than in the label map.
    warp : callable of points (..., 3)
        RAS mm of the image to RAS mm of the label map.
    facts : dict
        JSON: conditions, volumes in ml, deformation, intensities.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    growth: Array
    warp: _Placed
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class _Placed:
    """Pose and size of the head, and then the warp inside it."""

    matrix: NDArray[np.float64]
    shift_mm: NDArray[np.float64]
    warp: Warp

    def _straight(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return (points_mm - self.shift_mm) @ self.matrix.T

    def __call__(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.warp(self._straight(points_mm))

    def determinant(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the volume in the label map per volume in the image."""
        inside = self.warp.determinant(self._straight(points_mm))
        return inside * np.linalg.det(self.matrix)


def simulate_brain(
    ageing: Ageing, seed: int, person: Person, scan: BrainScan | None = None
) -> BrainSubject:
    """Return a subject made from a head.

    Parameters
    ----------
    ageing : Ageing
        The head it is made from.
    seed : int
        Chooses deformation, pose, intensities, bias and noise.
    person : Person
        What the subject is asked to be.
    scan : BrainScan, optional

    Returns
    -------
    BrainSubject
        Its facts hold what was asked for and what came out: ``conditions`` are measured.
    """
    scan = scan or BrainScan()
    head = ageing.head
    rng = np.random.default_rng([seed, 40])
    shape = random_velocity(rng, GRID, scan.deform_mm, scan.smooth_mm)
    turn = rng.standard_normal(3) * scan.tilt_deg
    shift = rng.standard_normal(3) * scan.shift_mm
    aged, reached = ageing.solve(person.brain_share, person.ventricle_ml / person.size**3, shape)
    warp = aged.warp(-1.0).after(shape.warp(-1.0))
    placed = _Placed(_rotation(turn).T / person.size, shift, warp)
    means, spread = _intensities(head, scan.contrast, np.random.default_rng([seed, 41]))
    table = np.abs(means)
    affine = _affine(scan)
    labels, image, growth, counts = _painted(head, placed, scan, affine, table)
    volumes = {r.name.lower(): float(counts[r]) for r in BrainRegion if r}
    field_map = _bias(np.random.default_rng([seed, 42]), scan)
    noisy = _noisy(image * field_map, scan.noise_percent, np.random.default_rng([seed, 43]))
    determinant = 1 / growth
    facts: dict[str, Any] = {
        "seed": seed,
        "conditions": {
            "age_years": person.age_years,
            "sex": person.sex,
            "ventricle_ml": volumes["lateral_ventricle"],
            "brain_ml": sum(volumes[r.name.lower()] for r in BRAIN),
        },
        "volumes_ml": volumes,
        "wanted": asdict(person),
        "expected": {
            "ventricle_ml": float(reached["ventricles_ml"] * person.size**3),
            "brain_ml": float(reached["brain_ml"] * person.size**3),
        },
        "anatomy_ml": head.volumes_ml(),
        "pose": {"tilt_deg": turn.tolist(), "shift_mm": shift.tolist()},
        "jacobian": {
            "least": float(determinant.min()),
            "most": float(determinant.max()),
            "least_in_lattice": float(warp.jacobian().min()),
        },
        "intensities": {"contrast": scan.contrast, "spread": spread},
    }
    source = {"kind": "phantom", "modality": "MR", "seed": seed, "contrast": scan.contrast}
    return BrainSubject(Volume(noisy.astype(F), affine, source), labels, growth, placed, facts)


def _affine(scan: BrainScan) -> Affine:
    step = np.full(3, scan.spacing_mm)
    return affine_from_parts(np.eye(3), step, -(np.array(scan.shape) - 1) / 2 * step)


def _rotation(turn_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    return Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()


def _painted(
    head: LabelHead, placed: _Placed, scan: BrainScan, affine: Affine, table: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], Array, Array, NDArray[np.float64]]:
    """Return labels, mean signal and growth of each voxel, and ml of each region."""
    (n_i, n_j, n_k), s = scan.shape, scan.samples
    offsets = (np.arange(s) + 0.5) / s - 0.5
    index = [(np.arange(n)[:, None] + offsets).ravel() for n in scan.shape]
    labels = np.empty(scan.shape, np.uint8)
    image, growth = np.empty(scan.shape, F), np.empty(scan.shape, F)
    counts = np.zeros(len(BrainRegion))
    for k in range(n_k):
        grid = np.stack(np.meshgrid(index[0], index[1], index[2][k * s : k * s + s], indexing="ij"))
        points = np.moveaxis(grid, 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        classes = head.at(placed(points))
        blocks = classes.reshape(n_i, s, n_j, s, s).swapaxes(1, 2).reshape(n_i, n_j, s**3)
        regions = head.regions[blocks].reshape(-1, s**3)
        cells = np.arange(len(regions))[:, None] * len(BrainRegion) + regions
        votes = np.bincount(cells.ravel(), minlength=len(regions) * len(BrainRegion))
        votes = votes.reshape(n_i, n_j, len(BrainRegion))
        labels[:, :, k] = votes.argmax(-1)
        counts += votes.sum((0, 1))
        image[:, :, k] = table[blocks].mean(-1)
        middle = points.reshape(n_i, s, n_j, s, s, 3).mean((1, 3, 4))
        growth[:, :, k] = 1 / placed.determinant(middle)
    return labels, image, growth, counts * (scan.spacing_mm / s) ** 3 / 1000


def _intensities(
    head: LabelHead, contrast: PopulationContrast, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Return a signal for each class, white matter 100, and how far tissues vary."""
    spread = 0.04
    values = np.zeros(len(head.regions))
    loose = rng.uniform(10, 90, len(head.regions))
    for index, tissue in enumerate(head.tissues):
        jitter = 1 + spread * rng.standard_normal(2)
        if index == 0 or tissue is HeadLabel.AIR:
            continue
        if tissue is None or contrast == "random":
            values[index] = loose[index]
            continue
        known = relaxation(tissue)
        drawn = known._replace(t1_ms=known.t1_ms * jitter[0], t2_ms=known.t2_ms * jitter[1])
        values[index] = 100 * signal(drawn, **TIMING[contrast])
    if contrast != "random":
        white = abs(signal(relaxation(HeadLabel.WHITE), **TIMING[contrast]))
        known_rows = np.array([t is not None for t in head.tissues])
        values[known_rows] /= white
    return values, spread


def _bias(rng: np.random.Generator, scan: BrainScan) -> NDArray[np.float64]:
    """Return a smooth field of about 1."""
    nodes = rng.standard_normal((5, 5, 5))
    at = np.meshgrid(*[np.linspace(0.5, 3.5, n) for n in scan.shape], indexing="ij")
    log = ndimage.map_coordinates(nodes, at, order=3)
    return np.exp(scan.bias * (log - log.mean()) / log.std())


def _noisy(
    image: NDArray[np.floating], percent: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the magnitude of the image with noise in both channels."""
    real = image + percent * rng.standard_normal(image.shape)
    return np.hypot(real, percent * rng.standard_normal(image.shape))
