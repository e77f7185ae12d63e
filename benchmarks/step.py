"""What does a step cost? Time and memory of our optimizers beside those of others, in turn, on parameters of real shapes.

    python benchmarks/step.py                       # all, under ten minutes; writes benchmarks/step.md
    python benchmarks/step.py --device cuda         # the same on a GPU; writes benchmarks/step-cuda.md
    python benchmarks/step.py --only mlp memory     # some of it, printed
    python benchmarks/step.py --plain               # without fused=True, which needs a compiler and a minute to compile
"""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import itertools
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from dals import DALS, layer_groups
from dals.lab.tasks import get_task
from dals.lab.training import device_name, peak_memory
from dals.optim.adaptive import AdaBound
from dals.optim.joint import Grokfast, Lion, Lookahead
from dals.optim.layerwise import LARS

TOTAL = 10**6 # updates in the run that DALS is told of: more than are made here
DECAY = 1e-4 # weight decay of every optimizer


def mlp() -> nn.Module:
    return get_task("synthetic-released").model()


def convnet() -> nn.Module:
    return get_task("cifar10").model()


def minilm() -> nn.Module:
    from transformers import BertConfig, BertModel
    return BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
                     add_pooling_layer=False)


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    return DistilBertForSequenceClassification(DistilBertConfig(num_labels=2))


@dataclass(frozen=True)
class Shapes:
    "Where the parameters' shapes come from"
    what: str
    build: Callable[[], nn.Module]
    steps: int # timed at a time

    def groups(self, place: torch.device) -> list[dict]:
        "The layer groups of the model with random parameters and gradients, about as long as in training"
        with torch.device("meta"):
            groups = layer_groups(self.build())
        torch.manual_seed(0)
        for group in groups:
            group["params"] = [nn.Parameter(0.02 * torch.randn_like(p, device=place)) for p in group["params"]]
            for p in group["params"]:
                p.grad = 0.02 * torch.randn_like(p)
        return groups


MODELS = {"mlp": Shapes("MLP of synthetic-released", mlp, 200), "convnet": Shapes("ConvNet of cifar10", convnet, 50),
          "minilm": Shapes("MiniLM-L6", minilm, 5), "distilbert": Shapes("DistilBERT", distilbert, 5)}


