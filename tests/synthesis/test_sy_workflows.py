"""synthesis-train and synthesize-brain as a user runs them: a folder, a model, volumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from test_sy_generator_training import AFFINE, SIZE, write_balls

from medpipe.engine.owners import Owner
from medpipe.synthesis.generator import Generator

TINY: dict[str, Any] = {
    "tokeniser_iterations": 3, "prior_iterations": 3, "width": 16, "layers": 1, "heads": 2,
    "codes": 16, "shift_voxels": 1, "copies": 2,
}  # fmt: skip
Medpipe = Callable[..., Any]


def changes(step: str, **values: object) -> list[str]:
    return [w for name, value in values.items() for w in ("--set", f"{step}.{name}={value}")]


def case(folder: Path, out: str, name: str = "") -> Path:
    (found,) = (path for path in (folder / out / "cases").iterdir() if name in path.name)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, medpipe_here: Medpipe) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "TRAIN").mkdir()
    write_balls(folder / "TRAIN", 5)
    done = medpipe_here(
        "run", "synthesis-train", "TRAIN", "MODEL", *changes("train_synthesis", **TINY),
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def draw(run: Medpipe, folder: Path, source: str, out: str, *more: object) -> Any:
    model = case(folder, "MODEL") / "model.safetensors"
    return run(
        "run", "synthesize-brain", source, out, "--set", f"sample.model={model}", *more,
        folder=folder,
    )  # fmt: skip


def test_a_training_leaves_a_model_curves_and_a_table(trained: Path) -> None:
    made = case(trained, "MODEL")
    assert {"prior.svg", "tokeniser.svg"} <= {path.name for path in made.iterdir()}
    table = json.loads((made / "training.json").read_text())
    assert (table["subjects"], table["volumes"]) == (5, 5)
    generator = Generator.read(made / "model.safetensors")
    assert "place_voxels" in generator.conditions.names
    assert str(trained) not in (made / "case.json").read_text()


def test_a_training_that_was_killed_goes_on_and_makes_the_same_model(trained: Path) -> None:
    """The command is run again; bits of the model are those of a training at one go."""
    how = changes("train_synthesis", **(TINY | {"prior_iterations": 60}))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "medpipe", "run", "synthesis-train", "TRAIN", out, *how]
        return subprocess.Popen(command, **silent, cwd=trained, start_new_session=True)

    with start("KILLED") as process:
        kept = trained / "KILLED" / "store" / ".unfinished"
        while not list(kept.glob("*/*/prior.pt")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    # its worker dies with it, a moment later
    worker = next(kept.glob("*/*")).name
    while Owner().lives(worker):
        time.sleep(0.02)
    assert not list((trained / "KILLED").glob("cases/*/model.safetensors"))
    for out in ("KILLED", "WHOLE"):
        with start(out) as process:
            assert process.wait() == 0
        assert not (trained / out / "store" / ".unfinished").exists()
    told_by = (trained / "KILLED" / "runs").glob("*/events.jsonl")
    assert "training goes on after" in "".join(path.read_text() for path in told_by)
    files = [case(trained, out) / "model.safetensors" for out in ("KILLED", "WHOLE")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_other_route_is_trained_and_drawn_from(trained: Path, medpipe_here: Medpipe) -> None:
    how = TINY | {"route": "latents", "denoiser_channels": "[16, 32]", "labeller_iterations": 2}
    how |= {"perceptual": 0.1, "detail": 0.4}
    done = medpipe_here(
        "run", "synthesis-train", "TRAIN", "LATENT", *changes("train_synthesis", **how),
        folder=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    file = case(trained, "LATENT") / "model.safetensors"
    generator = Generator.read(file)
    route: Any = generator.route
    assert generator.detail is not None
    assert generator.detail.share == 0.4
    assert generator.labeller is not None
    assert route.autoencoder.facts["perceptual_weight"] == 0.1
    assert route.denoiser.settings.begin == 0.3
    (trained / "place.json").write_text('{"place_voxels": 6}')
    done = medpipe_here(
        "run", "synthesize-brain", "place.json", "FROM_LATENT", "--set", f"sample.model={file}",
        folder=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = case(trained, "FROM_LATENT")
    image, labels = (nib.load(made / f"{name}.nii.gz") for name in ("volume", "labels"))
    assert image.shape == labels.shape == SIZE
    assert np.allclose(image.affine, AFFINE)


def test_each_case_of_a_manifest_is_a_volume_of_its_own(
    trained: Path, medpipe_here: Medpipe
) -> None:
    for n, place in enumerate((4, 9)):
        (trained / f"p{n}.json").write_text(json.dumps({"place_voxels": place}))
    (trained / "asked.csv").write_text("case_id,conditions\na,p0.json\nb,p1.json\nc,p1.json\n")
    done = draw(medpipe_here, trained, "asked.csv", "OUT")
    assert done.returncode == 0, done.stdout + done.stderr
    volumes = {}
    for name in "abc":
        made = case(trained, "OUT", name)
        image = nib.load(made / "volume.nii.gz")
        assert image.shape == nib.load(made / "labels.nii.gz").shape == SIZE
        assert np.allclose(image.affine, AFFINE)
        sidecar = json.loads((made / "volume.nii.gz.json").read_text())
        assert "place_voxels" in json.dumps(sidecar)
        volumes[name] = np.asarray(image.dataobj)
    assert not np.array_equal(volumes["b"], volumes["c"])  # another case, another seed
    again = draw(medpipe_here, trained, "asked.csv", "OUT")
    assert "0 computed, 3 already there" in again.stdout


def test_what_cannot_be_drawn_fails_in_one_line(trained: Path, medpipe_here: Medpipe) -> None:
    for text, said in (
        ('{"place_voxels": 50}', "expected 3.5 to 11.5"),
        ("{}", "missing: place_voxels"),
        ("[]", "the conditions of the case cannot be read"),
    ):
        (trained / "bad.json").write_text(text)
        done = draw(medpipe_here, trained, "bad.json", "BAD")
        assert done.returncode != 0
        assert sum(said in x for x in (done.stdout + done.stderr).splitlines()) == 1
    loose = draw(medpipe_here, trained, "bad.json", "LOOSE", "--set", "sample.missing=unknown")
    assert loose.returncode != 0  # a list is still none
    (trained / "bad.json").write_text("{}")
    loose = draw(medpipe_here, trained, "bad.json", "LOOSE", "--set", "sample.missing=unknown")
    assert loose.returncode == 0, loose.stdout + loose.stderr
    record = (case(trained, "LOOSE") / "case.json").read_text()
    assert "conditions that were not said: place_voxels" in record
