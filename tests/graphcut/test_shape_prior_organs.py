"""Two organs that touch: a plain cut leaks from one into the other, the shape prior does not."""

import pytest
import torch

from medpipe.graphcut.layers import Exclude, Layer, multi_object_cut
from medpipe.graphcut.links import contrast_links
from medpipe.graphcut.shape_prior import prior_arcs
from medpipe.graphcut.unaries import histogram_costs
from medpipe.graphcut.vector_field import gradient_vector_flow
from medpipe.phantoms.pelvis_ct import PelvisLabel, pelvis_ct, rough_presegmentation
from medpipe.steps._balls import dilate_ball, erode_ball

SPACING = (2.5, 2.5, 2.5)
ORGANS = {"prostate": PelvisLabel.PROSTATE, "bladder": PelvisLabel.BLADDER}


def dice(a, b):
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


class Case:
    """A phantom with contrast below the noise and a rough mask of each organ."""

    def __init__(self, seed):
        p = pelvis_ct(seed, shape=(46, 46, 43), spacing_mm=SPACING, contrast_hu=12.0, noise_hu=15.0)
        self.image = torch.from_numpy(p.volume.data)
        self.truth = {n: torch.from_numpy(p.mask(label)) for n, label in ORGANS.items()}
        self.rough = {
            n: torch.from_numpy(rough_presegmentation(m.numpy(), SPACING, seed + i))
            for i, (n, m) in enumerate(self.truth.items())
        }
        self.links = contrast_links(self.image, SPACING, weight=1.0, neighbours=6)

    def layers(self, **rule):
        """Same data, links and seeds for every method; arcs only where a rule is given."""
        out = []
        for name, rough in self.rough.items():
            near, far = dilate_ball(rough, 6.0, SPACING), ~dilate_ball(rough, 16.0, SPACING)
            own, other = histogram_costs(self.image, rough, ~near)
            arcs = ()
            if rule:
                arcs, cycles = prior_arcs(gradient_vector_flow(rough, SPACING), SPACING, **rule)
                assert cycles.largest <= 64
            seeds = erode_ball(rough, 4.0, SPACING)
            out.append(Layer(name, own - other, self.links, arcs, inside=seeds, outside=far))
        return out


@pytest.fixture(scope="module", params=[1, 2])
def case(request):
    return Case(request.param)


def together(case, **rule):
    result = multi_object_cut(case.layers(**rule), [Exclude("prostate", "bladder")], SPACING)
    assert result.proved
    return {name: result.mask(name) for name in ORGANS}


def test_plain_cut_leaks_and_the_two_object_prior_does_not(case):
    plain = {
        layer.name: multi_object_cut([layer], (), SPACING).mask(layer.name)
        for layer in case.layers()
    }
    held = together(case, rule="cone", angle_deg=30.0)
    neighbour = {"prostate": "bladder", "bladder": "prostate"}
    # each organ, cut alone, takes in part of the other
    leaks = [int((plain[n] & case.truth[neighbour[n]]).sum()) for n in ORGANS]
    assert sum(leaks) > 0.3 * int(case.truth["prostate"].sum())
    assert not (held["prostate"] & held["bladder"]).any()
    for name, truth in case.truth.items():
        before, rough, after = (dice(m[name], truth) for m in (plain, case.rough, held))
        assert after > before + 0.06
        assert after > rough + 0.08
        left = int((held[name] & case.truth[neighbour[name]]).sum())
        assert left < 0.08 * int(case.truth["prostate"].sum())
    assert dice(held["prostate"], case.truth["prostate"]) > 0.92
    assert dice(held["bladder"], case.truth["bladder"]) > 0.98


def test_exclusion_alone_does_not_hold_the_prostate(case):
    apart = together(case)
    rounded = together(case, rule="rounded")
    cone = together(case, rule="cone", angle_deg=45.0)
    truth = case.truth["prostate"]
    scores = [dice(m["prostate"], truth) for m in (apart, rounded, cone)]
    assert scores[0] + 0.03 < scores[1] < scores[2]
