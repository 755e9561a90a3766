"""Networks of a few hundred weights that nothing was learned by, for tests."""

from __future__ import annotations

import numpy as np
import torch

from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.prior import Prior, PriorSettings
from medpipe.synthesis.prior_model import PriorModel
from medpipe.synthesis.tokeniser import Tokeniser, TokeniserSettings
from medpipe.synthesis.tokeniser_training import TokeniserModel, TokeniserTraining

AFFINE = np.array([[0, -1.5, 0, 10], [1.2, 0, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])
SHAPE = (9, 12, 7)
GRID = (3, 3, 2)


def conditions():
    table = {"age_years": [20, 40, 60, 90], "sex": ["F", "M", "F", "M"], "shift": [0, 2, -2, 1]}
    kinds = {"age_years": "continuous", "sex": "binary", "shift": "augmentation"}
    return Conditions.fit(table, kinds, units={"age_years": "years"})


def tokeniser(classes=3, codes=40, seed=0):
    torch.manual_seed(seed)
    settings = TokeniserSettings(
        label_classes=classes, widths=(4, 6), residual_units=1, codes=codes, code_width=5
    )
    net = Tokeniser(settings)
    with torch.no_grad():
        net(torch.rand(2, settings.channels, 16, 16, 16))  # codes begin at its features
    return TokeniserModel(net.eval(), TokeniserTraining(), [], 1, 1, SHAPE)


def prior(of, told=None, grid=GRID, seed=0):
    told = conditions() if told is None else told
    torch.manual_seed(seed)
    settings = PriorSettings(
        of.settings.codes, grid, width=16, layers=1, heads=2, conditions=told.columns
    )
    net = Prior(settings).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(6)  # so that conditions and former codes count
    return PriorModel(net, told, {"iterations": 1}, [], 1, 1, of.digest)
