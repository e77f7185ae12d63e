"""How does cost grow? Time and memory of a step with parameters, layers and groups, and of training with seeds, on one thread.

    python benchmarks/growth.py                     # all, about four minutes; writes benchmarks/growth.json and growth.md
    python benchmarks/growth.py --smoke --out FILE  # a tiny size that shows that it runs; writes FILE.json and FILE.md
"""
from __future__ import annotations

import itertools
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from throughput import cut # first of all: it sets the number of threads

import torch
from step import (DECAY, FOREACH, OURS, SIDES, Shapes, floats_alone, measure_and_keep, milliseconds, parameters,
                  returned_memory, stepping)
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from dals.lab.seeds import fit_seeds
from dals.lab.tasks import available, get_task
from dals.lab.training import device_name, fit, peak_memory, versions

CPU = torch.device("cpu")
MOMENTUM, ONE = "SGD with momentum, foreach", "DALS, one group"
STRATEGY = "Fixed SGD" # whose seeds are trained at once: the simplest that moves every weight by itself
EPOCHS = {"synthetic": 4, "synthetic-released": 1} # of that training
TEXTS = ("trec6+minilm-l6", "rte+minilm-l6", "imdb+minilm-l6") # whose tokens are counted
SAMPLE = 2000 # texts of a split that are counted at most


def chain(layers: int, total: int) -> nn.Module:
    "So many equal square layers, a weight and a bias each, of about so many parameters"
    width = max(1, round((total / layers + 0.25) ** 0.5 - 0.5)) # of width (width + 1) layers = total
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def merged(groups: list[dict], count: int) -> list[dict]:
    "Neighbouring groups made one, until so many are left"
    size = len(groups) // count
    return [{**groups[i], "params": parameters(groups[i:i + size])} for i in range(0, len(groups), size)]


# as in step.py, but with the groups that they are given
GROUPED: dict[str, Callable[[list[dict]], Optimizer]] = {
    OURS: SIDES[OURS],
    FOREACH: lambda groups: AdamW([{**group} for group in groups], lr=1e-5, weight_decay=DECAY, foreach=True),
    MOMENTUM: lambda groups: SGD([{**group} for group in groups], lr=1e-5, momentum=0.9, weight_decay=DECAY, foreach=True)}


@dataclass(frozen=True)
class Point:
    "One size, and who makes a step there"
    series: str # what grows: parameters, layers or groups
    layers: int
    total: int # parameters, about
    groups: dict[str, int] # optimizer -> into how many groups the layers go

    @property
    def shapes(self) -> Shapes:
        return Shapes(f"{self.layers} layers", partial(chain, self.layers, self.total), 0)


@dataclass(frozen=True)
class Size:
    "How much is measured"
    totals: tuple[int, ...] = (10**4, 3 * 10**4, 10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7)
    layers: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    groups: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    fixed: int = 10**6 # parameters where layers or groups grow
    whole: tuple[int, ...] = (10**7, 3 * 10**7) # parameters at which the operating system counts memory, too
    seeds: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 7 # of the steps
    seeds_rounds: int = 3
    budget: float = 10.0 # milliseconds that one timing takes, about

    def points(self) -> list[Point]:
        alone, most = {FOREACH: 1, MOMENTUM: 1}, max(self.groups)
        return [*(Point("parameters", 8, total, {OURS: 8, **alone}) for total in self.totals),
                *(Point("layers", n, self.fixed, {OURS: n, ONE: 1, **alone}) for n in self.layers),
                *(Point("groups", most, self.fixed, dict.fromkeys(GROUPED, n)) for n in self.groups)]


SMOKE = Size((10**4, 10**5), (2, 4), (1, 4), 10**4, (10**5,), (1, 2), 2, 1, 1.0)


