"""The GPU as the benchmark uses it: what a step takes on it, what it launches, graphs, memory."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cases import Shapes
from contestants import WARM_UP_STEPS, Make, Step

DEVICE = "cuda"
CLOCKS = ("device", "host", "whole")

WARM_SECONDS = 0.003  # of steps before those that are timed
AHEAD_SECONDS = 1e-4  # for which the device sleeps at least, while the host queues what is timed
LEAST_FLUSH = 1 << 28  # bytes


class Stopwatch:
    """Times steps. Each meets cold caches, and a device that has nothing else to do."""

    def __init__(self) -> None:
        largest = max(4 * torch.cuda.get_device_properties(DEVICE).L2_cache_size, LEAST_FLUSH)
        self._flush = torch.empty(largest, dtype=torch.int8, device=DEVICE)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cycles_per_second = 1.0
        self._cycles_per_second = 1e7 / self._device_seconds(lambda: torch.cuda._sleep(10_000_000), 0.0)

    def warm_up(self, seconds: float) -> None:
        """Keep the device busy until its clocks are up."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self._flush.zero_()
            torch.cuda.synchronize()

    def take_turn(self, step: Step) -> dict[str, float]:
        """Return the seconds of a step by clock.

        host: until the step returns; whole: until the device is done with it; device: what it takes there when all of
        it is queued already, so that the device never waits for the host.
        """
        began = time.perf_counter()
        while True:
            step()
            torch.cuda.synchronize()
            if time.perf_counter() - began >= WARM_SECONDS:
                break
        self._flush.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        step()
        returned = time.perf_counter_ns()
        torch.cuda.synchronize()
        done = time.perf_counter_ns()
        host, whole = (returned - start) * 1e-9, (done - start) * 1e-9
        return {"device": self._device_seconds(step, 2 * host), "host": host, "whole": whole}

    def _device_seconds(self, step: Step, ahead: float) -> float:
        ahead += AHEAD_SECONDS
        for _ in range(3):
            self._flush.zero_()
            torch.cuda._sleep(int(ahead * self._cycles_per_second))
            self._start.record()
            step()
            self._end.record()
            was_ahead = not self._start.query()
            torch.cuda.synchronize()
            if was_ahead:
                break
            ahead *= 4  # it slept too short, or the step waits for the device: then this is what it takes
        return float(self._start.elapsed_time(self._end)) * 1e-3


def captured(make: Make) -> Make:
    """Return what makes the replay of a step that is captured into a CUDA graph."""

    def make_replay(shapes: Shapes, dtype: str, device: str = DEVICE) -> Step:
        step = make(shapes, dtype, device)
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                step()
        current.wait_stream(side)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.step = step  # keeps the tensors alive as long as the graph
        replay: Step = graph.replay
        return replay

    return make_replay


def launches(step: Step) -> dict[str, int]:
    """Return how often a step launches a kernel, copies, fills and waits, as PyTorch's profiler sees it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler tells of its own ways
        for _ in range(2):  # its first use is not complete
            with torch.profiler.profile(activities=activities) as profile:
                step()
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = Counter(event.get("cat") for event in events if event.get("ph") == "X")
    waits = ("cudaStreamSynchronize", "cudaMemcpy")  # cudaDeviceSynchronize is ours, above
    return {
        "kernels": kinds["kernel"],
        "copies": kinds["gpu_memcpy"],
        "fills": kinds["gpu_memset"],
        "waits": sum(event.get("name") in waits for event in events),
    }


def free_bytes() -> int:
    """Return how much memory of the device can be taken."""
    return int(torch.cuda.mem_get_info()[0])


def peak_extra_bytes(step: Step) -> int:
    """Return what a step takes from PyTorch's CUDA allocator at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


@contextlib.contextmanager
def memory_given_back() -> Iterator[None]:
    """Give the device's memory back at the end, which allocators would keep."""
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
