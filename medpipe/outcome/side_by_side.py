"""Networks of a cross-validation trained at the same time, each in a process of its own.

The networks of the folds know nothing of each other: on a machine with several GPUs each takes
the next card that is free, on CPUs they share the cores. What a process trained lies in the
folder of networks, as if it had been trained alone; who asked then finds it there.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from medpipe.device import choose_device
from medpipe.errors import ResourceError, UsageError
from medpipe.train.settings import Progress

__all__ = ["devices_of", "train_side_by_side"]

J = TypeVar("J")
_LOOK_EVERY_S = 0.5


def devices_of(device: str, at_once: int) -> list[str]:
    """Return the device of each of the processes.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Without a number the processes take the CUDA devices in turn, where there are any.
    at_once : int
        How many processes.

    Raises
    ------
    UsageError
        If there is no such device, or `at_once` is below 1.
    """
    if at_once < 1:
        raise UsageError(
            "no such number of networks at once", expected="1 or more", got=str(at_once)
        )
    first = choose_device(device)
    if first.type != "cuda" or first.index is not None:
        return [str(first)] * at_once
    return [f"cuda:{k % torch.cuda.device_count()}" for k in range(at_once)]


def train_side_by_side(
    train: Callable[[J, str, Callable[[str, Progress], None]], None],
    jobs: Sequence[J],
    devices: Sequence[str],
    progress: Callable[[str, Progress], None] | None = None,
) -> None:
    """Call ``train(job, device, progress)`` for all jobs, as many at once as there are devices.

    Parameters
    ----------
    train : callable
        Goes to the processes by pickle; what it makes it must store itself.
    jobs : sequence
        Begun in their order.
    devices : sequence of str
        One for each process. Processes on the CPU share the threads of this one.
    progress : callable, optional
        Told in this process what `train` tells.

    Raises
    ------
    ResourceError
        If a process ends without a word, for want of memory as a rule.
    MedpipeError
        The first that a job raised; jobs that have not begun are left.
    """
    context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(devices))
    with context.Manager() as manager:
        said, free = manager.Queue(), manager.Queue()
        for device in devices:
            free.put(device)
        with ProcessPoolExecutor(
            len(devices), mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool:
            running = {pool.submit(_one, train, job, free, said) for job in jobs}
            try:
                while running:
                    ended, running = wait(running, _LOOK_EVERY_S, FIRST_COMPLETED)
                    _pass_on(said, progress)
                    _raise_of(ended)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _one(train: Any, job: Any, free: Any, said: Any) -> None:
    """Do a job on a device that is free."""
    device = free.get()
    try:
        train(job, device, lambda name, at: said.put((name, at)))
    finally:
        free.put(device)


def _pass_on(said: Any, progress: Callable[[str, Progress], None] | None) -> None:
    while True:
        try:
            name, at = said.get_nowait()
        except queue.Empty:
            return
        if progress is not None:
            progress(name, at)


def _raise_of(ended: set[Future[None]]) -> None:
    for future in ended:
        try:
            future.result()
        except BrokenProcessPool:
            raise ResourceError(
                "a process that trained a network ended without a word",
                expected="memory for all networks that are trained at once",
                hint="train fewer at once; what was finished is not trained again",
            ) from None
