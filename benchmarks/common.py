"""What every benchmark script shares: the machine in words, spread, and the results file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / "medpipe" / "models"


def real_folder() -> Path:
    """Where the real images are: MEDPIPE_REAL_DATA, else shared/data beside the checkout."""
    return Path(os.environ.get("MEDPIPE_REAL_DATA", ROOT.parent / "shared" / "data"))


def machine() -> dict[str, Any]:
    """Describe this machine by its kind, without its name."""
    described: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
    }
    try:
        import torch

        described["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except ImportError:
        described["gpu"] = None
    return described


def versions(*names: str) -> dict[str, str]:
    """Return the installed versions of the packages that matter to a result."""
    return {name: metadata.version(name) for name in names}


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return n, median, minimum and maximum of repeated measurements."""
    return {
        "n": len(values),
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"machine": machine(), **results}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def package_model(name: str, content: bytes, card: str, task: str) -> None:
    """Put a model and its card into the package, and its digest into the registry."""
    (MODELS / f"{name}.safetensors").write_bytes(content)
    (MODELS / f"{name}.md").write_text(card, "utf-8")
    digest = hashlib.sha256(content).hexdigest()
    entry = f'''    "{name}": PackagedModel(
        "{name}.safetensors",
        "{digest}",
        "{task}",
    ),
'''
    registry = MODELS / "registry.py"
    text = re.sub(rf'    "{name}": PackagedModel\([^)]*\),\n', "", registry.read_text("utf-8"))
    text = text.replace('}\n"""Models by name', entry + '}\n"""Models by name')
    registry.write_text(text, "utf-8")
    print(f"{len(content)} bytes, sha256 {digest}")
