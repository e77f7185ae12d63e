"The published store: every record is whole, is what today's settings would ask for, and holds up what the README says of it."
import json
import math
import re
import statistics
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dals.paper.published import SEED42, TABLE2, TABLE3
from dals.paper.tables import column_measures, table2, table2_html, table2_notes
from dals.recipes.released import VARIANTS
from dals.lab.records import Config
from dals.lab.store import Store
from dals.lab.training import settings
from dals.recipes.strategies import STRATEGIES
from dals.lab.tasks import get_task
from dals.lab.tuning import TUNING_SEEDS, choice, rates

RUNS = Store(local="_none").runs(variant="*")
TABLES = [run for run in RUNS if run.variant is None]
SYNTHETIC = ["synthetic-released", "synthetic"]
SEEDS = range(10)
TUNED = [("synthetic", "paper", SEEDS), ("synthetic-released", "paper", SEEDS), ("cifar10+jpeg", "cpu", (*range(5), 42)),
         ("trec6+minilm-l6", "cpu", (*range(5), 42))] # searched


def best(task, profile, strategy, protocol="paper", seeds=SEEDS):
    return {run.seed: run.best_accuracy for run in TABLES
            if (run.task, run.profile, run.protocol, run.strategy) == (task, profile, protocol, strategy) and run.seed in seeds}


def test_every_record_has_the_settings_that_the_code_has_today():
    assert RUNS
    for run in RUNS:
        if run.variant and run.variant.startswith("validation-"):
            continue  # chosen by an experiment that scales the multiplier itself
        asked_for = run.config["overrides"] if run.protocol in ("tuned", "ablation") else VARIANTS[run.variant].undo if run.variant else {}
        asked = settings(Config(run.task, run.strategy, run.seed, run.protocol, run.profile, asked_for, run.variant))
        assert {**run.config, **asked} == run.config, (run.task, run.strategy, run.seed, run.variant)


def test_the_store_holds_records_and_nothing_that_a_stopped_run_left():
    assert [path for path in Path(Store().published).rglob("*") if path.is_file() and path.suffix != ".json"] == []


def test_every_record_of_a_table_is_a_whole_run_of_a_clean_commit():
    for run in RUNS:
        assert run.diverged or len(run.history) == run.config["epochs"]
        if run.history:
            assert run.best_accuracy == max(row["test_accuracy"] for row in run.history)
        if not (run.variant or "").startswith("validation-"):
            assert len(run.commit) == 40, (run.task, run.strategy, run.seed, run.commit)


@pytest.mark.parametrize("protocol", ["released", "paper"])
@pytest.mark.parametrize("task", SYNTHETIC)
def test_both_synthetic_columns_have_ten_seeds_and_the_papers_own(task, protocol):
    for name in STRATEGIES:
        assert set(best(task, "paper", name, protocol, range(100))) >= {*SEEDS, 42}, name


@pytest.mark.parametrize("task", SYNTHETIC)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_seed_42_meets_the_released_code(strategy, task):
    assert abs(best(task, "paper", strategy, "released", [42])[42] - SEED42[strategy][task][0]) <= 0.5


def test_the_means_of_ten_seeds_are_near_the_paper():
    off = {name: abs(statistics.fmean(best("synthetic-released", "paper", name, "released").values()) - TABLE2[name]["synthetic"])
           for name in STRATEGIES}
    assert sum(value <= 0.8 for value in off.values()) >= 15, off
    assert max(off.values()) <= 1.3, off
    assert statistics.fmean(off.values()) <= 0.5, off


def test_table_3_is_met_at_the_papers_seed():
    own = ("synthetic-released", "paper", "released", 42)
    runs = {run.strategy: run for run in TABLES if (run.task, run.profile, run.protocol, run.seed) == own}
    levels = [(name, level) for name in TABLE3 for level in ("60", "70", "80", "90")]
    assert len(levels) == 24
    assert sum(runs[name].epochs_to[level] == TABLE3[name][level] for name, level in levels) >= 21


