"""Use the step the way a notebook does, and check it against what is known."""

import torch
from monai.data import MetaTensor
from my_steps.smooth import Smooth

# One bright voxel on a grid of 1 × 1 × 2 mm …
image = torch.zeros(1, 41, 41, 21)
image[0, 20, 20, 10] = 1000.0
point = MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))

blob = Smooth(sigma_mm=3.0)(point)

# … becomes a blob that keeps its sum and is 3 mm wide along every axis.
print(f"sum {float(blob.sum()):.0f}")
for axis, spacing_mm in enumerate([1.0, 1.0, 2.0]):
    others = [a for a in range(3) if a != axis]
    profile = blob[0].as_tensor().sum(dim=others)
    position_mm = torch.arange(len(profile)) * spacing_mm
    mean = (profile * position_mm).sum() / profile.sum()
    variance = (profile * (position_mm - mean) ** 2).sum() / profile.sum()
    print(f"axis {axis}: sigma {float(variance.sqrt()):.1f} mm")
