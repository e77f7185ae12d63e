"""The front page: every number of its findings, in the order in which they stand, computed again from the files with pandas and scipy.

Nothing of the library is called but for two things that have second implementations in tests of their own: the verdicts on the parts of the
claims (test_claims.py) and the corrected comparisons of the ablation (test_ablation.py)."""
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from dals.paper.ablation import primary
from dals.paper.claims import by_claim, claims_verdict, overall, rulings
from dals.paper.tables import table2, table2_verdict
from dals.lab.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAPER = pd.read_csv(ROOT / "dals" / "paper" / "data" / "table2_benchmark.csv").set_index("strategy")
STLR, UNDONE = "STLR+Discriminative", "undo decay applied twice"
B, A, TREC, CIFAR = "synthetic-released", "synthetic", "trec6+minilm-l6", "cifar10+jpeg"


@pytest.fixture(scope="module")
def files():
    "One row a record"
    rows = []
    for path in (ROOT / "results").glob("*/*/*/*/*.json"):
        run, (task, profile, protocol, strategy, _) = json.loads(path.read_text(encoding="utf-8")), path.parts[-5:]
        best, final = run["best_accuracy"] or 0.0, run["final_accuracy"] or 0.0
        rows.append({"task": task, "profile": profile, "protocol": protocol, "strategy": strategy, "seed": run["seed"],
                     "variant": run["variant"], "best": best, "final": final, "last": 0.0 if run["diverged"] else final,
                     "epochs_to": run["epochs_to"]})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def some(files, task, protocol, profile="paper", variant=None, seeds=range(10)):
    chosen = files[(files.task == task) & (files.protocol == protocol) & (files.profile == profile) & files.seed.isin(seeds)]
    return chosen if variant is any else chosen[chosen.variant.isna() if variant is None else chosen.variant == variant]


def wide(frame, value):
    "seed x strategy, in the order of the paper's table, seeds that everybody has"
    return frame.pivot(index="seed", columns="strategy", values=value).reindex(columns=PAPER.index).dropna()


def numbers(readme, start):
    "The numbers of the paragraph that starts so, without those in names"
    (line,) = [line for line in readme.splitlines() if line.startswith(start)]
    line = re.sub(r"\]\([^)]*\)|TREC-6|CIFAR-10|MiniLM-L6-v2|\bC\d\w?\b|^\d\. ", " ", line)
    return re.findall(r"[+−]?\d+(?:\.\d+)?", line)


def signed(x):
    return f"{x:+.2f}".replace("-", "−")


def t_interval(differences):
    "Mean, low, high as they are printed"
    found = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return [signed(differences.mean()), signed(found.low), signed(found.high)]


def measures(files, task, protocol, published):
    "Pooled spread, cells that agree, distances, rank correlation with its interval, and the best constant"
    plain = some(files, task, protocol)
    own = some(files, task, protocol, seeds=[42])
    frame = pd.concat([plain, own[~own.strategy.isin(plain.strategy)]])
    cells = frame.groupby("strategy").best.agg(["mean", "var", "count"]).loc[PAPER.index]
    df = int((cells["count"] - 1).sum())
    sd = math.sqrt((cells["var"].fillna(0) * (cells["count"] - 1)).sum() / df)
    paper, away = PAPER[published], (cells["mean"] - PAPER[published]).abs()
    allowed = stats.t.ppf(0.975, df) * sd * (1 + 1 / cells["count"]) ** 0.5 + 0.05
    rho, n = stats.spearmanr(cells["mean"], paper).statistic, len(paper)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    held = {c / 100: int(((paper - c / 100).abs() <= 0.8 + 1e-9).sum()) for c in range(0, 10001)}
    best = max(held.values())
    return {"cells": cells, "agree": int((away <= allowed).sum()), "unmet": away > allowed, "mean": away.mean(), "median": away.median(),
            "rho": [f"{rho:.2f}", *(f"{math.tanh(math.atanh(rho) + sign * half):.2f}" for sign in (-1, 1))],
            "within": int((away <= 0.8 + 1e-9).sum()), "constant": best, "constants": {c for c, k in held.items() if k == best}}


def mean_rank(table):
    "name -> mean rank over seeds"
    return table.rank(axis=1, ascending=False).mean()


