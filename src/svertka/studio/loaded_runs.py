"""Runs in memory that answer requests: loaded when first asked for, and again when their weights change."""

import asyncio
from collections import OrderedDict

import torch
from starlette.concurrency import run_in_threadpool

from svertka.run import Run
from svertka.serving.prediction_service import PredictionService
from svertka.serving.served_model import ServedModel
from svertka.studio.run_list import RunList

MAX_LOADED = 2  # runs; the one unused longest is dropped


class LoadedRuns:
    """The runs that `service` answers for.

    Args:
        runs: All runs.
        service: What answers.
        device: Where networks compute.
    """

    def __init__(self, runs: RunList, service: PredictionService, device: torch.device) -> None:
        self._runs, self._service, self._device = runs, service, device
        self._loaded: OrderedDict[str, tuple[str, str]] = OrderedDict()  # name → key in the service, and stamp
        self._lock = asyncio.Lock()

    async def load(self, name: str) -> str:
        """Load the run `name`, unless it is loaded, and return its key in the service.

        Raises:
            RunError: There is no such run, or it is damaged. UsageError: Its network is built by untrusted code.
        """
        run = await run_in_threadpool(self._runs.run, name)
        stamp = _stamp(run)
        async with self._lock:
            key, known = self._loaded.get(name, ("", ""))
            if known == stamp:
                self._loaded.move_to_end(name)
                return key
            if key:
                del self._loaded[name]
                await self._service.remove(key)
            served = await run_in_threadpool(ServedModel, run.folder, self._device, list(self._service.runs))
            await run_in_threadpool(served.warm_up)
            while len(self._loaded) >= MAX_LOADED:
                await self._service.remove(self._loaded.popitem(last=False)[1][0])
            self._service.add(served)
            self._loaded[name] = served.key, stamp
            return served.key


def _stamp(run: Run) -> str:
    """Return what changes whenever the weights of a run do."""
    stamps = []
    for file in (run.config, run.weights, run.folder / "optimized.safetensors"):
        try:
            stamps.append(str(file.stat().st_mtime_ns))
        except OSError:
            stamps.append("")
    return "-".join([str(run.folder), *stamps])
