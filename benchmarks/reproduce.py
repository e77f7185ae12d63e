"""Where did the time of `make reproduce` go? Reads what it left behind: python benchmarks/reproduce.py, after it has trained."""
import argparse
import json
import platform
from datetime import datetime
from pathlib import Path

from dals.lab.store import Store, project_root

FIRST = "Fixed SGD"
TRIED = """
## Against the goal

The goal was 0.7 of the time of the commit before (3c727f5), in turn on one machine. There it was 460 s, here 418 s, without the book,
which that commit lacks: 0.91, missed. Most of it is the arithmetic of training, which both do alike.

- Two processes need nine times a run of Fixed SGD for 18 runs of no other cost. SAM's two take two gradients a step, which makes it ten.
  What the optimizers do beside is the next 1.6, and while the last run ends the other process has nothing left: the rest.
- Of the notebooks, table 1 and the ablation train small networks in their cells and take half of the time.
- What is in: workers are forks of one process that has imported torch, the process that hands out runs imports none, the longest runs and
  notebooks begin first, records are read once, Adam and AdamW take torch's fused step, notebooks run side by side.
- What is left would be another arithmetic: training in lower precision or as one model for several strategies, and then other numbers.
"""


def moments(notebook: Path) -> tuple[float, float]: # seconds since the epoch
    "When papermill began with a notebook and when it ended."
    told = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["papermill"]
    start, end = (datetime.fromisoformat(told[name]).timestamp() for name in ("start_time", "end_time"))
    return start, end


def table(root: Path) -> str:
    "The page as Markdown."
    runs = Store(str(root / "results"), str(root / "_results")).runs("synthetic-released", "paper", where="local")
    notebooks = {path.stem: moments(path) for path in sorted((root / "_reproduced" / "notebooks").glob("*.ipynb"))}
    pages = [path.stat().st_mtime for path in (root / "_reproduced" / "book").rglob("*.html")]
    if not (runs and notebooks and pages and any(run.strategy == FIRST for run in runs)):
        raise SystemExit(f"{root} has no training, notebooks and book of its own: run `make reproduce` there first")
    ends = [datetime.fromisoformat(run.finished).timestamp() for run in runs]
    begun, trained = min(end - run.seconds for end, run in zip(ends, runs, strict=True)), max(ends)
    rendered = max(end for _, end in notebooks.values())
    seconds = {run.strategy: run.seconds for run in runs}
    spent = {name: end - start for name, (start, end) in notebooks.items()}
    total = max(pages) - begun
    lines = ["# Where the time of `make reproduce` goes", f"""
`python benchmarks/reproduce.py` after a `make reproduce` that trained, on \
{runs[0].device}, {platform.system()}, torch {runs[0].versions["torch"]}.
From the first step of training to the last page of the book: {total:.0f} s.

| part | seconds | share | its runs or notebooks, one by one |
| --- | --- | --- | --- |"""]
    lines += [f"| {name} | {wall:.0f} | {wall / total:.0%} | {own} |" for name, wall, own in (
        (f"training, {len(runs)} runs", trained - begun, f"{sum(seconds.values()):.0f}"),
        (f"notebooks, {len(notebooks)}", rendered - trained, f"{sum(spent.values()):.0f}"),
        (f"book, {len(pages)} pages", max(pages) - rendered, ""))]
    times = (trained - begun) / seconds[FIRST]
    lines += ["", f"A run of {FIRST} takes {seconds[FIRST]:.1f} s; the training takes {times:.1f} times as long. "
              f"All runs together take {sum(seconds.values()) / seconds[FIRST]:.1f} times as long:", "",
              f"| strategy | seconds | times {FIRST} |", "| --- | --- | --- |"]
    lines += [f"| {name} | {took:.1f} | {took / seconds[FIRST]:.2f} |" for name, took in sorted(seconds.items(), key=lambda pair: -pair[1])]
    lines += ["", "| notebook | seconds, its kernel's start included |", "| --- | --- |"]
    lines += [f"| {name} | {took:.1f} |" for name, took in sorted(spent.items(), key=lambda pair: -pair[1])]
    return "\n".join(lines) + "\n" + TRIED


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--root", type=Path, default=project_root(), metavar="FOLDER", help="where it ran")
    words.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE", help="where the page goes")
    args = words.parse_args()
    page = table(args.root)
    print(page)
    args.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
