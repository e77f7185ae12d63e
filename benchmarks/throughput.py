"""How fast is the loop? Ours beside what one would write or take otherwise, measured in turn on one thread.

    python benchmarks/throughput.py                   # all, about ten minutes; writes benchmarks/throughput.md
    python benchmarks/throughput.py --only seeds      # one group, printed
    python benchmarks/throughput.py --smoke           # all at a tiny size: shows that it runs, its numbers mean nothing
"""
from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__": # before the imports that read them; who imports this file keeps an environment as it was
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch # noqa: E402
from torch import Tensor, nn # noqa: E402
from torch.nn import functional as F # noqa: E402
from torch.utils.data import DataLoader, Dataset, TensorDataset # noqa: E402

from dals.lab.seeds import fit_seeds # noqa: E402
from dals.recipes.strategies import get_strategy # noqa: E402
from dals.lab.pictures import standardized # noqa: E402
from dals.lab.tasks import available, Budget, Data, get_task, Split, Task
from dals.lab.texts import minilm_tokenizer
from dals.lab.training import device_name, fit, train_epoch # noqa: E402

SYNTHETIC, STRATEGIES = ("synthetic", "synthetic-released"), ("Fixed SGD", "AdamW")
STAND_IN = "trec6+minilm-l6"


@dataclass
class Comparison:
    "What is measured side by side: the first is ours, and every other one makes a row"
    what: str
    sides: dict[str, Callable[[], float]] # name -> does the work once and returns its seconds
    show: Callable[[float], str] # seconds in the unit of the row
    factor: dict[str, str] | None = None # name -> how its ratio reads, where it is not "times as fast"


def timed(work: Callable[[], object]) -> float:
    "Wall seconds"
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cut(name: str, epochs: int, smoke: bool) -> Task:
    "A synthetic task for so many epochs, its data drawn once"
    task = get_task(name)
    budget = task.budget("smoke" if smoke else "paper")
    data = task.read(budget)
    return replace(task, read=lambda budget: data, profiles={"paper": replace(budget, epochs=epochs)})


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    "The torch optimizer of a strategy with the settings that ours has on the synthetic tasks"
    settings = get_strategy(name).settings("scratch")
    return torch.optim.SGD(model.parameters(), **settings) if name == "Fixed SGD" else torch.optim.AdamW(model.parameters(), **settings)


def plain_loop(task: Task, name: str) -> float:
    "The usual loop: two loaders, zero_grad, forward, backward, step, a running loss, an evaluation after every epoch"
    data, budget = task.load(), task.budget("paper")
    torch.manual_seed(0)
    model = task.model()
    train = DataLoader(TensorDataset(*data.train.inputs, data.train.labels), batch_size=budget.batch_size, shuffle=True)
    test = DataLoader(TensorDataset(*data.test.inputs, data.test.labels), batch_size=1000)
    optimizer = optimizer_of(name, model)

    def run() -> None:
        for _ in range(budget.epochs):
            model.train()
            total = 0.0
            for x, y in train:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(y)
            model.eval()
            with torch.no_grad():
                sum((model(x).argmax(1) == y).sum().item() for x, y in test)
    return timed(run)


def eighty(epochs: int, seconds: float) -> str:
    "Seconds as they would be for 80 epochs"
    return f"{80 / epochs * seconds:.1f} s"


def synthetic(smoke: bool) -> list[Comparison]:
    "`fit` against a plain torch loop"
    rows = []
    for task in SYNTHETIC:
        for name in STRATEGIES:
            epochs = 1 if smoke else 80 if (task, name) == ("synthetic", "Fixed SGD") else 8
            short = cut(task, epochs, smoke)
            rows.append(Comparison(
                f"{task}, {name}, 80 epochs" + ("" if epochs == 80 else f" (measured: {epochs})"),
                {"fit": lambda short=short, name=name: fit(short, name).seconds,
                 "plain loop, torch.optim and DataLoader": partial(plain_loop, short, name)}, partial(eighty, epochs)))
    return rows


