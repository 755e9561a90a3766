"""The one training loop of medpipe: MONAI's trainer on pytorch-ignite (extra ``train``)."""

from __future__ import annotations

from medpipe.train.loop import train
from medpipe.train.opponent import Opponent
from medpipe.train.settings import LoopSettings, Progress, TrainResult

__all__ = ["LoopSettings", "Opponent", "Progress", "TrainResult", "train"]
