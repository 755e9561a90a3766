"""Seconds and memory from a head CT to a predicted outcome: preparing, networks, Grad-CAM.

    python benchmarks/outcome_speed.py [--device cpu] [--repeats 3] [--parts prepare peer ...]

The scan is the tilted series among the real images or, where they are absent, a simulated
head of 512 × 512 × 160 voxels. Every part runs in a process of its own, once to warm up and
then `--repeats` times; memory is how far the peak rises above what the process held before
the first run. Weights are random: the time does not depend on them.

Preparing is timed whole (`prepare_volume`) and step by step. The peer is what a user would
write with SimpleITK and MONAI alone: a rigid registration by mutual information to an upright
template of 2 mm, one resampling, the window as three channels. It gets a scan whose tilt is
corrected already, because its images cannot hold a shear; it does not check the scan, makes
no mask of the head and does not say whether the registration went wrong. Beside both stands
the correlation of the result with its mirror image, in HU of -200 to 300.

On a GPU the scan starts on the host; its way to the device is a step of its own, and each
step ends with a synchronisation. Components and holes of masks are found on the host (scipy).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own name for itself
import torch
from common import real_folder, spread, versions, write_results
from monai.transforms import Compose, EnsureChannelFirst, RepeatChannel, ScaleIntensityRange

from medpipe.geometry import LPS_TO_RAS, affine_from_parts
from medpipe.io.nifti import write_nifti
from medpipe.io.transforms import LoadVolume
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.ensemble import event_logit, predict_logits
from medpipe.outcome.explain import grad_cam
from medpipe.outcome.frame import find_pose
from medpipe.outcome.network import OutcomeNetworkSettings, outcome_network
from medpipe.outcome.prepare import (
    GRIDS,
    checked,
    head_on_grid,
    prepare_volume,
    sample_prepared,
    small_copy,
)
from medpipe.phantoms.anatomy import Subject
from medpipe.phantoms.head_ct import HeadCT, ct_noise
from medpipe.steps._base import affine_of, facts_of, rewrap
from medpipe.steps.head_ct import HeadMask
from medpipe.types import Volume

FOLDS = 5
NETWORKS = {"densenet121": "paper", "small": "compact"}
"""Architectures, each with the grid that it is used on."""
LOADING = {"variable_step": "resample", "resample_grid": "slices"}
UPRIGHT = Subject((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0, 0.2, 6.5)

Seconds = dict[str, list[float]]


class Clock:
    """Seconds by name, on a device that may still be at work when a call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: Seconds = {}

    def wait(self) -> None:
        """Wait until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to those of `name`."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


class Peak:
    """Most memory that this process held since it was made, above what it held then, in MB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._host = self._of("VmRSS")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._gpu = torch.cuda.memory_allocated(device)

    @staticmethod
    def _of(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) if found else 0

    def extra(self) -> dict[str, int]:
        """Return the rise of the peak on the host and, where one is used, on the GPU."""
        out = {"host_mb": round((self._of("VmHWM") - self._host) / 1024)}
        if self.device.type == "cuda":
            rise = torch.cuda.max_memory_allocated(self.device) - self._gpu
            out["gpu_mb"] = round(rise / 2**20)
        return out


def simulated_file(folder: Path) -> Path:
    """Write a turned head of 512 × 512 × 160 voxels, each sample four voxels wide, and noise."""
    spacing, shape = np.array([1.92, 1.92, 1.1]), (128, 128, 160)
    origin = (0, 0, 8) - (np.array(shape) - 1) / 2 * spacing
    coarse = HeadCT(0).sample(affine_from_parts(np.eye(3), spacing, origin), shape)[1]
    hu = coarse.repeat(4, 0).repeat(4, 1)
    for k in range(hu.shape[2]):
        hu[:, :, k] += ct_noise(hu[:, :, k], 5.0, (0, k))
    fine = spacing / (4, 4, 1)
    affine = affine_from_parts(np.eye(3), fine, origin - [1.5 * fine[0], 1.5 * fine[1], 0])
    path = folder / "simulated.nii.gz"
    write_nifti(path, Volume(np.maximum(hu, -1024).round().astype(np.int16), affine))
    return path


def mirrored(hu: torch.Tensor) -> float:
    """Return the correlation of a prepared volume (1, I, J, K) with its mirror image."""
    shown = hu[0].clamp(-200, 300).flatten()
    other = hu[0].flip(0).clamp(-200, 300).flatten()
    return round(float(torch.corrcoef(torch.stack([shown, other]))[0, 1]), 4)


