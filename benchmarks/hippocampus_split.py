"""Write data_manifests/hippocampus_split.json: who trains, who validates, who tests.

    python benchmarks/hippocampus_split.py [FOLDER]

FOLDER has images/ and labels/ with a NIfTI file for each case under the same name; by
default the hippocampi among the real images. The file holds case ids alone. Run again it
writes the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import ROOT, real_folder

from medpipe.synthesis.split import split_patients, write_split


def case_ids(folder: Path) -> list[str]:
    """Return the names that have both an image and labels."""
    found = [
        {path.name.removesuffix(".nii.gz") for path in (folder / part).glob("*.nii.gz")}
        for part in ("images", "labels")
    ]
    return sorted(found[0] & found[1])


def main() -> None:
    """Draw the split: each case is a patient of its own."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else real_folder() / "hippocampus"
    split = split_patients({case_id: case_id for case_id in case_ids(folder)})
    target = ROOT / "data_manifests" / "hippocampus_split.json"
    write_split(target, split)
    counts = ", ".join(f"{len(ids)} {name}" for name, ids in split.parts.items())
    print(f"{target.relative_to(ROOT)}: {counts}, digest {split.digest[:8]}")


if __name__ == "__main__":
    main()
