"""Pictures that tell of an outcome, and settings that learn it in a moment."""

from __future__ import annotations

import numpy as np

from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.training import OutcomeTraining

FLAT = OutcomeNetworkSettings(spatial_dims=2, channels=1, architecture="small")
TRAINING = OutcomeTraining(
    preset="pictures", iterations=6, batch_size=8, learning_rate=1e-2, validate_every=3,
    validation_share=0.3, augmentation=None, folds=3, seed=4,
)  # fmt: skip
SETTINGS = CrossSettings(training=TRAINING, network=FLAT)


def study(n=48, seed=0):
    """Pictures whose brightness and an age that tell of the outcome; some patients twice."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i}" for i in range(n - 4)] + [f"p{i}" for i in range(4)]
    of_patient = (rng.random(n - 4) < 0.4).astype(np.int64)
    outcome = np.concatenate([of_patient, of_patient[:4]])
    ids = tuple(f"c{i:02d}" for i in range(n))
    pictures = rng.normal(0.3, 0.15, (n, 1, 16, 16)).astype(np.float32)
    pictures += 0.25 * outcome[:, None, None, None].astype(np.float32)
    age = 50 + 10 * outcome + rng.normal(0, 10, n)
    cohort = Cohort(ids, tuple(patients), outcome, {"age_years": age})
    return cohort, dict(zip(ids, pictures, strict=True))
