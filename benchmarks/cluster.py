"""What does a cluster add to its runs? Start, dispatch, one store for all, stragglers; on this machine, in a few minutes.

    python benchmarks/cluster.py                     # writes benchmarks/cluster.json and cluster.md
    python benchmarks/cluster.py --smoke --out FILE  # a tiny size that shows that it runs; writes FILE.json and FILE.md

Dask's workers stand for GPUs: a run waits for as long as it is told, as a process waits for its GPU, and its record goes the way of
every record, into one store for all. So the runs need no processor, and there may be more workers than cores; what takes time is what a
sweep adds. They fit into the memory, too, for they are copies of one process that has imported what a run needs.
"""
from __future__ import annotations

import heapq
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask
import distributed
import torch
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context
from step import measure_and_keep

from dals.lab.records import Config, Run
from dals.lab.store import Store
from dals.lab.sweep import run_one, sweep
from dals.lab.training import device_name, versions


@dataclass(frozen=True)
class Size:
    "How much is measured"
    workers: tuple[int, ...] = (1, 8, 32) # 64 keep two cores busy with themselves
    each: int = 10 # runs of a worker, on average
    seconds: tuple[float, ...] = (0.0, 0.5, 2.0) # how long a run waits
    rounds: int = 3 # of the runs that wait for nothing


SMOKE = Size((2,), 3, (0.0, 0.1), 1)
SLOW = 8 # times as long as the others takes every tenth of the stragglers' runs


def waited(config: Config, template: Run, seconds: Sequence[float]) -> Run:
    "A run that waits, and then has the record of another seed"
    time.sleep(seconds[config.seed])
    return replace(template, seed=config.seed)


def nothing(number: int) -> int:
    return number


def ready() -> int:
    "A worker that has imported what a run needs"
    import dals.lab.sweep
    return dals.lab.sweep.torch.get_num_threads() # imported now


@contextmanager
def cluster(workers: int, births: str = "forkserver") -> Iterator[tuple[Client, float]]:
    "That many workers, one thread each, and the seconds until all of them could begin"
    with dask.config.set({"distributed.worker.multiprocessing-method": births}):
        if births == "forkserver":
            get_mp_context().set_forkserver_preload(["distributed", "torch", "dals.lab.sweep"])
        start = time.perf_counter()
        with LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, memory_limit=0) as local, \
                Client(local, timeout=300) as client:
            client.wait_for_workers(workers, timeout=600)
            client.run(ready)
            yield client, time.perf_counter() - start


def swept(client: Client, template: Run, seconds: Sequence[float]) -> float:
    "Seconds of a sweep of runs that wait so long, into a new store"
    configs = [Config(template.task, template.strategy, seed, template.protocol, template.profile) for seed in range(len(seconds))]
    with tempfile.TemporaryDirectory() as folder, client.get_executor() as executor:
        store = Store(os.path.join(folder, "published"), os.path.join(folder, "local"))
        start = time.perf_counter()
        found = sweep(configs, store, progress=None, executor=executor, run=partial(waited, template=template, seconds=seconds))
        took = time.perf_counter() - start
        if len(found.finished) != len(configs) or len(store.runs()) != len(configs):
            raise SystemExit(f"{len(found.finished)} of {len(configs)} runs have a record: {found.failed}")
        return took


def dispatched(client: Client, count: int) -> float:
    "Seconds of as many calls that do nothing"
    with client.get_executor() as executor:
        start = time.perf_counter()
        for future in [executor.submit(nothing, number) for number in range(count)]:
            future.result()
        return time.perf_counter() - start


