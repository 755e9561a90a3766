"""The proof in the metadata says what the result says of itself."""

from dataclasses import replace

import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.graphcut.layers import Layer, multi_object_cut
from medpipe.graphcut.surfaces import ConvexPrior, SurfaceProblem, optimal_surfaces
from medpipe.graphcut.transforms.certificate import with_certificate


def results():
    costs = torch.tensor([2.0, 0.0, 1.0]).expand(1, 2, 2, 3)
    yield optimal_surfaces(SurfaceProblem(costs, torch.arange(3.0), ConvexPrior("linear")))
    yield multi_object_cut([Layer("a", torch.tensor([1.0, -2.0]).reshape(2, 1, 1))])


@pytest.mark.parametrize("proved", [True, False])
def test_a_result_that_is_not_proved_is_not_called_so(proved):
    for found in results():
        assert found.proved
        assert found.cut.proved
        # flow and cut may be equal where the energy does not agree with them
        meta = with_certificate(
            MetaTensor(torch.zeros(1, 2, 2, 2)), "cut", replace(found, proved=proved)
        ).meta["medpipe"]
        assert meta["source"]["minimum_cut"]["cut"]["proved"] is proved
        (finding,) = meta["findings"]
        assert finding["severity"] == ("info" if proved else "warning")
        assert ("not proved" in finding["message"]) is not proved