def rank_words(table, name):
    "Mean rank with its t interval, within 1 and the number of strategies"
    ranks = table.rank(axis=1, ascending=False)[name]
    found = stats.ttest_1samp(ranks, 0).confidence_interval(0.95)
    return [f"{ranks.mean():.1f}", f"{max(1, found.low):.1f}", f"{min(table.shape[1], found.high):.1f}"]


def sign_flip(differences):
    "All patterns of signs, counted"
    d = differences.to_numpy()
    return stats.permutation_test((d,), lambda x: x.sum(), permutation_type="samples", n_resamples=10**6, vectorized=False).pvalue


def apart(table):
    "The first by its mean, and how many others Holm's correction leaves level with it"
    first = table.mean().idxmax()
    ps = sorted(sign_flip(table[first] - table[name]) for name in table if name != first)
    adjusted = pd.Series([p * (len(ps) - i) for i, p in enumerate(ps)]).cummax()
    return first, int((adjusted > 0.05).sum())


def both(files, task, profile="paper"):
    "Last epochs at the text's and at the tuned rates, over common seeds"
    old, new = (wide(some(files, task, protocol, profile), "last") for protocol in ("paper", "tuned"))
    seeds = old.index.intersection(new.index)
    return old.loc[seeds], new.loc[seeds]


def test_the_three_sentences(files, readme):
    code = measures(files, B, "released", "synthetic")
    highest = max(some(files, A, protocol).groupby("strategy").best.mean().max() for protocol in ("released", "paper"))
    printed = PAPER.synthetic
    assert numbers(readme, "1. **") == [str(code["agree"]), "18", "18", f"{highest:.1f}", str(printed.min()), str(printed.max())]
    standing = [ruling for found in by_claim(rulings(Store(local="_none").runs(variant="*"))).values() for ruling in found]
    votes = [ruling for ruling in standing if ruling.ground and ruling.part.votes]
    words = [ruling.verdict for ruling in votes]
    own = [ruling for ruling in votes if ruling.verdict in ("holds", "does not hold") and "+" not in ruling.ground.task]
    decided = words.count("holds") + words.count("does not hold")
    counts = [words.count(word) for word in ("holds", "does not hold", "open", "no information")]
    assert numbers(readme, "2. **") == list(map(str, [len(votes), *counts, len(own), decided]))
    old, new = both(files, TREC, "cpu")
    assert numbers(readme, "3. **") == [f"{mean_rank(old)[STLR]:.1f}", "18", f"{mean_rank(new)[STLR]:.1f}", str(len(old))]


def test_the_synthetic_column(files, readme):
    code, text = (measures(files, B, protocol, "synthetic") for protocol in ("released", "paper"))
    table3 = pd.read_csv(ROOT / "dals" / "paper" / "data" / "table3_convergence.csv").set_index("strategy")
    own = some(files, B, "released", seeds=[42]).set_index("strategy").epochs_to
    met = sum(own[name][level] == table3.loc[name, f"epochs_to_{level}"] for name in table3.index for level in ("60", "70", "80", "90"))
    found = numbers(readme, "- **The synthetic column.")
    assert float(found.pop(12)) in code["constants"]
    assert found == [str(code["agree"]), "18", f"{code['mean']:.2f}", f"{code['median']:.2f}", *code["rho"], str(text["agree"]), "18",
                     str(code["within"]), "18", "0.8", "0.8", str(code["constant"]), "3", str(met), "24"]
    (line,) = [line for line in readme.splitlines() if line.startswith("- **The synthetic column.")]
    assert line.count("(not " + " and ".join(code["unmet"].index[code["unmet"]]) + ")") == 1


def test_dals_among_the_first(files, readme):
    table = wide(some(files, B, "released"), "best")
    means, tops = table.mean(), table.eq(table.max(axis=1), axis=0)
    at_top = tops.sum(axis=1)[tops["DALS"]]
    first, level = apart(table)
    margin = 100 * math.sqrt(means[first] / 100 * (1 - means[first] / 100) / 2000)
    found = numbers(readme, "- **DALS is")
    assert found == [str(int(means.rank(ascending=False)["DALS"])), f"{means['DALS']:.2f}", f"{means.max():.2f}",
                     str((at_top == 1).sum()), "10", str((at_top > 1).sum()), str(level), f"{margin:.2f}"]
    (line,) = [line for line in readme.splitlines() if line.startswith("- **DALS is")]
    near = all(stats.ttest_1samp(table["DALS"] - table[name], -margin, alternative="greater").pvalue < 0.05
               for name in table if name != "DALS")
    assert ("DALS lies within" in line) == near and f"first, {first}." in line and "is not alone at the top" in line