def list_schedule(jobs: Sequence[float], workers: int) -> float:
    "When the last run ends if each goes to the worker that is free first"
    free = [0.0] * workers
    for job in jobs:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def measured(smoke: bool) -> dict[str, Any]:
    "Everything, as plain JSON values"
    size = SMOKE if smoke else Size()
    template = run_one(Config("synthetic", "Fixed SGD", 0, "paper", "smoke"))
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"command": "python benchmarks/cluster.py" + " --smoke" * smoke, "device": device_name(torch.device("cpu")),
                             "cores": os.cpu_count(), "system": platform.system(), "rows": rows,
                             "versions": {**versions(), "distributed": distributed.__version__}}
    with cluster(1, "spawn") as (_, found["start"]):
        pass
    for workers in size.workers:
        with cluster(workers) as (client, _):
            count = size.each * workers
            swept(client, template, [0.0] * workers) # every worker has been at work once
            row: dict[str, Any] = {"workers": workers, "runs": count, "sweeps": [],
                                   "calls": [dispatched(client, count) for _ in range(size.rounds)]}
            for seconds in size.seconds:
                row["sweeps"].append({"seconds": seconds, "walls": [
                    swept(client, template, [seconds] * count) for _ in range(1 if seconds else size.rounds)]})
            unequal = [max(size.seconds) / (1 if seed % 10 == 0 else SLOW) for seed in range(count)]
            row["stragglers"] = {"seconds": sum(unequal) / count, "longest": max(unequal), "orders": {
                name: {"wall": swept(client, template, jobs), "list": list_schedule(jobs, workers)} for name, jobs in
                {"as they come": unequal, "longest first": sorted(unequal, reverse=True), "longest last": sorted(unequal)}.items()}}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return found


def per_run(row: dict[str, Any], walls: Sequence[float]) -> float:
    "Milliseconds of a run that waits for nothing"
    return 1000 * statistics.median(walls) / row["runs"]


def table(found: dict[str, Any]) -> str:
    "The page as Markdown"
    lines = ["# What a cluster adds to its runs", ""]
    if "--smoke" in found["command"]:
        lines += ["These numbers mean nothing: a tiny size that shows that the benchmark runs.", ""]
    lines.append(f"""`{found["command"]}` on {found["device"]}, {found["cores"]} cores, {found["system"]}, torch \
{found["versions"]["torch"]}, distributed {found["versions"]["distributed"]}. The raw numbers are in `cluster.json`.

A worker of dask stands for a GPU, on the loopback address, with one thread. A run waits for as long as it is told and needs no processor;
its record is claimed, written and found as every record is, and all workers share one store. So what a sweep takes beyond the waiting is
what dispatch, claims and store cost, and here all workers share these cores for it: on a cluster each has its own.

A worker that starts by itself has imported what a run needs after {found["start"]:.1f} s. Those below are copies of one that has.

## Runs that wait for nothing

Milliseconds of the sweep for each run, and of as many calls without claim and record for each.

| workers | runs | a call that does nothing | a run, with claim and record | runs a second |
| --- | --- | --- | --- | --- |""")
    for row in found["rows"]:
        call, run = per_run(row, row["calls"]), per_run(row, row["sweeps"][0]["walls"])
        lines.append(f"| {row['workers']} | {row['runs']:,} | {call:.2f} | {run:.2f} | {1000 / run:.0f} |")
    lines.append("""
## Runs of one length

The share of the workers' time in which they wait as they are told.

| workers | runs | seconds of a run | seconds of the sweep | at work |
| --- | --- | --- | --- | --- |""")
    for row in found["rows"]:
        for some in row["sweeps"][1:]:
            wall, ideal = some["walls"][0], some["seconds"] * row["runs"] / row["workers"]
            lines.append(f"| {row['workers']} | {row['runs']:,} | {some['seconds']:g} | {wall:.2f} | {ideal / wall:.0%} |")
    lines.append(f"""
## Stragglers

Every tenth run takes {SLOW} times as long as the others. Beside the sweep stands what a list would need that gives each run to the worker
that is free first, in the same order, in no time.

| workers | order | seconds of the sweep | of the list | longest run |
| --- | --- | --- | --- | --- |""")
    for row in found["rows"]:
        for order, times in row["stragglers"]["orders"].items():
            lines.append(f"| {row['workers']} | {order} | {times['wall']:.2f} | {times['list']:.2f} | {row['stragglers']['longest']:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    measure_and_keep(__file__, "Measure what a cluster adds to its runs.", measured, table, arguments)


if __name__ == "__main__":
    main()
