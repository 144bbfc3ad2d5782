"""Where parts of a large prediction are computed: in this process, by Ray Data or by Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

from fatai.errors import OptionError
from fatai.threads import available_cores

__all__ = ["ENGINES"]

Work: TypeAlias = Callable[[Mapping[str, Any]], int]
"""Predicts and writes one part, and returns its number; picklable."""


def run_locally(work: Work, parts: Iterable[Mapping[str, Any]], n_parts: int, n_workers: int | None) -> Iterator[int]:
    """Compute one part after the other in this process and yield their numbers."""
    yield from map(work, parts)


def run_with_ray(work: Work, parts: Iterable[Mapping[str, Any]], n_parts: int, n_workers: int | None) -> Iterator[int]:
    """Compute parts by actors of Ray Data and yield their numbers as they end; a part whose actor dies is repeated.

    Ray's own settings hold: RAY_ADDRESS names a cluster. Where the cluster has GPUs, every actor gets one.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise OptionError('the engine ray needs Ray; install it with: pip install "fatai[ray]"') from None
    if n_parts == 0:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        is_local = not os.environ.get("RAY_ADDRESS")
        ray.init(log_to_driver=False, include_dashboard=False, num_cpus=n_workers if is_local else None)
    try:
        yield from _ray_numbers(ray, work, parts, n_parts, n_workers)
    finally:
        if is_ours:
            ray.shutdown()


def _ray_numbers(
    ray: Any, work: Work, parts: Iterable[Mapping[str, Any]], n_parts: int, n_workers: int | None
) -> Iterator[int]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    n_gpus = int(ray.cluster_resources().get("GPU", 0))
    n_actors = min(n_parts, n_workers or n_gpus or int(ray.cluster_resources().get("CPU", 1)))
    rows = [{**part, "fname": list(part["fname"]), "path": list(part["path"])} for part in parts]
    numbers = ray.data.from_items(rows, override_num_blocks=n_parts).map(
        _RayWorker, fn_constructor_args=(work,), num_gpus=1 if n_gpus else 0, num_cpus=0 if n_gpus else 1,
        compute=ray.data.ActorPoolStrategy(size=n_actors),
    )
    for row in numbers.iter_rows():
        yield row["number"]


class _RayWorker:
    """An actor, which keeps its networks from part to part."""

    def __init__(self, work: Work):
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": self.work(row)}


def run_with_dask(work: Work, parts: Iterable[Mapping[str, Any]], n_parts: int, n_workers: int | None) -> Iterator[int]:
    """Compute parts as tasks of Dask and yield their numbers as they end; a part whose worker dies is repeated.

    Dask's own settings hold: DASK_SCHEDULER_ADDRESS names a cluster.
    """
    try:
        import dask
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        raise OptionError('the engine dask needs Dask; install it with: pip install "fatai[dask]"') from None
    address = dask.config.get("scheduler-address", None)
    n = n_workers or available_cores()
    with ExitStack() as stack:
        cluster = address or stack.enter_context(
            LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None)
        )
        client = stack.enter_context(Client(cluster))
        futures = [client.submit(work, part, pure=False) for part in parts]
        for future in as_completed(futures):
            yield future.result()


ENGINES: dict[str, Callable[[Work, Iterable[Mapping[str, Any]], int, int | None], Iterator[int]]] = {
    "local": run_locally, "ray": run_with_ray, "dask": run_with_dask,
}
"""Functions that compute parts and yield their numbers, by name."""