def test_the_catastrophe_task_by_task(files, readme):
    def mean(task, protocol, profile="paper", variant=None, name=STLR):
        frame = some(files, task, protocol, profile, variant)
        return frame[frame.strategy == name].best.mean()
    plain, undone = (some(files, TREC, "released", "cpu", variant).query("strategy == @STLR").set_index("seed").best
                     for variant in (None, UNDONE))
    gained = (undone - plain).dropna()
    old, new = both(files, TREC, "cpu")
    search = some(files, f"{TREC}+validation", "tuned", "cpu", seeds=[1000, 1001], variant=any).query("strategy == @STLR")
    scores = search.groupby("variant")["last"].mean()
    rate = float(scores[scores >= scores.max() - 1e-9].index[0][1:])
    full = {name: mean(TREC, "released", name=name) for name in (STLR, "Discriminative LR")}
    assert numbers(readme, "- **The catastrophe") == [
        f"{mean(A, 'released'):.1f}", f"{mean(A, 'released', variant=UNDONE):.1f}", f"{mean(A, 'released', name='Fixed SGD'):.1f}",
        *t_interval(gained), str(len(gained)), f"{mean(TREC, 'paper', 'cpu'):.1f}",
        str(int(mean_rank(old).rank()[STLR])), "18", f"{rate:.0f}", f"{new[STLR].mean():.1f}", str(int(mean_rank(new).rank()[STLR])),
        "1600", "3", f"{full[STLR]:.1f}", f"{PAPER.loc[STLR, 'trec6']}", f"{full['Discriminative LR']:.1f}",
        f"{mean(TREC, 'released', variant=UNDONE):.1f}"]


def test_trec_6_on_the_smaller_encoder(files, readme):
    found, trec = numbers(readme, "- **TREC-6"), measures(files, TREC, "released", "trec6")
    assert float(found.pop(-2)) in trec["constants"]
    count = trec["cells"]["count"]
    assert found == ["3", "2", "10", str(count.min()), str(count.max()), str(trec["agree"]), "18", *trec["rho"], f"{trec['median']:.2f}",
                     f"{trec['mean']:.2f}", str(trec["within"]), "18", "0.8", str(trec["constant"])]


def test_best_against_last_epoch(files, readme):
    lost = some(files, B, "released").assign(lost=lambda frame: frame.best - frame.final).groupby("strategy").lost.mean()
    found = [float(number) for number in numbers(readme, "- **The best epoch")]
    assert found == pytest.approx([lost.mean(), lost.max()], abs=0.00501)  # 1.735 may be rounded either way
    assert f"for {lost.idxmax()}." in readme


def test_claims_by_name(readme):
    (line,) = [line for line in readme.splitlines() if line.startswith("- **The [nine claims]")]
    said = {"holds": "yes", "does not hold": "not", "holds in part": "in part", "open": "open"}
    groups = dict(re.findall(r"((?:C\d(?:, | and )?)+): (yes|not|in part|open)", line))
    found = {claim: word for names, word in groups.items() for claim in re.findall(r"C\d", names)}
    standing = by_claim(rulings(Store(local="_none").runs(variant="*")))
    assert found == {claim: said[overall(rows)] for claim, rows in standing.items()}
    assert str(sum(map(len, standing.values()))) == numbers(readme, "- **The [nine claims]")[0]


def test_tuning(files, readme):
    expected = []
    for task in (A, B):
        old, new = both(files, task)
        kept = {*mean_rank(old).nsmallest(5).index} & {*mean_rank(new).nsmallest(5).index}
        first, level = apart(new)
        assert f"apart from the first, {first}" in readme
        expected += [str(len(kept)), *rank_words(old, "DALS"), *rank_words(new, "DALS"), str(level)]
    assert numbers(readme, "- **Tuning.") == expected


def test_the_parts_of_dals(readme):
    asked = primary(Store(local="_none"))  # recomputed in test_ablation.py
    parts = ("schedule", "filter", "depth", "phases", "trust ratio")

    def words(name):
        return [signed(x) for x in asked[name].paired[1:4]]
    expected = [str(len(asked))]
    for ending in ("", " at equal rates"):
        expected += [word for part in parts if asked[part + ending].adjusted < 0.05 for word in words(part + ending)]
    coin = asked["coin minus detector"]
    expected += [*words("DALS minus the rival"), str(coin.paired.n), *words("coin minus detector"), f"{coin.adjusted:.2f}"]
    assert numbers(readme, "- **The five parts of DALS") == expected