def step_times(points: Iterable[Point], rounds: int, budget: float) -> list[dict[str, Any]]:
    "Every optimizer at every size once in each round, with memory that is new: where it lies is a matter of luck"
    rows: dict[tuple, dict[str, Any]] = {}
    for _, point in itertools.product(range(rounds), points):
        groups = point.shapes.groups(CPU)
        params = parameters(groups)
        for name, count in point.groups.items():
            step = stepping(GROUPED[OURS if name == ONE else name](merged(groups, count)), CPU)
            step() # allocates the state
            steps = max(2, min(500, round(budget / milliseconds(step, 1, CPU))))
            row = rows.setdefault((point.series, point.layers, point.total, name, count), {
                "series": point.series, "optimizer": name, "layers": point.layers, "tensors": len(params), "groups": count,
                "parameters": sum(p.numel() for p in params), "milliseconds": []})
            row["milliseconds"].append(milliseconds(step, steps, CPU))
    return list(rows.values())


def allocated(work: Callable[[], None]) -> int:
    "Bytes that torch held at the worst moment of the work, beyond what it held before"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def step_memory(points: Iterable[Point], whole: tuple[int, ...]) -> list[dict[str, Any]]:
    "Floats per parameter beyond parameters and gradients: kept between steps, and held beside that at the worst moment of a step"
    rows = []
    for point in points:
        groups = point.shapes.groups(CPU)
        count = sum(p.numel() for p in parameters(groups))
        for name, build in GROUPED.items():
            optimizer = build(merged(groups, point.groups[name]))
            step = stepping(optimizer, CPU)
            step()
            step()
            kept = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))
            row = {"optimizer": name, "parameters": count}
            rows.append({**row, "counted": "torch", "kept": kept / 4 / count, "extra": allocated(step) / 4 / count})
            if point.total in whole:
                with returned_memory():
                    kept, extra = floats_alone(name, point.shapes)
                rows.append({**row, "counted": "operating system", "kept": kept, "extra": extra})
    return rows


def seeds_memory(name: str, counts: tuple[int, ...], smoke: bool) -> list[int | None]:
    "In a fresh process: MiB beyond what is held once everything was loaded, for each number of seeds, the small ones first"
    task = cut(name, 1, smoke)
    fit_seeds(cut(name, 1, True), STRATEGY, [0]) # loads what is loaded late
    before = peak_memory(CPU, start=True)
    peaks = [fit_seeds(task, STRATEGY, range(count))[0].peak_memory for count in counts]
    return [None if peak is None or before is None else peak - before for peak in peaks]


