"""Several processes over gloo: the result of one, and what they tell each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.slow

WORK = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.vqvae import VQVAE
from medpipe.errors import UsageError
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.flow import sample_latents
from medpipe.synthesis.parallel.decode import halo_decode
from medpipe.synthesis.parallel.exchange import Traffic
from medpipe.synthesis.parallel.patches import PatchParallel

def lively(net):
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=made) / p[0].numel() ** 0.5)
    return net.eval()

def denoiser(**how):
    base = dict(latent_channels=2, channels=(8, 16), attention=(False, True), groups=4,
                head_channels=8, condition_width=8)
    return lively(Denoiser(DenoiserSettings(**(base | how))))

def differ(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))

def decoders():
    base = dict(spatial_dims=3, channels=(8, 8, 8), norm_num_groups=4, num_res_blocks=1,
                latent_channels=2, attention_levels=(False, True, False),
                with_encoder_nonlocal_attn=False)
    yield "attention", lively(AutoencoderKL(**base)).decoder
    yield "transposed", lively(AutoencoderKL(
        **base, use_convtranspose=True, with_decoder_nonlocal_attn=False)).decoder
    yield "tokens", lively(VQVAE(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 8), num_res_layers=1,
        num_res_channels=(8, 8), embedding_dim=2, num_embeddings=4,
        downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
        upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)))).decoder

def checks(groups):
    out = {}
    values = torch.tensor([[0.4, -0.3], [-0.9, 0.2]])
    for kind, how, told in (
        ("plain", {}, None),
        ("crossed", {"conditions": 2}, values),
        ("deep", {"channels": (8, 8, 16), "attention": (False, True, False), "conditions": 2,
                  "conditioning": "embedding", "residual_blocks": 2}, values),
    ):
        net = denoiser(**how)
        for shape in ((11, 5, 3), (4, 16, 4)):
            for wide in ((False, True) if kind == "crossed" else (False,)):
                net = net.double() if wide else net.float()
                ask = dict(seeds=[1, 2], steps=2, guidance=2.0 if told is not None else 1.0)
                alone = sample_latents(net, shape, told, **ask)
                for count, group in groups.items():
                    if shape[0] == 11 and kind == "deep" and count == 4:
                        continue
                    made = sample_latents(net, shape, told, parallel=PatchParallel(group), **ask)
                    out[f"sample {kind} {shape} {wide} {count}"] = (differ(made, alone), wide)
    net = denoiser(objective="velocity")
    for scheduler in ("ddpm", "pndm"):
        ask = dict(seeds=[3], steps=4, scheduler=scheduler)
        made = sample_latents(net, (9, 4, 4), parallel=PatchParallel(groups[4]), **ask)
        out[f"sample {scheduler}"] = (differ(made, sample_latents(net, (9, 4, 4), **ask)), False)
    for name, net in decoders():
        x = torch.randn(1, 2, 5, 4, 9, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            whole = net(x)
        for count, group in groups.items():
            for axis in (None, 0) if name == "attention" else (None,):
                made = halo_decode(net, x, group, axis=axis)
                out[f"decode {name} {axis} {count}"] = (differ(made, whole), False)
        part = halo_decode(net, x, groups[4], gather=False)
        rank = dist.get_rank()
        first = [0, 3, 5, 7, 9][rank] * 4
        out[f"slab {name}"] = (differ(part, whole[..., first:first + part.shape[-1]]), False)
    return out

def displaced(groups):
    net, shape, steps = denoiser(), (8, 4, 4), 8
    ask = dict(seeds=[1, 2], steps=steps)
    alone = sample_latents(net, shape, **ask)
    apart = float((alone[0] - alone[1]).square().mean().sqrt())
    out = {"apart": apart}
    for count, group in groups.items():
        for warmup in (steps, 4, 1):
            parallel = PatchParallel(group, mode="displaced", warmup=warmup)
            made = sample_latents(net, shape, parallel=parallel, **ask)
            error = float((made - alone).square().mean().sqrt())
            out[count, warmup] = (error, parallel.traffic.total)
        again = sample_latents(
            net, shape, parallel=PatchParallel(group, mode="displaced", warmup=1), **ask)
        out[count, "again"] = float((made - again).abs().max())
        parallel = PatchParallel(group)
        sample_latents(net, shape, parallel=parallel, **ask)
        out[count, "bytes"] = parallel.traffic.to_json()
    return out

def counted(groups):
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(),
                        nn.Conv3d(4, 1, 3, padding=1))
    traffic = Traffic()
    halo_decode(net, torch.randn(3, 2, 8, 5, 6), groups[4], traffic=traffic)
    return traffic.to_json()

def refused(groups):
    out = []
    for run in (
        lambda: sample_latents(denoiser(), (4, 6, 4), seeds=[1], parallel=PatchParallel()),
        lambda: halo_decode(nn.Conv3d(1, 1, 5, padding=2), torch.zeros(1, 1, 4, 2, 2)),
        lambda: dist.get_rank() > 1 and halo_decode(
            nn.Identity(), torch.zeros(1, 1, 4, 2, 2), groups["first"]),
    ):
        try:
            run()
        except UsageError as error:
            out.append(str(error))
    return out

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    groups = {4: None, 2: pairs[rank // 2]}
    torch.save({"checks": checks(groups), "displaced": displaced(groups),
                "counted": counted(groups), "refused": refused(groups | {"first": pairs[0]})},
               f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    processes.start_processes(work, (sys.argv[1],), 4, start_method="fork")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What four processes found; two and two of them make the pairs."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "work.py"
    script.write_text(WORK)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], timeout=900, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


def test_synchronous_processes_give_the_result_of_one(results):
    """Denoisers and decoders; 1e-5 in single precision, 1e-10 in double."""
    for found in results:
        assert len(found["checks"]) == 28
        for name, (error, double) in found["checks"].items():
            assert error < (1e-10 if double else 1e-5), name


def test_displaced_processes_come_near_it(results):
    """Distance to the result of one device, against the distance of two samples."""
    for found in results:
        made = found["displaced"]
        for count in (2, 4):
            full, late, early = (made[count, warmup][0] for warmup in (8, 4, 1))
            assert full < 1e-5 * made["apart"]  # all steps synchronous
            assert 0 < late < early < 0.2 * made["apart"]
            assert made[count, "again"] == 0.0


def test_displaced_sampling_sends_the_same_but_for_the_last_step(results):
    for found in results:
        made = found["displaced"]
        for count in (2, 4):
            once = made[count, "bytes"]
            layers = once["total"] - once["result"]
            assert made[count, 8][1] == once["total"]
            for warmup in (1, 4):
                assert made[count, warmup][1] == once["total"] - layers // 8


def test_the_bytes_are_those_that_were_sent(results):
    """Two rims of two convolutions, three numbers of two groups, and a slab, in each message."""
    plane = 3 * 5 * 6 * 4
    for rank, found in enumerate(results):
        neighbours = 1 if rank in (0, 3) else 2
        assert found["counted"] == {
            "halo": neighbours * (2 + 4) * plane,
            "statistics": 3 * 3 * 2 * 3 * 8,
            "attention": 0,
            "result": 3 * 2 * plane,
            "messages": 2 * neighbours + 3 + 3,
            "total": neighbours * 6 * plane + 432 + 6 * plane,
        }


def test_too_many_processes_are_refused_in_all_of_them(results):
    for rank, found in enumerate(results):
        many, thin, *stranger = found["refused"]
        assert len(stranger) == (rank > 1)
        assert all("does not belong to the group" in text for text in stranger)
        assert "cannot be cut into so many slabs; expected 1 to 3, got 4" in many
        assert "too thin for a layer; expected 2 cells, got 1" in thin