def test_what_the_cuts_show(files, readme):
    expected, verbs = [], []
    for task, budget in ((TREC, ["3", "1600", "3"]), (CIFAR, ["5000", "5"])):
        whole, rival = (some(files, task, "ablation", "cpu", name).set_index("seed")["last"]
                        for name in ("schedule+filter+depth+phases+trust_ratio", "schedule"))
        tuned = wide(some(files, task, "tuned", "cpu"), "last")
        gained, rates = whole - rival, tuned["DALS"] - tuned["Cosine Decay SGD"]
        expected += [*budget, *t_interval(gained), str(len(gained)), *t_interval(rates), str(len(rates))]
        low, high = (float(word.replace("−", "-")) for word in t_interval(gained)[1:])
        verbs.append("gain" if low > 0 else "lose" if high < 0 else "do not show an effect")
    assert numbers(readme, "- **At a cut") == expected
    assert f"the five parts {verbs[0]} on TREC-6 and {verbs[1]} on CIFAR-10" in readme


def test_the_table_of_the_synthetic_column(files, readme):
    columns = {protocol: measures(files, B, protocol, "synthetic") for protocol in ("released", "paper")}
    for name in PAPER.index:
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {name} | ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for protocol, (shown, last, verdict) in (("released", cells[3:6]), ("paper", cells[6:9])):
            found = columns[protocol]
            rows = some(files, B, protocol).query("strategy == @name")
            half = stats.t.ppf(0.975, len(rows) - 1) * rows.best.sem()
            found_here = [float(number) for number in re.findall(r"\d+\.\d+|\d+", shown)[:3]]
            assert found_here == pytest.approx([rows.best.mean(), half, len(rows)], abs=0.00501)
            assert float(last) == pytest.approx(rows.final.mean(), abs=0.00501)
            assert verdict == ("differs" if found["unmet"][name] else "agrees")
            assert (", " in shown) == (abs(rows.best.mean() - PAPER.synthetic[name]) > 0.8)


def test_the_other_columns(files, readme):
    section = readme[readme.index("## The other four columns"):readme.index("## Run it")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8
    for row in rows:
        published, task = {"CIFAR-10": ("cifar10", CIFAR), "RTE": ("rte", "rte+minilm-l6"), "TREC-6": ("trec6", TREC),
                           "IMDb": ("imdb", "imdb+minilm-l6")}[row[0]]
        if row[9] == "not run":
            assert not len(files[(files.task == task) & (files.protocol == row[1])]) and set(row[2:7]) | {row[8]} == {""}
            continue
        protocol, budget = row[1].split(", ")
        profile = "paper" if budget == "full" else "cpu"
        plain, own = some(files, task, protocol, profile), some(files, task, protocol, profile, seeds=[42])
        frame = pd.concat([plain, own[~own.strategy.isin(plain.strategy)]])
        cells = frame.groupby("strategy").best.agg(["mean", "count"]).loc[PAPER.index]
        assert row[2] == " to ".join(map(str, dict.fromkeys([cells["count"].min(), cells["count"].max()])))
        tied = cells.index[cells["mean"] > cells["mean"].max() - 1e-9]
        assert row[4].split(" ", 1)[1] == " and ".join(tied) and row[5].split(" ", 1)[1] == cells["mean"].idxmin()
        shown = [float(row[3]), float(row[4].split()[0]), float(row[5].split()[0]), float(row[6])]
        assert shown == pytest.approx([cells["mean"].median(), cells["mean"].max(), cells["mean"].min(), cells["mean"]["DALS"]], abs=0.0501)
        if row[8]:
            assert row[8].split()[0] == f"{stats.spearmanr(cells['mean'], PAPER[published]).statistic:.2f}".replace("-", "−")


def test_the_page_opens_with_the_same_numbers(readme):
    store = Store(local="_none")
    pages = [table2_verdict(table2(store.runs())), claims_verdict(rulings(store.runs(variant="*")))]
    first, second = ([*re.findall(r"\d+(?:\.\d+)?", said)] for said in pages)
    assert first == numbers(readme, "1. **The numbers") and second[1:-1] == numbers(readme, "2. **The conclusions")