@pytest.mark.parametrize("task", SYNTHETIC)
def test_five_draws_of_the_data(task):
    found = {(run.strategy, run.task) for run in TABLES if run.task.startswith(f"{task}+draw-") and run.protocol == "released"}
    assert found >= {(name, f"{task}+draw-{number}") for name in ("Fixed SGD", "SGDR", "DALS") for number in range(1, 6)}
    prints = {run.data["fingerprint"] for run in TABLES if run.task.partition("+")[0] == task}
    assert len(prints) == 6


@pytest.mark.parametrize("task, profile, seeds", TUNED)
def test_every_strategy_was_tuned_with_the_whole_budget_and_reported_with_other_seeds(task, profile, seeds):
    store = Store(local="_none")
    for name in STRATEGIES:
        found = choice(task, name, store, profile)
        own = (task, profile, "tuned", name)
        reported = {run.seed: run for run in TABLES if (run.task, run.profile, run.protocol, run.strategy) == own}
        assert set(reported) >= set(seeds) and not set(reported) & set(TUNING_SEEDS)
        for run in reported.values():
            assert run.config["overrides"] == rates(task, name, found.step) and "held out" not in run.data["copy"]


@pytest.mark.parametrize("strategy", ["Fixed SGD", "AdamW"])
def test_the_cut_of_trec_is_enough_to_learn(strategy):
    "The stand-in beats the majority class by 40 points on the test split that the tables show"
    assert min(best("trec6+minilm-l6", "cpu", strategy, seeds=range(100)).values()) > get_task("trec6+minilm-l6").chance + 40


@pytest.mark.parametrize("protocol", ["released", "paper"])
@pytest.mark.parametrize("task", ["synthetic", "synthetic-released", "cifar10+jpeg", "rte+minilm-l6", "trec6+minilm-l6"])
def test_no_cell_of_the_cpu_cut_is_empty(task, protocol):
    own = get_task(task).budget("cpu")
    for name in STRATEGIES:
        runs = [run for run in TABLES if (run.task, run.profile, run.protocol, run.strategy, run.seed) == (task, "cpu", protocol, name, 42)]
        assert len(runs) == 1 and runs[0].best_accuracy is not None and not runs[0].diverged, name
        data, config = runs[0].data, runs[0].config
        assert (data["train"], data["test"], config["epochs"]) == (own.train_examples, own.test_examples, own.epochs)
        assert own.epochs >= 1 and own.train_examples >= 1000


def test_the_cut_fills_both_protocols_in_under_three_hours_on_two_cores_each():
    for protocol in ("released", "paper"):
        seconds = [run.seconds for run in TABLES if (run.profile, run.protocol, run.seed) == ("cpu", protocol, 42)]
        assert len(seconds) == 5 * 18 and sum(seconds) / 2 < 3 * 3600


def test_the_records_of_the_four_columns_say_what_stands_in_and_what_it_held_in_memory():
    for run in TABLES:
        if run.task.startswith(("cifar10", "rte", "imdb")):
            on_gpu = run.device.startswith("cuda")
            texts = "bfloat16" if run.task.startswith("imdb") else "float32" # whose cut takes the fast path
            assert (run.precision, run.compiled) == (("bfloat16", True) if on_gpu else (texts, False))
            assert (run.together, run.threads) == (1, 1) and 500 < run.peak_memory < (8000 if on_gpu else 6000) # MiB
            assert run.backbone == "all-MiniLM-L6-v2" or "not the original pixels" in run.data["copy"]


# Table 2 once more, from the files, with pandas and scipy: nothing below calls the library but for what it has to say.
ROOT = Path(__file__).parents[1]
PAPER = pd.read_csv(ROOT / "dals" / "paper" / "data" / "table2_benchmark.csv").set_index("strategy")
COMMONEST = {"synthetic-released": 1022 / 2000, "synthetic": 183 / 1600, "cifar10": 0.1, "rte": 146 / 277, "trec6": 138 / 500, "imdb": 0.5}
PROTOCOLS = {"released": "released", "paper": "text"}  # and how the table calls them
COLUMNS = [(task, protocol) for task in COMMONEST for protocol in PROTOCOLS]
FILLED = [(task, protocol) for task, protocol in COLUMNS
          if any(path.parts[-3].split("+")[0] == task for path in (ROOT / "results").glob(f"{task}*/*/{protocol}"))]