def products(task: Task, count: int) -> float:
    "Nothing but the batched matrix products of training so many seeds at once: a floor for everybody who does not round differently"
    data, budget = task.load(), task.budget("paper")
    layers = [layer for layer in task.model() if isinstance(layer, nn.Linear)]
    weights = [torch.randn(count, *layer.weight.shape) for layer in layers]
    inputs = [torch.randn(count, layer.in_features, budget.batch_size) for layer in layers]
    slopes = [torch.randn(count, layer.out_features, budget.batch_size) for layer in layers]

    def run() -> None:
        for _ in range(budget.epochs * len(data.train) // budget.batch_size):
            for i, (weight, x, slope) in enumerate(zip(weights, inputs, slopes, strict=True)):
                torch.bmm(weight, x) # forward
                torch.bmm(slope, x.mT) # to the weights
                if i:
                    torch.bmm(weight.mT, slope) # to the layer below
    return timed(run)


def seeds(smoke: bool) -> list[Comparison]:
    "Ten seeds at once against ten runs in turn and against one run, and what the products alone would take"
    rows, count = [], 3 if smoke else 10
    for task in SYNTHETIC:
        for name in STRATEGIES:
            epochs = 1 if smoke else 8 if task == "synthetic" else 2
            short = cut(task, epochs, smoke)

            def at_once(short=short, name=name):
                return count * fit_seeds(short, name, range(count))[0].seconds

            def in_turn(short=short, name=name):
                return sum(fit(short, name, seed=seed).seconds for seed in range(count))
            rows.append(Comparison(
                f"{task}, {name}, {count} seeds, 80 epochs (measured: {epochs})",
                {"fit_seeds": at_once, f"fit, {count} runs in turn": in_turn,
                 "fit, one run": lambda short=short, name=name: fit(short, name).seconds},
                partial(eighty, epochs), {"fit, one run": "times the time of one run"}))
            rows.append(Comparison(
                f"{task}, {name}, a floor for {count} seeds, 80 epochs (measured: {epochs})",
                {"their matrix products alone": partial(products, short, count),
                 "fit, one run": lambda short=short, name=name: fit(short, name).seconds},
                partial(eighty, epochs), {"fit, one run": "times the time of one run"}))
    return rows


class Pictures(Dataset):
    "Pictures as bytes, handed out as torchvision's CIFAR10 does it: one PIL image, transformed, and its label"
    def __init__(self, pixels: Tensor, labels: Tensor, transform: Callable):
        self.pixels, self.labels, self.transform = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def pictures(smoke: bool) -> list[Comparison]:
    "Training images per second with shifted and mirrored pictures, against torchvision's transforms"
    if importlib.util.find_spec("torchvision") is None:
        return []
    from torchvision import transforms
    n, task = 256 if smoke else 2560, get_task("cifar10+jpeg")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    split = Split((standardized(pixels, pixels)[0],), labels)
    model = task.model()
    optimizer = optimizer_of("Fixed SGD", model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                    transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))])

    usual_model = task.model().to(memory_format=torch.contiguous_format) # torch's default, which a plain loop has
    usual_optimizer = optimizer_of("Fixed SGD", usual_model)

    def epoch(loader: DataLoader) -> None:
        for x, y in loader:
            usual_optimizer.zero_grad()
            F.cross_entropy(usual_model(x), y).backward()
            usual_optimizer.step()

    def usual(workers: int) -> float:
        loader = DataLoader(Pictures(pixels, labels, transform), batch_size=128, shuffle=True, num_workers=workers)
        return timed(lambda: epoch(loader))
    return [Comparison(
        "training images per second, ConvNet of cifar10, batch 128, Fixed SGD",
        {"train_epoch": lambda: timed(lambda: train_epoch(task, model, optimizer, scheduler, split, 128, task.augment)),
         "DataLoader and torchvision, no workers": partial(usual, 0), "DataLoader and torchvision, 2 workers": partial(usual, 2)},
        lambda seconds: f"{n / seconds:.0f} images/s")]