def seeds_times(counts: tuple[int, ...], rounds: int, smoke: bool) -> list[dict[str, Any]]:
    "Seconds of one epoch of all seeds, trained at once, and of a single run of `fit`"
    rows: list[dict[str, Any]] = []
    for name, epochs in EPOCHS.items():
        task = cut(name, epochs, smoke)
        fit_seeds(cut(name, 1, True), STRATEGY, [0])
        with returned_memory(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks = pool.submit(seeds_memory, name, counts, smoke).result()
        mine: list[dict[str, Any]] = [
            {"task": name, "strategy": STRATEGY, "seeds": count, "together": together, "extra_mib": peak, "seconds": []}
            for count, peak, together in [*zip(counts, peaks, [True] * len(counts), strict=True), (1, None, False)]]
        for _ in range(rounds):
            for row in mine:
                seconds = (row["seeds"] * fit_seeds(task, STRATEGY, range(row["seeds"]))[0].seconds if row["together"]
                           else fit(task, STRATEGY, seed=0).seconds)
                row["seconds"].append(seconds / epochs)
        rows += mine
    return rows


def tokens(smoke: bool) -> list[dict[str, Any]]:
    "Tokens of a text in the batches of profile `paper`, padding included: what an encoder with this vocabulary works through"
    rows = []
    for name in TEXTS[:1] if smoke else TEXTS:
        if problem := available(name):
            print(f"{name} has no row: {problem}", flush=True)
            continue
        task = get_task(name)
        budget, most = task.budget("paper"), 64 if smoke else SAMPLE
        data = task.read(replace(budget, train_examples=min(most, budget.train_examples), test_examples=min(most, budget.test_examples)))
        torch.manual_seed(0)
        order = data.train.take(task.order(data.train, budget.batch_size))
        padded = sum(inputs[0].numel() for inputs, _ in order.batches(budget.batch_size))
        rows.append({"task": task.base, "counted": len(order), "padded": padded / len(order),
                     "train": data.train.lengths.float().mean().item(), "test": data.test.lengths.float().mean().item()})
    return rows


def measured(smoke: bool) -> dict[str, Any]:
    "Everything, as plain JSON values"
    size = SMOKE if smoke else Size()
    points = size.points()
    found: dict[str, Any] = {"command": "python benchmarks/growth.py" + " --smoke" * smoke, "device": device_name(CPU),
                             "system": platform.system(), "versions": versions(), "threads": torch.get_num_threads()}
    for name, work in {"steps": partial(step_times, points, size.rounds, size.budget),
                       "memory": partial(step_memory, [point for point in points if point.series == "parameters"], size.whole),
                       "seeds": partial(seeds_times, size.seeds, size.seeds_rounds, smoke),
                       "tokens": partial(tokens, smoke)}.items():
        print(f"{name} ...", flush=True)
        found[name] = work()
    return found


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(found: dict[str, Any]) -> str:
    "The page as Markdown"
    lines = ["# How cost grows", ""]
    if "--smoke" in found["command"]:
        lines += ["These numbers mean nothing: a tiny size that shows that the benchmark runs.", ""]
    lines.append(f"""`{found["command"]}` on {found["device"]}, {found["system"]}, torch {found["versions"]["torch"]}, \
{found["threads"]} thread. The raw numbers are in `growth.json`; `dals reproduce --only growth` draws them.

## A step

Milliseconds: the median over rounds, each in new memory, in brackets the lowest and the highest. Layers are square, a weight and a bias
each. DALS has a group for each layer, AdamW and SGD have one, except where it says otherwise and where groups grow.

| grows | optimizer | parameters | layers | groups | ms per step |
| --- | --- | --- | --- | --- | --- |""")
    lines += [f"| {row['series']} | {row['optimizer']} | {row['parameters']:,} | {row['layers']} | {row['groups']} "
              f"| {spread(row['milliseconds'], 3)} |" for row in found["steps"]]
    lines.append("""
## Memory of a step

Floats per parameter beyond parameters and gradients: kept from one step to the next, and held beside that at the worst moment of a step.
The operating system counts in a process of its own, and also what libraries take without asking torch.

| optimizer | parameters | counted by | kept | during a step |
| --- | --- | --- | --- | --- |""")
    lines += [f"| {row['optimizer']} | {row['parameters']:,} | {row['counted']} | {row['kept']:.2f} | {row['extra']:.2f} |"
              for row in found["memory"]]
    lines.append(f"""
## Seeds trained at once

Seconds of one epoch of {STRATEGY} for all seeds together (median, lowest, highest), and per seed. Memory is MiB beyond what a process holds
that has loaded everything.

| task | seeds | how | seconds per epoch | per seed | MiB |
| --- | --- | --- | --- | --- | --- |""")
    lines += [f"| {row['task']} | {row['seeds']} | {'fit_seeds' if row['together'] else 'fit'} | {spread(row['seconds'], 3)} "
              f"| {statistics.median(row['seconds']) / row['seeds']:.3f} | {'' if row['extra_mib'] is None else row['extra_mib']} |"
              for row in found["seeds"]]
    if found["tokens"]:
        lines.append("""
## Tokens of a text

In the word pieces that DistilBERT and MiniLM share, at most as many as profile `paper` allows: the mean of a text, and in training with the
padding of its batch.

| task | texts counted | train | train, padded | test |
| --- | --- | --- | --- | --- |""")
        lines += [f"| {row['task']} | {row['counted']:,} | {row['train']:.1f} | {row['padded']:.1f} | {row['test']:.1f} |"
                  for row in found["tokens"]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    measure_and_keep(__file__, "Measure how the cost of a step and of training grows.", measured, table, arguments)


if __name__ == "__main__":
    main()
