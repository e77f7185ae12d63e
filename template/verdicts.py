"""What the paper printed against what the records say."""
import csv
from typing import NamedTuple

from dals.lab.compare import known_as_registered
from dals.lab.intervals import summary
from dals.lab.plans import cost_text, seeds_text
from dals.lab.records import Config
from dals.lab.tuning import reported
from dals.paper.claims import ENOUGH, FAILS, HOLDS, LEVEL, LIMIT, OPEN, first_seeds, needed, tested
from dals.paper.tables import pooled, verdict
from dals.recipes.strategies import get_strategy
from task import UNLIKE, task

PROTOCOL, PROFILE = "paper", "paper"  # whose rates, and which budget: the records that count
RULE = (
    "Accuracies are those of the last epoch, in percent; a run that diverged counts as 0. A number is one run of the paper's: it agrees "
    "where one more run of ours would fall within the 95 % prediction interval about our mean, with one standard deviation for the whole "
    "table. A statement says by how many points a strategy is ahead of its rival, seed by seed: it holds where a two-sided t test at "
    f"{100 * LEVEL:g} % says more, does not hold where it says less, and is open otherwise or below {ENOUGH} common seeds.")


class Row(NamedTuple):
    """One thing that the paper printed, and what became of it."""
    where: str  # in the paper
    what: str  # "AdamW", or "AdamW - Fixed SGD"
    paper: str  # its number
    ours: str  # mean and 95 % interval
    seeds: int  # behind it
    verdict: str
    decides: int = 0  # seeds that would settle an open statement, by estimate; 0: it is settled, or no number up to LIMIT would


def cell(strategy, printed, ours, pool, where):
    """A number of the paper's table against our runs."""
    runs = [*ours[strategy].values()]
    return Row(where, strategy, f"{printed:g}", interval(runs), len(runs), verdict(printed, runs, pool, UNLIKE))


def statement(strategy, rival, points, ours, where):
    """Whether a strategy is ahead of another by more than some points."""
    seeds = sorted({*ours[strategy]} & {*ours[rival]})
    leads = [ours[strategy][seed] - ours[rival][seed] for seed in seeds]
    row = Row(where, f"{strategy} - {rival}", f"> {points:g}", interval(leads), len(seeds), OPEN, ENOUGH)
    if len(seeds) < ENOUGH:
        return row
    test = tested(leads, points)
    if test.p <= LEVEL:
        return row._replace(verdict=HOLDS if test.mean > points else FAILS, decides=0)
    total = max(len(seeds) + 1, needed(test.sd, test.mean - points))
    return row._replace(decides=total if total <= LIMIT else 0)


def interval(values):
    """A mean with its 95 % interval, in words."""
    if not values:
        return "not run"
    found = summary(values)
    return f"{found.mean:.2f}" + (f" ± {found.high - found.mean:.2f}" if found.n > 1 else "")


def judge(store, published="published.csv"):
    """Every line of the file with its verdict."""
    with open(published, newline="", encoding="utf-8") as file:
        lines = [(get_strategy(line["strategy"]).name, line["rival"] and get_strategy(line["rival"]).name, float(line["number"]),
                  line["where"]) for line in csv.DictReader(file)]
    ours = reported(store.runs(task.name, PROFILE, PROTOCOL))
    pool = pooled([[*ours[strategy].values()] for strategy, rival, *_ in lines if not rival])
    return [statement(strategy, rival, number, ours, where) if rival else cell(strategy, number, ours, pool, where)
            for strategy, rival, number, where in lines]


def decide(rows, store):
    """What would settle each open statement: sentences, with the command to run."""
    runs, said = store.runs(task.name, PROFILE, PROTOCOL), []
    done = {(run.strategy, run.seed) for run in runs}
    for row in (row for row in rows if row.verdict == OPEN):
        if not row.decides:
            said.append(f"{row.where}: no number of seeds up to {LIMIT} would decide it at this mean and spread.")
            continue
        names, seeds = row.what.split(" - "), first_seeds(row.decides)
        todo = [Config(task.name, name, seed, PROTOCOL, PROFILE) for seed in seeds for name in names if (name, seed) not in done]
        with known_as_registered(task):
            price = cost_text(todo, runs)
        which = " ".join(f'"{name}"' for name in names)
        command = f"dals benchmark task.py:task --protocol {PROTOCOL} --strategy {which} --seeds {seeds_text(seeds)}"
        said.append(f"{row.where}: by estimate {row.decides} seeds would decide it, {row.decides - row.seeds} more, {price}: `{command}`")
    return said
