"""Runs a function in some processes that share a gloo process group on the CPU, and brings back what each returned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

AVAILABLE = dist.is_available() and dist.is_gloo_available() and "forkserver" in multiprocessing.get_all_start_methods()
LIMIT_S = 60  # for one call; a collective that the others never join fails sooner, with a traceback
COLLECTIVE_LIMIT_S = 20
# The server imports these once, and every process is a fork of it: a world of four starts in 0.2 s rather than 10 s.
IMPORTED_ONCE = [
    "pytest",
    "radam.torch",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
]


def in_processes(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what work(*args) returned on each rank. What one raises fails the caller, and so does a hang or a crash.

    Work must be a function of a module, and what goes in and out must pickle.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        pipes, processes = [], []
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                process = context.Process(target=_serve, args=(rank, size, store, theirs, work, args), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()  # so that the end of the process is the end of the pipe
            answers = _answers(pipes)
            for pipe in pipes:
                pipe.close()  # nobody waits for anybody any more: they may leave
            for process in processes:
                process.join(LIMIT_S)
                assert process.exitcode == 0, f"a process answered and then ended with exit code {process.exitcode}"
            return answers
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.kill()
                process.join()
                process.close()


def _answers(pipes: list[Connection]) -> list[Any]:
    """Return the answer of each rank; raise the first failure to arrive, since the others often only follow from it."""
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(answers) < len(pipes):
        missing = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
        ready = wait(missing, deadline - time.monotonic())
        ranks = [pipes.index(pipe) for pipe in ready or missing]
        assert ready, f"no answer from ranks {ranks} within {LIMIT_S} s"
        for rank in ranks:
            try:
                succeeded, answer = pipes[rank].recv()
            except EOFError:
                raise AssertionError(f"rank {rank} ended without an answer") from None
            assert succeeded, f"on rank {rank} of {len(pipes)}:\n{answer}"
            answers[rank] = answer
    return [answers[rank] for rank in range(len(pipes))]


def _serve(rank: int, size: int, store: str, pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Be one rank: join the group, work, answer, and stay until all have answered."""
    torch.set_num_threads(1)
    # The loopback device is always there; finding another one would depend on the name of the machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=COLLECTIVE_LIMIT_S),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = (True, work(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    with contextlib.suppress(OSError, EOFError):  # the other end is closed once all have answered, or one has failed
        pipe.send(answer)
        pipe.recv()
    dist.destroy_process_group()