@pytest.fixture(scope="module")
def files():
    "All records that may stand in table 2, one row each."
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").rglob("*.json"))]
    found = pd.json_normalize([record for record in read if record.get("variant") is None and record["protocol"] in PROTOCOLS
                               and record["profile"] in ("paper", "cpu") and not re.search(r"\+draw-|\+validation", record["task"])])
    found["column"] = found["task"].str.split("+").str[0]
    return found


def own_column(files, task, protocol):
    "The records of one kind: most strategies, then the paper's own task, then the full budget, then most records."
    mine = files[(files["column"] == task) & (files["protocol"] == protocol)]
    data = [f"data.{part}" for part in ("copy", "fingerprint", "train", "test")]
    kinds = mine.groupby(["task", "profile", "config.epochs", "config.batch_size", *data])
    return max((kind for _, kind in kinds), key=lambda kind: (
        kind["strategy"].nunique(), "+" not in kind["task"].iloc[0], kind["profile"].iloc[0] == "paper", len(kind)))


def judged(files, task, protocol):
    "Mean, n, bound and verdict of each strategy of a column, and the column's pool."
    kind = own_column(files, task, protocol)
    alone = kind.groupby("strategy")["seed"].transform("nunique") == 1
    kind = kind[(kind["seed"] != 42) | alone].dropna(subset="best_accuracy")
    rows = kind.groupby("strategy")["best_accuracy"].agg(["mean", "count", "var"]).reindex(PAPER.index).dropna(subset="mean")
    free = rows["count"] - 1
    df, squares = int(free.sum()), float((free * rows["var"]).sum())
    spread = math.sqrt(squares / df) if df else math.nan
    size = int(kind["data.test"].iloc[0])
    right = np.floor(rows["mean"] * size / 100 + 1e-6).astype(int)
    rows["p"] = [stats.binomtest(count, size, COMMONEST[task], alternative="greater").pvalue for count in right]
    ordered = rows["p"].sort_values()
    rows["holm"] = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    rows["paper"] = PAPER["synthetic" if task.startswith("synthetic") else task]
    rows["bound"] = stats.t.ppf(0.975, df) * spread * np.sqrt(1 + 1 / rows["count"]) + 0.05 if df >= 5 else math.nan
    inside = (rows["mean"] - rows["paper"]).abs() <= rows["bound"]
    whose, profile = kind[["task", "profile"]].iloc[0]
    what = ["other data"] * (task == "synthetic") + ["stand-in"] * ("+" in whose) + ["cut"] * (profile != "paper")
    words = [" ".join([*what, word]) for word in ("near", "far")] if what else ["agrees", "differs"]
    rows["verdict"] = np.where(rows["holm"] > 0.05, "at chance", np.where(df < 5, "too few seeds", np.where(inside, *words)))
    return rows, spread, df


@pytest.fixture(scope="module")
def shown():
    return table2(Store(local="_none").runs())


@pytest.mark.parametrize("task, protocol", FILLED)
def test_every_cell_of_table_2_is_what_its_files_say(files, shown, task, protocol):
    rows, spread, df = judged(files, task, protocol)
    assert shown.pools[task, protocol].df == df and shown.pools[task, protocol].sd == pytest.approx(spread, nan_ok=True)
    for strategy in PAPER.index:
        cell = shown.cells[strategy, task, protocol]
        if strategy not in rows.index:
            assert not cell.best
            continue
        row = rows.loc[strategy]
        assert (cell.verdict, len(cell.best), cell.paper) == (row["verdict"], row["count"], row["paper"]), strategy
        assert statistics.fmean(cell.best) == pytest.approx(row["mean"])
        if cell.bound is not None:
            assert cell.bound == pytest.approx(row["bound"]) and row["holm"] <= 0.05
        if cell.verdict == "agrees":
            assert abs(cell.paper - row["mean"]) <= row["bound"] and df >= 5 and "+" not in shown.chosen[task, protocol][0].task