def parameters(groups: Iterable[dict]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def of(package: str, name: str, **options) -> Callable[[list[dict]], Optimizer]:
    "An optimizer of another package"
    def build(groups: list[dict]) -> Optimizer:
        return getattr(importlib.import_module(package), name)(parameters(groups), lr=1e-5, weight_decay=DECAY, **options)
    return build


def dals(**options) -> Callable[[list[dict]], Optimizer]:
    "DALS, with group dictionaries of its own: an optimizer writes into them"
    return lambda groups: DALS([{**group} for group in groups], total_steps=TOTAL, weight_decay=DECAY, **options)


def one_group(make: Callable[..., Optimizer], **options) -> Callable[[list[dict]], Optimizer]:
    "An optimizer over all parameters"
    return lambda groups: make(parameters(groups), lr=1e-5, weight_decay=DECAY, **options)


def looking_ahead(wrap: Callable[[Optimizer], Optimizer]) -> Callable[[list[dict]], Optimizer]:
    "A wrapper, five steps forward and one back, around torch's fused AdamW"
    return lambda groups: wrap(one_group(AdamW, fused=True)(groups))


def lookahead_of_pytorch_optimizer(base: Optimizer) -> Optimizer:
    return importlib.import_module("pytorch_optimizer").Lookahead(base, k=5, alpha=0.5)


OURS, FOREACH, FUSED = "DALS", "AdamW, foreach", "AdamW, fused"
SIDES: dict[str, Callable[[list[dict]], Optimizer]] = {
    OURS: dals(), "DALS, fused=True": dals(fused=True), "DALS, foreach=False": dals(foreach=False),
    "Lion": one_group(Lion), "Lion, fused=True": one_group(Lion, fused=True),
    "LARS": one_group(LARS), "LARS, fused=True": one_group(LARS, fused=True),
    "AdaBound": one_group(AdaBound), "AdaBound, fused=True": one_group(AdaBound, fused=True),
    "Grokfast around SGD, fused": lambda groups: Grokfast(one_group(SGD, momentum=0.9, fused=True)(groups)),
    "Lookahead around AdamW, fused": looking_ahead(Lookahead),
    FOREACH: one_group(AdamW, foreach=True), FUSED: one_group(AdamW, fused=True),
    "SGD with momentum, foreach": one_group(SGD, momentum=0.9, foreach=True),
    "SGD with momentum, fused": one_group(SGD, momentum=0.9, fused=True),
    "Lion of pytorch_optimizer": of("pytorch_optimizer", "Lion"), "Lion of timm": of("timm.optim", "Lion"),
    "LARS of pytorch_optimizer": of("pytorch_optimizer", "LARS"), "LARS of timm": of("timm.optim", "Lars", momentum=0.9),
    "AdaBound of pytorch_optimizer": of("pytorch_optimizer", "AdaBound"),
    "Lookahead of pytorch_optimizer around AdamW, fused": looking_ahead(lookahead_of_pytorch_optimizer),
    "Lamb of pytorch_optimizer": of("pytorch_optimizer", "Lamb")}
PEERS = ("pytorch_optimizer", "timm")

# (shapes, device): the most that ours may take on one thread, as a fraction of the time of another
MLP = {"DALS": 1.5, "Lion": 1.0, "LARS": 1.7, "AdaBound": 1.7, "Grokfast around SGD, fused": 1.0, "Lookahead around AdamW, fused": 1.2}
MLP |= {f"{side}, fused=True": MLP[side] for side in ("DALS", "Lion", "LARS", "AdaBound")}
LARGE = {"DALS": 2.2, "DALS, fused=True": 1.7, "Lion": 1.7, "Lion, fused=True": 1.5, "LARS": 2.0, "LARS, fused=True": 1.7, "AdaBound": 2.8,
         "AdaBound, fused=True": 2.0, "Grokfast around SGD, fused": 1.3, "Lookahead around AdamW, fused": 1.2}
GOALS = {("distilbert", "cpu"): {(OURS, FOREACH): 0.45, **{(side, FUSED): goal for side, goal in LARGE.items()}},
         ("mlp", "cpu"): {(OURS, FOREACH): 0.7, **{(side, FUSED): goal for side, goal in MLP.items()}},
         ("distilbert", "cuda"): {(OURS, FUSED): 1.6}}
BUFFERS = 2.0 # and the most floats per parameter that DALS may keep between steps
LARS_WRITES = "LARS of pytorch_optimizer uses the gradients as scratch space, the others leave them as they are."
ABSENT = "Not measured, for their packages are missing here: the optimizers of "


def available_sides(compiled: bool = True) -> dict[str, Callable[[list[dict]], Optimizer]]:
    "All but those whose package is missing, and without what torch compiles if that is not wanted"
    absent = absent_peers()
    return {name: build for name, build in SIDES.items()
            if not any(f"of {package}" in name for package in absent) and (compiled or "fused=True" not in name)}


TRIED = """## Where a goal is missed, and what was tried

Where a step spends its time, as a multiple of AdamW's whole step, fused, from runs in turn with it on one core of an AMD EPYC with 1 MiB
of L2 cache that had other work too:

| optimizer | shapes | part | times AdamW, fused |
| --- | --- | --- | --- |
| DALS | MLP | filter: average, blend, decay (three operations on lists) | 0.15 + 0.26 + 0.15 |
| | | norms of weights and of filtered gradients, 16 dot products | 0.21 + 0.22 |
| | | momentum, weights | 0.19 + 0.18 |
| | | finding tensors, loss and phase, schedule, options of four groups | 0.06 + 0.08 + 0.03 + 0.13 |
| Lion | MLP | its five operations on lists alone, without a line of ours | 0.87 |
| LARS | MLP | norms of 16 tensors and the rates that follow | 0.55 |
| Grokfast | MLP | filter; step of SGD; torch's wrapper and the rest | 0.52; 0.41; 0.4 |
| Lookahead | MLP | its own part of a step; a fifth of the way back | 0.1; 0.07 |
| DALS | DistilBERT | first pass, of which norms; second pass | 1.88, 0.56; 0.5 |
| DALS, fused=True | DistilBERT | first pass; second pass | 1.1 to 1.3; 0.5 |
| Grokfast | DistilBERT | filter; step of SGD | 0.96; 0.72 |

- A goal in floats counts what crosses to memory. What a piece costs beside is arithmetic in the cache: per 2^18 floats 24 us for an
  operation in place, 39 us for one that writes a third place, 22 us for a dot product, 115 us for torch's square root, 78 and 29 us for
  `rsqrt` and `reciprocal`, which AdaBound therefore takes, where AdamW, fused, needs 115 us for as many weights, memory included. The
  first pass of DALS is four operations and two dot products, 161 us, before a float has come from memory; none of the four can be left
  out, for torch has no operation that adds three tensors. Pieces of 2^17 to 2^19 are within 6 % of each other; 2^16 costs a fifth and
  2^15 a third more, for an operation is as fast in the third cache as in the second, and starting it takes 1 to 2.4 us. Cutting evenly,
  taking norms in another order: within 4 %.
- Small models: nothing that is left to take away in Python reaches the goals. The five operations of Lion on 8 tensors are 0.87 by
  themselves (0.62 if they lay in one tensor, which a model's do not), those of DALS 1.4, and the square roots and quotients of AdaBound
  0.9. Methods for the verbs of lists instead of a look-up for each took 5 % off Lion and AdaBound. Norms by dot products in LARS: 15 %
  slower than torch's. Lookahead spends 1.8 us on its weights and 7 us in torch's wrapper of `step`, which calls the hooks.
- Grokfast around a fused SGD moves 10 floats for the 7 of AdamW: the amplified gradients must lie somewhere until the base has stepped,
  and those of autograd come back after it. Their place is kept from step to step on the CPU: fresh memory for them made a step 4.9 times
  AdamW's. Their sum now goes there in one pass, a tenth less than a copy and a sum in place. Tried, with pieces of 2^18: torch's fused
  SGD on each piece while its amplified gradient is in the cache, 1.54 for 1.84 at DistilBERT's shapes and 1.03 for 1.51 at the MLP's. It
  is not in the library: it would be SGD a second time, with its options and its hooks, and it misses the goal all the same. Steps of the
  base itself on pieces would pay 25 us of Python for each, all that they save.
- Small models, `fused=True`: the update of Lion, LARS and AdaBound is compiled for the whole list in one call, where a group has at most 16
  tensors and 2^17 to 2^20 floats. In turn with AdamW on a busy machine, MLP: Lion 1.01 for 1.15 without, LARS 1.21 for 1.68 (its norms are
  compiled along), AdaBound 1.42 for 2.50; on the ConvNet 0.79 for 1.66, 1.13 for 1.94 and 1.24 for 3.04. Lion's compiled call alone is 0.45
  to 0.55 there. The rest is torch's wrapper of `step`, 0.2 where the update has just emptied the cache of Python's own code, and finding
  tensors, state and sizes. Leaving out torch's guards would save 0.06. Below 2^17 floats the call takes longer than
  Lion's operations (1.7 times for two tensors of 64 by 64). The first step takes 2 to 5 s for 8 tensors, 12 to 26 s for 32 and up to two
  minutes for 64 of as many shapes, hence the 16; lengths that may vary did not compile sooner, and as flat tensors ran at 1.02 for 0.59.
- DALS is not compiled for lists. Tried, with the lines of chapter 6 for all tensors in one call: 1.83 to 1.87 for 1.87 to 1.99 without. The
  call alone is 1.05, and 0.27 where its 33 arguments are handed over for next to nothing. Finding the tensors,
  0.1, loss, phase, schedule and options of four groups, 0.3, and torch's wrapper, 0.2, come on top. Norms in another order, the
  momentum before them, sums of squares for norms: 1.12 to 1.18 for 1.12.
- Nor are Grokfast's filter (0.52 compiled, 0.36 in lists) and the way back of Lookahead (0.28, 0.24): what they do to a float is so little
  that a call costs more than it saves. Grokfast's filter and its step of SGD are 0.36 and 0.38 by themselves; one after the other
  they take more, for what they pass over, five times the weights, does not stay in the second cache.
- Without `fused=True` Lion and AdaBound stand about their goals on DistilBERT's shapes: 1.69 and 1.82, 2.76 and 2.89 in the last two runs
  of this page, with rounds from 1.55 to 1.94 and from 2.66 to 2.92.
- What `fused=True` keeps beyond the plain step is torch's compiler, once in a process and whatever the model: 0.27 of DALS are 72 MB. Lion,
  LARS and AdaBound are measured after a small model that they compile as well, and keep 0.04 to 0.10.
- `torch.compile` of the same lines (`fused=True`) makes one loop of each update of a large tensor; on DistilBERT's shapes only DALS
  misses its goal with it, by a few percent. A call costs 18 us, so beside it tensors under 2^17 floats stay in lists.
  The rate must come as a tensor and multiply: as `alpha` torch compiles anew for each of its values. Two sums beside what is
  changed become one loop only if the one that hangs on the filtered gradient comes first; then
  DALS's first pass takes 1.12 to 1.15 for whole tensors of any length, otherwise, written back and read again, 1.4 for pieces of one
  length and 1.8 to 1.9 for any.
"""

ELSE = """## What else was measured

The same updates as loops of one's own, by numba and in C++ (`python benchmarks/compiled.py`, which needs numba and g++): times AdamW,
fused, one thread, with the lowest and the highest round. The first two columns are whole steps of the library's classes, the others bare
loops, without groups, hooks or checks.

{table}
- On large tensors a loop of one's own takes a tenth to a fifth less time than torch.compile of the readable lines.
- On a small model it is worth more, for it takes no time to start: Lion, AdaBound and DALS in a third to two thirds of the time of AdamW's
  step.
- They are not in the library. Each would be every update a second time, for a compiler at installation or at the first step, and what it
  saves of a step of the MLP is one to two tenths of a millisecond.
"""


def what_else() -> str:
    "The section on loops of one's own, with the table that benchmarks/compiled.py wrote"
    return ELSE.format(table=Path(__file__).with_name("compiled.md").read_text(encoding="utf-8"))


def absent_peers() -> list[str]:
    return [package for package in PEERS if importlib.util.find_spec(package) is None]


def missing(name: str) -> str | None:
    "The package without which there are no such shapes"
    return "transformers" if name in ("minilm", "distilbert") and importlib.util.find_spec("transformers") is None else None


def stepping(optimizer: Optimizer, place: torch.device) -> Callable[[], None]:
    "One step; DALS is told a loss before it, which lies where a training loop has it"
    if not isinstance(optimizer, DALS):
        return optimizer.step
    loss = torch.ones((), device=place) if place.type == "cuda" else 1.0

    def step() -> None:
        optimizer.observe(loss)
        optimizer.step()
    return step


def synchronize(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def milliseconds(step: Callable[[], None], steps: int, place: torch.device) -> float:
    "Per step, after one that does not count"
    step()
    synchronize(place)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(place)
    return 1000 * (time.perf_counter() - started) / steps


def measure(shapes: Shapes, place: torch.device, threads: list[int], rounds: int,
            compiled: bool) -> tuple[int, dict[int, dict[str, list[float]]]]:
    "The number of parameters, and for each number of threads and optimizer the time per step in each round"
    groups = shapes.groups(place)
    params = parameters(groups)
    grads = [p.grad.clone() for p in params]
    steps = {name: stepping(build(groups), place) for name, build in available_sides(compiled).items()}
    times: dict[int, dict[str, list[float]]] = {n: {name: [] for name in steps} for n in threads}
    for step in steps.values(): # allocate the state, compile what is compiled
        step()
    for _, n in itertools.product(range(rounds), threads):
        torch.set_num_threads(n)
        for name, step in steps.items():
            torch._foreach_copy_([p.grad for p in params], grads) # some write into them
            times[n][name].append(milliseconds(step, shapes.steps, place))
    return sum(p.numel() for p in params), times


def verdict(value: float, goal: float) -> str:
    return f"at most {goal:g}: {'met' if value <= goal else 'missed'}"


def times_of(name: str, place: torch.device, threads: list[int], rounds: int, command: str, compiled: bool) -> list[str]:
    "Rows of the table of times"
    shapes = MODELS[name]
    if package := missing(name):
        return [f"| {shapes.what}: not measured, {package} is missing | | | | | | |"]
    count, times = measure(shapes, place, threads, rounds, compiled)
    rows = []
    for n, by_side in times.items():
        for side, mine in by_side.items():
            cells = []
            for rival in (FOREACH, FUSED):
                ratios = [a / b for a, b in zip(mine, by_side[rival], strict=True)]
                middle = statistics.median(ratios)
                cell = "1" if side == rival else f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                if n == threads[0] and (goal := GOALS.get((name, place.type), {}).get((side, rival))):
                    cell = f"{cell}; {verdict(middle, goal)}"
                cells.append(cell)
            rows.append(f"| {shapes.what}, {count:,} parameters | {n} | {side} | {statistics.median(mine):.3f} | {' | '.join(cells)} "
                        f"| `{command} --only {name}` |")
    return rows


def floats(side: str, shapes: Shapes, device: str) -> tuple[float, float]: # per parameter: kept between steps, and held beside in a step
    "In a fresh process: what the operating system, or torch on CUDA, counts beyond parameters and gradients of these shapes"
    torch.set_num_threads(1)
    place = torch.device(device)

    def once(shapes: Shapes) -> tuple[float, float]:
        groups = shapes.groups(place)
        count = sum(p.numel() for p in parameters(groups))
        before = peak_memory(place, start=True)
        step = stepping(available_sides()[side](groups), place)
        step()
        held = peak_memory(place, start=True)
        step()
        peak = peak_memory(place)
        if before is None or held is None or peak is None:
            return math.nan, math.nan
        return (held - before) * 2**18 / count, (peak - held) * 2**18 / count
    once(MODELS["mlp"]) # so that code and libraries are loaded
    return once(shapes)


def floats_alone(side: str, shapes: Shapes) -> tuple[float, float]:
    "The same on the CPU, in a process of its own"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(floats, side, shapes, "cpu").result()


def memory_of(place: torch.device, command: str, compiled: bool) -> list[str]:
    "Rows of the table of memory"
    if package := missing("distilbert"):
        return [f"| not measured, {package} is missing | | | | |"]
    rows, shapes = [], MODELS["distilbert"]
    for side in available_sides(compiled):
        if place.type == "cuda": # where torch counts, and one process will do
            kept, extra = floats(side, shapes, place.type)
        else:
            kept, extra = floats_alone(side, shapes)
        goal = f"; {verdict(round(kept, 1), BUFFERS)}" if side.startswith("DALS") else ""
        rows.append(f"| {side} | {kept:.2f}{goal} | {extra:.2f} | {kept + extra:.2f} | `{command} --only memory` |")
    return rows


@contextmanager
def returned_memory():
    "In processes started here, glibc gives freed memory back at once instead of keeping it for reuse"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    try:
        yield
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def synchronization(place: torch.device) -> str:
    "Whether a step of DALS waits for the GPU, as torch sees it"
    step = stepping(SIDES[OURS](MODELS["mlp"].groups(place)), place)
    step() # allocates the state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    except RuntimeError as error:
        return f"missed ({str(error).splitlines()[0]})"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "met"


def page(only: list[str], place: torch.device, rounds: int, compiled: bool) -> str:
    "The page as Markdown"
    cuda = place.type == "cuda"
    on_gpu, counted = (" that lies on the GPU", "torch counts") if cuda else ("", "the operating system counts")
    command = "python benchmarks/step.py" + (" --device cuda" if cuda else "")
    threads = [1]
    packages = [f"{name} {version(name)}" for name in ("transformers", *PEERS) if importlib.util.find_spec(name)]
    lines = [f"""# One step of the optimizer{", on a GPU" if cuda else ""}

On {device_name(place)}, {platform.system()}, {", ".join([f"torch {torch.__version__}", *packages])}.

Parameters and gradients are random, in single precision and in the shapes of the models named; all optimizers move the same parameters,
one after the other, in {rounds} rounds. A time is that of several steps in a row, per step, after one that does not count; the table shows
its median over rounds. A ratio is taken within a round; shown are its median and in brackets the lowest and the highest. DALS stands for
the path that it takes by default, on the groups of `layer_groups`, with a loss before every step{on_gpu}; the others have one group. Goals
stand beside the numbers that they are about, those of one thread. All have weight decay, and LARS its ratio; Lookahead's time is the mean
over its cycle of five steps.

{ABSENT + " and ".join(absent_peers()) + "." if absent_peers() else LARS_WRITES}
"""]
    if cuda:
        lines.append(f'No synchronisation in a step of DALS, by `torch.cuda.set_sync_debug_mode("error")`: {synchronization(place)}.\n')
    models = [name for name in only if name in MODELS]
    if models:
        lines += ["## Time", "", f"| parameters | threads | optimizer | ms per step | times {FOREACH} | times {FUSED} | command |",
                  "| --- | --- | --- | --- | --- | --- | --- |"]
        for name in models:
            print(f"{name} ...", flush=True)
            lines += times_of(name, place, threads, rounds, command, compiled)
        lines.append("")
    if "memory" in only:
        print("memory ...", flush=True)
        with returned_memory():
            rows = memory_of(place, command, compiled)
        alone = "" if cuda else ", each optimizer in a process of its own"
        lines += ["## Memory", "", f"Floats per parameter beyond parameters and gradients, as {counted} them, DistilBERT's shapes{alone}: "
                  "kept from one step to the next, and held beside that at the worst moment of a step.",
                  "", "| optimizer | kept | during a step | together | command |",
                  "| --- | --- | --- | --- | --- |", *rows, ""]
    if not cuda:
        lines += [TRIED, what_else()]
    return "\n".join(lines).rstrip() + "\n"


def write_whole(out: Path, text: str) -> None:
    "A file is whole or not there"
    part = out.with_name(out.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, out)


def measure_and_keep(
    script: str, what: str, measured: Callable[[bool], dict[str, Any]], table: Callable[[dict[str, Any]], str],
    arguments: list[str] | None = None,
) -> None:
    "The command line of a benchmark that keeps its numbers: measure, in full or at a tiny size, print the page, write numbers and page"
    beside = Path(script)
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--smoke", action="store_true", help="a tiny size, for a test")
    parser.add_argument("--out", type=Path,
                        help=f"file to write, ending in .json and in .md; a full run writes {beside.stem} beside this file")
    options = parser.parse_args(arguments)
    found = measured(options.smoke)
    page = table(found)
    print(page)
    if out := options.out or (None if options.smoke else beside):
        write_whole(out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
        write_whole(out.with_suffix(".md"), page)


def main(arguments: list[str] | None = None) -> None:
    choices = [*MODELS, "memory"]
    parser = argparse.ArgumentParser(description="Measure a step of our optimizers beside those of others, in turn.")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="shapes to time, or memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="leave out what torch compiles: fused=True of our optimizers")
    parser.add_argument("--out", type=Path, help="file to write; without it a full run writes step.md or step-cuda.md beside this file")
    options = parser.parse_args(arguments)
    text = page(options.only, torch.device(options.device), options.rounds, not options.plain)
    print(text)
    own = "step-cuda.md" if options.device == "cuda" else "step.md"
    if out := options.out or (Path(__file__).with_name(own) if len(options.only) == len(choices) else None):
        write_whole(out, text)


if __name__ == "__main__":
    main()