class WithLoss(nn.Module):
    "A classifier as the Trainer wants it: labels go in, loss and logits come out"
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(input_ids, attention_mask)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def texts(smoke: bool) -> list[Comparison]:
    "Training sequences per second, against the Trainer of transformers"
    if importlib.util.find_spec("accelerate") is None or available(STAND_IN):
        return []
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from transformers.utils import logging
    logging.set_verbosity_error()
    steps, task = 2 if smoke else 16, get_task(STAND_IN)
    data: Data = task.read(Budget(1, 32, 32 * steps, 64, 128))
    tokenizer, model = minilm_tokenizer(), task.model()
    rows = [{"input_ids": ids[:n].tolist(), "attention_mask": [1] * n, "labels": label} for ids, n, label in
            zip(data.train.inputs[0], data.train.lengths.tolist(), data.train.labels.tolist(), strict=True)]

    def optimizing() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.01)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def ours() -> float:
        return timed(partial(train_epoch, task, model, *optimizing(), data.train, 32))

    def theirs(**options) -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=32, num_train_epochs=1, max_grad_norm=0.0, use_cpu=True, disable_tqdm=True,
                report_to=[], save_strategy="no", logging_strategy="no", dataloader_pin_memory=False, **options)
            trainer = Trainer(WithLoss(model), arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer),
                              optimizers=optimizing())
            return timed(trainer.train)
    sides = {"train_epoch": ours, "transformers Trainer": theirs}
    names = TrainingArguments.__dataclass_fields__
    grouped = {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in names else {"group_by_length": True}
    sides["transformers Trainer, grouped by length"] = partial(theirs, **grouped)
    return [Comparison(f"training sequences per second, {STAND_IN}, batch 32, AdamW, {steps} steps", sides,
                       lambda seconds: f"{32 * steps / seconds:.0f} sequences/s")]


GROUPS = {"synthetic": synthetic, "seeds": seeds, "pictures": pictures, "texts": texts}
MISSING = "| {group}: not measured, a package or its data is missing here | | | | | |"


def measure(comparison: Comparison, repetitions: int) -> dict[str, list[float]]:
    "Seconds of every side, one after the other, again and again"
    seconds: dict[str, list[float]] = {name: [] for name in comparison.sides}
    for _ in range(repetitions):
        for name, work in comparison.sides.items():
            seconds[name].append(work())
    return seconds


def rows_of(comparison: Comparison, seconds: dict[str, list[float]], command: str) -> list[str]:
    "One row of the table for each rival: medians, the ratio of each repetition, and the range of these ratios"
    (ours, mine), *rivals = seconds.items()
    lines = []
    for rival, theirs in rivals:
        words = (comparison.factor or {}).get(rival)
        ratios = [m / t if words else t / m for m, t in zip(mine, theirs, strict=True)]
        lines.append(f"| {comparison.what} | {ours}: {comparison.show(statistics.median(mine))} "
                     f"| {rival}: {comparison.show(statistics.median(theirs))} "
                     f"| {statistics.median(ratios):.2f} {words or 'times as fast'} | {min(ratios):.2f} to {max(ratios):.2f} "
                     f"| `{command}` |")
    return lines


def table(groups: list[str], smoke: bool, repetitions: int) -> str:
    "The page as Markdown"
    others = [f"{name} {version(name)}" for name in ("torchvision", "transformers", "accelerate") if importlib.util.find_spec(name)]
    lines = ["# Throughput", "",
             *(["These numbers mean nothing: a tiny size that shows that the benchmark runs.", ""] if smoke else []),
             f"On {device_name(torch.device('cpu'))}, {', '.join([f'torch {torch.__version__}', *others])}, "
             f"threads: {torch.get_num_threads()}. Repetitions: {repetitions}, taken in turn by ours and the others. Times are medians, "
             "the ratio is the median over repetitions, the spread its lowest and highest value. Where fewer epochs were measured than a "
             "row speaks of, the time is scaled up. Loader workers are processes of their own, beside the one thread. The pictures are "
             "random bytes; our ConvNet keeps its weights channels last, the plain loop's lie as torch lays them by default.", "",
             "| what | ours | the other | ratio | spread | command |", "| --- | --- | --- | --- | --- | --- |"]
    for group in groups:
        comparisons = GROUPS[group](smoke)
        for comparison in comparisons:
            print(f"{group}: {comparison.what} ...", flush=True)
            lines += rows_of(comparison, measure(comparison, repetitions), f"python benchmarks/throughput.py --only {group}")
        if not comparisons:
            lines.append(MISSING.format(group=group))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure our loop beside others, in turn and on one thread.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=[*GROUPS], help="groups to measure")
    parser.add_argument("--smoke", action="store_true", help="a tiny size, for a test")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file to write; without it a full run writes throughput.md beside this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    page = table(options.only, options.smoke, 1 if options.smoke else options.repetitions)
    print(page)
    whole = len(options.only) == len(GROUPS) and not options.smoke
    if out := options.out or (Path(__file__).with_suffix(".md") if whole else None):
        out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
