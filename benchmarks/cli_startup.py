"""CPU time of the verbs that people wait for: no torch may be imported by any of them.

python benchmarks/cli_startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys

from common import spread, versions, write_results

RUNS = 15
VERBS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "medpipe --version": [sys.executable, "-m", "medpipe", "--version"],
    "medpipe ls": [sys.executable, "-m", "medpipe", "ls"],
    "medpipe ls --json": [sys.executable, "-m", "medpipe", "ls", "--json"],
    "medpipe show dicom-import": [sys.executable, "-m", "medpipe", "show", "dicom-import"],
    "medpipe run --help": [sys.executable, "-m", "medpipe", "run", "--help"],
}


def cpu_seconds(command: list[str]) -> float:
    """Return user + system seconds of one run of `command`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print a table, write the results."""
    results = {}
    for name, command in VERBS.items():
        cpu_seconds(command)  # byte code is compiled once
        results[name] = spread([cpu_seconds(command) for _ in range(RUNS)])
        print(f"{name:28} {results[name]['median']:.3f} s CPU", results[name])
    path = write_results(
        "cli_startup",
        {"unit": "CPU seconds", "versions": versions("cyclopts", "pydantic"), "results": results},
    )
    print(path)


if __name__ == "__main__":
    main()