def prepare(scan: Path, clock: Clock, repeats: int) -> dict[str, Any]:
    """Time preparing on the grid of the paper, whole and step by step."""
    settings = GRIDS["paper"]
    load = LoadVolume(gantry_tilt="keep", **LOADING)
    image = load(scan)
    affine, source = affine_of(image), facts_of(image)
    fov = (affine, tuple(image.shape[1:]))
    peak = Peak(clock.device)
    for turn in range(repeats + 1):
        if turn == 1:
            clock.seconds.clear()
        with clock("to the device"):
            hu = image.as_tensor().to(clock.device)
        with clock("whole"):
            made = prepare_volume(hu, affine, settings, source)
        moved = rewrap(image, hu)
        with clock("copy of 2 mm"):
            small = small_copy(moved)
        with clock("checks and head mask"):
            mask, _, _ = checked(moved, small)
        with clock("frame"):
            pose = find_pose(small, mask.as_tensor()[0] > 0, "symmetry", fov)
        with clock("resampling"):
            sample_prepared(hu, affine, pose.matrix, settings)
            head_on_grid(mask, pose.matrix, settings)
        with clock("head mask alone"):
            HeadMask()(small)
    memory = peak.extra()
    for _ in range(repeats):
        with clock("reading"):
            load(scan)
    clock.seconds["whole, with reading"] = [
        a + b + c
        for a, b, c in zip(
            *(clock.seconds[n] for n in ("reading", "to the device", "whole")), strict=True
        )
    ]
    return {
        "voxels_in": int(image.numel()),
        "voxels_out": int(made.hu.numel()),
        "mirror_correlation": mirrored(made.hu),
        **memory,
    }


def peer(scan: Path, clock: Clock, repeats: int) -> dict[str, Any]:
    """Time a preparation written with SimpleITK and MONAI alone, on the host."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    shape, spacing = (104, 124, 100), np.full(3, 2.0)
    place = affine_from_parts(np.eye(3), spacing, (0, 0, 0) - (np.array(shape) - 1))
    template = sitk_image(HeadCT(1, subject=UPRIGHT, table=False).sample(place, shape)[1], place)
    image = LoadVolume(gantry_tilt="resample", **LOADING)(scan)
    values, affine = image.as_tensor()[0].numpy(), affine_of(image)
    settings = GRIDS["paper"]
    empty = np.broadcast_to(np.float32(0), settings.size_voxels)
    grid = sitk_image(empty, settings.affine())
    windows = Compose(
        [
            EnsureChannelFirst(channel_dim="no_channel"),
            ScaleIntensityRange(0, 100, 0, 1, clip=True),
            RepeatChannel(3),
        ]
    )
    peak = Peak(torch.device("cpu"))
    for turn in range(repeats + 1):
        if turn == 1:
            clock.seconds.clear()
        with clock("whole"):
            moving = sitk.Clamp(sitk_image(values, affine), lowerBound=-1000, upperBound=1000)
            with clock("registration"):
                transform = registered(template, moving)
            out = sitk.Resample(moving, grid, transform, sitk.sitkLinear, -1000.0)
            made = torch.from_numpy(sitk.GetArrayFromImage(out)).permute(2, 1, 0)
            windows(made)
    return {
        "voxels_in": values.size,
        "voxels_out": made.numel(),
        "mirror_correlation": mirrored(made[None]),
        **peak.extra(),
    }


def sitk_image(values: np.ndarray, affine: np.ndarray) -> Any:
    """Return an array (I, J, K) as a SimpleITK image in LPS mm."""
    place = LPS_TO_RAS @ affine
    step = np.linalg.norm(place[:3, :3], axis=0)
    out = sitk.GetImageFromArray(np.ascontiguousarray(values.T, np.float32))
    out.SetSpacing(step.tolist())
    out.SetOrigin(place[:3, 3].tolist())
    out.SetDirection((place[:3, :3] / step).ravel().tolist())
    return out


def registered(fixed: Any, moving: Any) -> Any:
    """Return the rigid transform of a registration by mutual information in three levels."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def asked(architecture: str, clock: Clock) -> tuple[list[Any], torch.Tensor]:
    """Return an ensemble with random weights and a prepared volume of random HU."""
    torch.manual_seed(0)
    settings = OutcomeNetworkSettings(architecture=architecture)  # type: ignore[arg-type]
    networks = [outcome_network(settings).eval().to(clock.device) for _ in range(FOLDS)]
    hu = torch.randint(-1000, 1000, (1, *GRIDS[NETWORKS[architecture]].size_voxels))
    return networks, hu.float().to(clock.device)


