"Peak memory of one training process per task at its full size: python benchmarks/memory.py. Needs the data that the tasks need."
import argparse
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

STEPS = 12 # training steps, most of them of ordinary batches and two of the longest


def distilbert(task):
    "The same texts, and a DistilBERT with random weights: memory does not ask what the weights are"
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    from dals.lab.texts import stock_logits
    return replace(task, logits=stock_logits,
                   model=lambda: DistilBertForSequenceClassification(DistilBertConfig(num_labels=task.classes)).train())


def measure(name: str, big: bool) -> tuple[int, int, list[int]]: # examples in train and test, three peaks
    "MiB that a fresh process holds at most: with its data read, in training, and in evaluation"
    import torch
    from dals.recipes.strategies import get_strategy
    from dals.lab.tasks import get_task
    from dals.lab.training import accuracy, peak_memory, train_epoch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place, task = torch.device("cpu"), get_task(name)
    task = distilbert(task) if big else task
    budget, data = task.budget("paper"), task.load("paper")
    peaks = [peak_memory(place)]
    model = task.model()
    optimizer, scheduler = get_strategy("DALS").build(model, total_steps=1000, steps_per_epoch=100, regime=task.regime)
    order = task.order(data.train, budget.batch_size)[:(STEPS - 2) * budget.batch_size]
    some = [order] if data.train.lengths is None else [order, data.train.lengths.argsort(descending=True)[:2 * budget.batch_size]]
    part = data.train.take(torch.cat(some))
    train_epoch(replace(task, order=lambda split, size: torch.arange(len(split))), model, optimizer, scheduler, part, budget.batch_size,
                task.augment)
    peaks.append(peak_memory(place))
    split = data.test
    longest = torch.arange(1000) if split.lengths is None else split.lengths.argsort(descending=True)[:200]
    accuracy(task, model, split.take(longest[:len(split)]))
    peaks.append(peak_memory(place))
    return len(data.train), len(data.test), peaks


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--only", nargs="+", metavar="TASK", help="names of tasks; all that can run here if left out")
    words.add_argument("--out", default=str(Path(__file__).with_suffix(".md")), metavar="FILE", help="where the table goes")
    args = words.parse_args()
    import torch
    from dals.lab.tasks import TASKS, available
    from dals.lab.training import device_name
    rows = []
    for name in args.only or [name for name in TASKS if available(name) is None]:
        for big in (False, True) if TASKS[name].base == "imdb" else (False,): # the largest
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool: # a fresh process each
                train, test, peaks = pool.submit(measure, name, big).result()
            model = "DistilBERT, random weights" if big else TASKS[name].backbone or "from scratch"
            rows.append(f"| `{name}` | {model} | {train:,} + {test:,} | " + " | ".join(f"{peak / 1024:.2f}" for peak in peaks) + " |")
            print(rows[-1], flush=True)
    Path(args.out).write_text(f"""# Peak memory of one training process

GiB as the operating system counts them, interpreter and libraries included: the full data of each task, {STEPS} steps of DALS in the
batches of profile `paper` (of texts two batches are the longest there are), then an evaluation (of texts, of the longest). The paper's own
encoder is measured where texts are longest. Much of what stands here is memory that glibc keeps for reuse: with
`MALLOC_MMAP_THRESHOLD_=1048576` in the environment the peak is lower, and training slower.

`python benchmarks/memory.py` on {device_name(torch.device("cpu"))}, {platform.system()}, torch {torch.__version__}, 1 thread.

| task | model | examples, train + test | data read | after training | after evaluation |
| --- | --- | --- | --- | --- | --- |
""" + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