def test_the_page_prints_these_cells_with_their_bounds_and_pools(files, shown):
    head, body = re.search(r"<thead>(.*?)</thead>(.*?)</table>", table2_html(shown), re.S).groups()
    pools = re.findall(r"--protocol \w+</span></code>(.*?)</th>", head)
    cells = [re.findall(r"<td(?! class)[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", body, re.S)]
    assert len(pools) == len(COLUMNS) and {len(row) for row in cells} == {len(COLUMNS)} and len(cells) == len(PAPER)
    for i, column in enumerate(COLUMNS):
        if column not in FILLED:
            assert all(re.findall(r'class="v [\w-]+">([^<]*)<', row[i]) == ["not run"] for row in cells)
            continue
        rows, spread, df = judged(files, *column)
        assert (f"s<sub>p</sub> = {spread:.2f}, df = {df}" if df else "df = 0") in pools[i]
        assert ("no information" in pools[i]) == (rows["verdict"] == "at chance").all()
        for j, strategy in enumerate(PAPER.index):
            if strategy not in rows.index:
                continue
            row, text = rows.loc[strategy], unescape(cells[j][i])
            away = f"{round(row['mean'] - row['paper'], 6):+.2f}".replace("-", "−")
            (word,) = re.findall(r'class="v [\w-]+">([^<]*)<', text)
            ((colour, distance),) = re.findall(r'class="d( off)?">([^<]*)<', text)
            assert word == row["verdict"] and bool(colour) == (word.split()[-1] in ("differs", "far"))
            assert distance == (away if row["holm"] > 0.05 or df < 5 else f"{away}, bound {row['bound']:.2f}")
            assert abs(float(re.search(r"<b>([\d.]+)</b>", text)[1]) - row["mean"]) < 0.00501 and "± 0.00" not in text


@pytest.mark.parametrize("task, protocol", FILLED)
def test_the_measures_of_every_column_are_what_its_files_say(files, shown, task, protocol):
    rows, _, df = judged(files, task, protocol)
    found, away = column_measures(shown, task, protocol), (rows["mean"] - rows["paper"]).abs().round(6)
    counts = [rows["verdict"].str.contains(words).sum() for words in ("agrees|differs|near|far", "agrees|near", "at chance")]
    assert found[:4] == (len(rows), *counts) and (found.within, found.df) == ((away <= 0.8).sum(), df)
    assert (found.mean, found.median) == pytest.approx((away.mean(), away.median()))
    r = rows[["mean", "paper"]].round(6).rank().corr().iloc[0, 1]
    half = 1.959964 * math.sqrt((1 + r * r / 2) / (len(rows) - 3))
    interval = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    assert (found.rank, found.low, found.high) == pytest.approx((r, *interval), abs=1e-4)
    constants = np.arange(0, 100.01, 0.05)
    assert found.constant_within == (np.abs(rows["paper"].to_numpy()[:, None] - constants) <= 0.8 + 1e-9).sum(0).max()
    assert found.first == tuple(rows.index[rows["mean"] > rows["mean"].max() - 1e-9])


def test_the_notes_name_every_pair_that_is_one_run_and_the_factors_of_the_rates(files, shown):
    notes, pairs = table2_notes(shown), 0
    for task, protocol in FILLED:
        kind = own_column(files, task, protocol)
        paths = {(row.strategy, row.seed): [(epoch["train_loss"], epoch["test_accuracy"]) for epoch in row.history]
                 for row in kind.itertuples()}
        names = sorted(kind["strategy"].unique(), key=list(PAPER.index).index)
        for i, a in enumerate(names):
            for b in names[i + 1:]:
                both = [seed for seed in kind["seed"].unique() if (a, seed) in paths and (b, seed) in paths]
                if both and all(paths[a, seed] == paths[b, seed] for seed in both):
                    pairs += 1
                    assert any(f"{PROTOCOLS[protocol]} " in note and (f"{a} and {b} are the same run" in note or f"{b} and {a} are" in note)
                               for note in notes)
        factors = set(kind["config.multiplier"].dropna())
        named = [note for note in notes if "rates are the paper's times 3" in note and task.upper()[:4] in note.upper().split(":")[0]]
        assert (factors != {1.0}) == bool(named)
    assert pairs == sum("same run" in note for note in notes)