def forward(architecture: str, clock: Clock, repeats: int) -> dict[str, Any]:
    """Time channels, one network and the ensemble, from HU to logits."""
    networks, hu = asked(architecture, clock)
    peak = Peak(clock.device)
    for turn in range(repeats + 1):
        if turn == 1:
            clock.seconds.clear()
        with clock("channels"):
            channels = ct_channels(hu, "windows")[None]
        with clock("one network"):
            predict_logits(networks[:1], channels)
        if turn:
            with clock(f"ensemble of {FOLDS}"):
                predict_logits(networks, channels)
    return {"grid": NETWORKS[architecture], "voxels": hu.numel(), **peak.extra()}


def explain(architecture: str, clock: Clock, repeats: int) -> dict[str, Any]:
    """Time Grad-CAM of one network and of the ensemble."""
    networks, hu = asked(architecture, clock)
    channels = ct_channels(hu, "windows")[None]
    peak = Peak(clock.device)
    for turn in range(repeats + 1):
        if turn == 1:
            clock.seconds.clear()
        with clock("one network"):
            grad_cam(networks[:1], channels, event_logit)
        if turn:
            with clock(f"ensemble of {FOLDS}"):
                grad_cam(networks, channels, event_logit)
    return {"grid": NETWORKS[architecture], "voxels": hu.numel(), **peak.extra()}


PARTS: dict[str, Callable[[Path, Clock, int], dict[str, Any]]] = {
    "prepare": prepare,
    "peer": peer,
    "predict densenet121": lambda _, clock, n: forward("densenet121", clock, n),
    "predict small": lambda _, clock, n: forward("small", clock, n),
    "grad-cam densenet121": lambda _, clock, n: explain("densenet121", clock, n),
    "grad-cam small": lambda _, clock, n: explain("small", clock, n),
}


def measured(part: str, scan: Path, device: str, repeats: int) -> dict[str, Any] | None:
    """Return what a process of its own says of a part, and print it."""
    command = [sys.executable, __file__, "--one", part, str(scan)]
    command += ["--device", device, "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{part} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
        return None
    row = json.loads(done.stdout.splitlines()[-1])
    memory = f"{row['host_mb']} MB" + (f", GPU {row['gpu_mb']} MB" if "gpu_mb" in row else "")
    print(f"{part} (peak {memory})")
    for name, seconds in row["seconds"].items():
        ends = f"{seconds['min']:.3f} to {seconds['max']:.3f}"
        print(f"  {name:24} {seconds['median']:9.3f} s ({ends}, n = {seconds['n']})", flush=True)
    return row


def judge(rows: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which of the aims are met, as far as their parts were measured."""

    def median(part: str, name: str) -> float | None:
        return rows[part]["seconds"][name]["median"] if part in rows else None

    ours, theirs = median("prepare", "whole"), median("peer", "whole")
    ensemble = median("predict densenet121", f"ensemble of {FOLDS}")
    aims = {}
    if ours is not None and ensemble is not None:
        aims["preparing takes no longer than the ensemble"] = ours <= ensemble
    if ours is not None and theirs is not None:
        aims["preparing takes no longer than SimpleITK and MONAI alone"] = ours <= theirs
    return aims


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--simulated", action="store_true", help="although the real is there")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        clock = Clock(torch.device(args.device))
        row = PARTS[args.one[0]](Path(args.one[1]), clock, args.repeats)
        seconds = {name: spread(each) for name, each in clock.seconds.items()}
        print(json.dumps({"seconds": seconds, **row}))
        return
    real = real_folder() / "head_ct_ge_tilt_dicom"
    simulated = args.simulated or not real.is_dir()
    with tempfile.TemporaryDirectory() as scratch:
        scan = simulated_file(Path(scratch)) if simulated else real
        rows = {
            part: row
            for part in args.parts
            if (row := measured(part, scan, args.device, args.repeats)) is not None
        }
    aims = judge(rows)
    for text, met in aims.items():
        print(f"  {'met ' if met else 'MISSED'} {text}")
    record = {
        "versions": versions("torch", "monai", "numpy", "SimpleITK"),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "scan": "simulated head" if simulated else "real head, tilted gantry, DICOM",
        "parts": rows,
        "aims": aims,
    }
    name = "outcome_speed" if args.device == "cpu" else "outcome_speed_gpu"
    if not args.no_write:
        print(write_results(name, record))


if __name__ == "__main__":
    main()
