"""Dask schedulers: one that runs already, one of this machine, one for SLURM or PBS."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from medpipe.engine.pool.local import available_cores
from medpipe.errors import UsageError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["JobOptions", "connected", "job_cluster", "require_dask"]

CONNECT_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What one job of a batch system asks for; one job runs one case at a time.

    Attributes
    ----------
    queue, account : str or None
        Partition or queue, and who pays.
    cores : int
    memory_gb : float
        10^9 bytes.
    walltime : str
        ``"HH:MM:SS"``. A case that is cut off is tried again in another job.
    gpus : int
        GPUs of a job; all of them are visible to its cases.
    directives : tuple of str
        Further ``#SBATCH`` or ``#PBS`` lines, without that word.
    prologue : tuple of str
        Shell lines to run before the worker starts, such as ``module load cuda``.
    interface, host : str or None
        Network interface, or address, of this machine that the nodes can reach.
    log_directory : str or None
        Where the batch system puts the output of the jobs.
    """

    queue: str | None = None
    account: str | None = None
    cores: int = 4
    memory_gb: float = 16.0
    walltime: str = "04:00:00"
    gpus: int = 0
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    host: str | None = None
    log_directory: str | None = None


def require_dask(*, jobqueue: bool = False) -> None:
    """Raise UsageError unless the extra is installed."""
    try:
        import distributed  # noqa: F401

        if jobqueue:
            import dask_jobqueue  # noqa: F401
    except ImportError:
        raise UsageError(
            "the dask executor needs packages that are not installed",
            hint="pip install 'medpipe[dask]'",
        ) from None


@contextlib.contextmanager
def connected(scheduler: str, workers: int, options: JobOptions) -> Iterator[Client]:
    """Give a client of the scheduler, and shut down what was started for it.

    Parameters
    ----------
    scheduler : str
        ``"local"``, ``"slurm"``, ``"pbs"``, or an address such as ``"tcp://head:8786"``.
    workers : int
        Dask workers to start; not used with an address.
    options : JobOptions
        For SLURM and PBS.

    Raises
    ------
    UsageError
        If the scheduler cannot be reached.
    """
    import dask
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if "://" in scheduler:
            target: Any = scheduler
        else:
            _require_submission(scheduler)
            # A worker that dies must not take its case to the next worker by itself:
            # the executor decides about that.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            if scheduler == "local":
                target = stack.enter_context(_local_cluster(workers))
            else:
                target = stack.enter_context(job_cluster(scheduler, options))
                # Not `scale`: jobs that reach their wall time are then submitted anew.
                target.adapt(minimum_jobs=workers, maximum_jobs=workers, interval="10s")
        try:
            client = Client(target, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError):
            raise UsageError(
                "the Dask scheduler does not answer",
                expected="an address such as tcp://head:8786",
                hint="start it with `dask scheduler`, and check address and port",
            ) from None
        yield stack.enter_context(client)


def _require_submission(scheduler: str) -> None:
    """Refuse to wait for jobs that can never be submitted."""
    command = {"slurm": "sbatch", "pbs": "qsub"}.get(scheduler)
    if command is not None and shutil.which(command) is None:
        raise UsageError(
            f"jobs cannot be submitted: there is no {command} on this machine",
            hint="run this on a login node, or give the address of a scheduler",
        )


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=max(1, available_cores() // workers),
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # any free port: another run may have the usual one
        memory_limit=0,  # images are in the children, which have a limit of their own
        silence_logs=logging.CRITICAL,
    )


def job_cluster(kind: str, options: JobOptions) -> Any:
    """Return a dask-jobqueue cluster without jobs.

    Parameters
    ----------
    kind : {"slurm", "pbs"}
    options : JobOptions
    """
    from dask_jobqueue import PBSCluster, SLURMCluster

    common: dict[str, Any] = {
        "n_workers": 0,
        "processes": 1,
        "cores": options.cores,
        "memory": f"{options.memory_gb:g}GB",
        "queue": options.queue,
        "account": options.account,
        "walltime": options.walltime,
        "job_name": "medpipe",
        "job_script_prologue": list(options.prologue),
        "interface": options.interface,
        "log_directory": options.log_directory,
        "worker_extra_args": ["--resources", "GPU=1"] if options.gpus else [],
        "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    if options.host:
        common["scheduler_options"]["host"] = options.host
    directives = list(options.directives)
    if kind == "slurm":
        if options.gpus:
            directives.insert(0, f"--gres=gpu:{options.gpus}")
        return SLURMCluster(job_extra_directives=directives, **common)
    if options.gpus:
        memory = f"{math.ceil(options.memory_gb * 1e9 / 2**20)}MB"
        common["resource_spec"] = (
            f"select=1:ncpus={options.cores}:mem={memory}:ngpus={options.gpus}"
        )
    return PBSCluster(job_extra_directives=directives, **common)
