"Claims in parts: every verdict on the published records by a second implementation; made-up records where the right verdict is plain."
import itertools
import json
import math
import random
import re
import statistics
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dals.paper.claims import (
    BESIDE, COMMONEST, CUT, ENOUGH, FAILS, HOLDS, JUDGES, LIMIT, LISTED, NOTHING, OPEN, OWN, PAPER, PAPERS, PARTLY, PARTS, REHEARSAL,
    RULE, STANDIN, by_claim, claims_html, claims_rows, floor, gather, Ground, headline, needed, overall, Ruling, rulings, shown,
    standing,
)
from dals.paper.published import CLAIMS, TABLE2
from dals.lab.render import save_table
from dals.lab.store import Store
from dals.recipes.strategies import STRATEGIES
from dals.lab.records import Config, Run
from dals.lab.training import settings

ROOT = Path(__file__).parents[1]
PART = {part.name: part for part in PARTS}
NAMES = [*TABLE2]
STLR, DISC, FIXED, COSINE = "STLR+Discriminative", "Discriminative LR", "Fixed SGD", "Cosine Decay SGD"
TRIO = ["DALS", "DALS-Fast", "DALS-Acc"]
UNDONE, ALL_UNDONE = "undo decay applied twice", "undo all of STLR"
FLAT = dict.fromkeys(TABLE2, 96.0)
SCRATCH, TREC, TREC_CUT = ({"task": "synthetic-released"}, {"task": "trec6+minilm-l6"}, {"task": "trec6+minilm-l6", "profile": "cpu"})


# ---- the second implementation: pandas and scipy on the files; of the library it takes the grounds of a part and its number of seeds

class Second:
    "Verdicts from the JSON of records, without the library's reading, sorting, testing or judging."
    FIVE = {"synthetic": "synthetic-released", "cifar10": "cifar10", "rte": "rte", "trec6": "trec6", "imdb": "imdb"}

    def __init__(self, records):
        rows = []
        for run in records:
            kind = (run["backbone"], run["config"]["epochs"], run["config"]["batch_size"], *run["data"].values())
            epoch, keys = run["epochs_to"]["90"], ("task", "protocol", "profile", "strategy", "variant", "seed")
            rows.append({key: run[key] for key in keys} | {
                "best": run["best_accuracy"] or 0.0, "last": run["final_accuracy"] or 0.0, "epoch": epoch or run["config"]["epochs"] + 1,
                "reached": bool(epoch), "test": run["data"]["test"], "kind": str(kind)})
        self.all = pd.DataFrame(rows).fillna({"variant": ""})
        self.all = self.all[(self.all.seed < 1000) & (self.all.seed != 42)]
        self.frames = {}
        self.table2 = pd.read_csv(ROOT / "dals" / "paper" / "data" / "table2_benchmark.csv", index_col="strategy")
        self.table3 = pd.read_csv(ROOT / "dals" / "paper" / "data" / "table3_convergence.csv", index_col="strategy")
        self.family = pd.Series({name: strategy.family for name, strategy in STRATEGIES.items()})

    def at(self, task, protocol, profile, measure="best", variants=()):
        "Seeds down, strategies across; a variant's column is named after it alone."
        key = task, protocol, profile, measure, variants
        if key not in self.frames:
            self.frames[key] = self.pivoted(*key)
        return self.frames[key]

    def pivoted(self, task, protocol, profile, measure, variants):
        here = self.all[(self.all.task == task) & (self.all.protocol == protocol) & (self.all.profile == profile)]
        here = here[(here.variant == "") | (here.variant.isin(variants) & (here.strategy == STLR))]
        if here.kind.nunique() > 1: # never a mixture: the kind with most strategies
            here = here[here.kind == here.groupby("kind").strategy.nunique().idxmax()]
        here = here.assign(column=here.variant.where(here.variant != "", here.strategy))
        return here.pivot(index="seed", columns="column", values=measure)

    def size(self, ground):
        return int(self.all[(self.all.task == ground.task) & (self.all.profile == ground.profile)].test.min())

    @staticmethod
    def common(frame, names):
        return frame.reindex(columns=names).dropna()

    @staticmethod
    def holm(ps):
        ps = pd.Series(ps, dtype=float).sort_values()
        return (ps * np.arange(len(ps), 0, -1)).cummax().clip(upper=1)

    @staticmethod
    def t(d, boundary=0.0):
        "Two-sided p; a constant difference is certain."
        d = np.asarray(d, dtype=float)
        return float(stats.ttest_1samp(d, boundary).pvalue) if d.std() > 1e-9 else float(abs(d.mean() - boundary) < 1e-9)

    def sided(self, d, boundary=0.0, level=0.05):
        "holds above, does not hold below."
        if len(d) < 5: return OPEN
        return OPEN if self.t(d, boundary) > level else HOLDS if np.mean(d) > boundary else FAILS

    @staticmethod
    def binomial(hits, n, seeds=None):
        if (n if seeds is None else seeds) < 5 or n == 0: return OPEN
        return OPEN if stats.binomtest(int(hits), int(n)).pvalue > 0.05 else HOLDS if hits > n / 2 else FAILS

    @staticmethod
    def ends(d):
        "The 90 % t interval."
        d = np.asarray(d, dtype=float)
        if d.std() < 1e-9: return d.mean(), d.mean()
        return stats.ttest_1samp(d, 0).confidence_interval(0.90)

    def chance(self, ground):
        share = {"rte": 146 / 277, "trec6": 138 / 500, "imdb": 0.5}.get(ground.task.split("+")[0])
        last = self.at(*ground, "last").mean()
        if share is None or len(last) < 9: return False
        size = self.size(ground)
        ps = [stats.binom.sf(round(mean * size / 100) - 1, size, share) for mean in last]
        return self.holm(ps).min() > 0.05

    def survivors(self, protocol, task="synthetic-released"):
        frame = self.common(self.at(task, protocol, "paper"), NAMES)
        if len(frame) < 5: return None
        best = frame.mean().idxmax()
        ps = self.holm({name: self.t(frame[best] - frame[name]) for name in NAMES if name != best})
        return {best, *ps[ps > 0.05].index}

    def not_beaten(self, ground, name, rivals):
        frame = self.common(self.at(*ground), [name, *rivals])
        if len(frame) < 5: return OPEN
        mean, size = frame[name].mean() / 100, self.size(ground)
        margin = 100 * math.sqrt(mean * (1 - mean) / size)
        lead = frame[rivals].sub(frame[name], axis=0)
        if all(self.ends(lead[rival])[1] < margin for rival in rivals): return HOLDS
        ps = self.holm({rival: self.t(lead[rival]) for rival in rivals})
        return FAILS if any(ps[rival] <= 0.05 and lead[rival].mean() > 0 for rival in rivals) else OPEN

    def gap(self, ground, variants=()):
        frame = self.common(self.at(*ground, variants=variants), [*NAMES, *variants])
        return frame, frame[[name for name in NAMES if name != STLR]].median(axis=1) - frame[STLR]

    def closes(self, gap, gain):
        "Whether something closes more than half of a gap."
        if len(gap) < 5: return OPEN
        return NOTHING if gap.mean() <= 0 or self.t(gap) > 0.05 else self.sided(gain - gap / 2)

    def front(self, ground):
        best, epoch = (self.common(self.at(*ground, measure), TRIO) for measure in ("best", "epoch"))
        if len(best) < 5: return OPEN
        mean, size = best.to_numpy().mean() / 100, self.size(ground)
        slack = 100 * math.sqrt(mean * (1 - mean) / size)

        def above(d):
            d = np.asarray(d, dtype=float)
            sums = np.array([np.dot(signs, d) for signs in itertools.product((-1, 1), repeat=len(d))])
            return (np.abs(sums) >= abs(d.sum()) - 1e-9).mean() if d.mean() > 0 else 1.0
        pairs = list(itertools.permutations(TRIO, 2))
        better = {(x, y, s): above(best[x] - best[y] + s) for x, y in pairs for s in (0, slack)}
        sooner = {(x, y, s): above(epoch[y] - epoch[x] + s) for x, y in pairs for s in (0, 0.5)}
        beaten = self.holm([max(sooner[x, y, 0], better[x, y, slack]) for x, y in pairs] + [max(better[x, y, 0], sooner[x, y, 0.5])
                                                                                            for x, y in pairs])
        traded = self.holm([max(sooner[x, y, 0], better[y, x, 0]) for x, y in pairs])
        return FAILS if beaten.min() <= 0.05 else HOLDS if (traded <= 0.05).sum() == 3 else OPEN

    def verdict(self, name, ground):
        "One part at one ground."
        if self.chance(ground): return NOTHING
        base = Ground("synthetic-released", ground.protocol, "paper")
        frame, epoch = self.at(*ground), self.at(*ground, "epoch")
        if name in ("C2a", "C2b", "C2c", "C2d", "C9a"):
            names = {"C2a": TRIO[1:2], "C2c": TRIO[:1], "C9a": TRIO}.get(name, TRIO[:2])
            epoch = self.common(epoch, names)
            if len(epoch) >= 5 and not self.at(*ground, "reached").reindex(columns=names).stack().astype(bool).any(): return NOTHING
        if name == "C1a":
            full = self.common(frame, NAMES)
            rest = full.drop(columns="DALS").max(axis=1) if len(full) else full.max(axis=1)
            return self.binomial((full["DALS"] > rest).sum(), len(full))
        if name == "C1b": return self.not_beaten(ground, "DALS", [n for n in NAMES if n != "DALS"])
        if name == "C6b":
            planned = ["SGDR", STLR, FIXED, "Grokfast", "SAM+Discriminative"]
            stand_in = "+" in ground.task and ground.profile == "paper"
            return self.not_beaten(ground, COSINE, planned if stand_in else [n for n in NAMES if n != COSINE])
        if name == "C2a": return self.binomial((epoch["DALS-Fast"] <= 3).sum(), len(epoch))
        if name == "C2c": return self.binomial((epoch["DALS"] >= 9).sum(), len(epoch))
        if name == "C2b":
            later = epoch["DALS"] - epoch["DALS-Fast"]
            return self.binomial((later > 0).sum(), (later != 0).sum(), len(later))
        if name == "C2d": return self.sided(np.log(epoch["DALS"] / epoch["DALS-Fast"]), math.log(3))
        if name == "C3a":
            sets = [alive for task in self.FIVE.values() if not self.chance(Ground(task, ground.protocol, "paper"))
                    and (alive := self.survivors(ground.protocol, task))]
            common = set.intersection(*sets) if sets else set(NAMES)
            same = len(sets) == 5 and len(common) == 1 and all(alive == common for alive in sets)
            return FAILS if same else OPEN if common else HOLDS
        if name == "C3b":
            alive = self.survivors(ground.protocol)
            if alive is None: return OPEN
            if "AdamW" in alive: return FAILS
            both = self.common(frame, ["AdamW", *alive])
            if len(both) < 5: return OPEN
            lead = {n: both["AdamW"] - both[n] for n in alive}
            ps = self.holm({n: self.t(d) for n, d in lead.items()})
            sure = {n: np.sign(lead[n].mean()) for n in alive if ps[n] <= 0.05}
            return HOLDS if len(sure) == len(alive) and set(sure.values()) == {1.0} else FAILS if -1.0 in sure.values() else OPEN
        if name in ("C4a", "C4b"): return self.sided(self.gap(ground)[1], 10)
        if name == "C4c":
            scratch, here = self.gap(base)[1], self.gap(ground)[1]
            if min(len(scratch), len(here)) < 5: return OPEN
            p = stats.ttest_ind(scratch, here, equal_var=False).pvalue
            return OPEN if p > 0.05 else HOLDS if scratch.mean() > here.mean() else FAILS
        if name == "C4d":
            frame, gap = self.gap(ground, (UNDONE,))
            return {HOLDS: FAILS, FAILS: HOLDS}.get(word := self.closes(gap, frame[UNDONE] - frame[STLR]), word)
        if name == "C4e":
            frame = self.common(self.at(*ground, variants=(UNDONE,)), [DISC, STLR, UNDONE])
            return self.closes(frame[DISC] - frame[STLR], frame[UNDONE] - frame[STLR])
        if name in ("C5a", "C5b", "C5c", "C5d", "C5e"):
            leading = "SGD" if name in ("C5a", "C5b") else "Adam"
            d = {}
            for measure in ("best", "last"):
                full = self.common(self.at(*ground, measure), NAMES)
                if len(full) < 5: return OPEN
                inside = self.family[NAMES] == leading
                d[measure] = full.loc[:, inside[inside].index].median(axis=1) - full.loc[:, inside[~inside].index].median(axis=1)
            if all(self.sided(x) == HOLDS for x in d.values()): return HOLDS
            ps = self.holm({measure: self.t(x) for measure, x in d.items()})
            return FAILS if any(ps[measure] <= 0.05 and x.mean() < 0 for measure, x in d.items()) else OPEN
        if name == "C7d":
            both = self.common(self.at(*base), ["DALS", DISC]).join(self.common(frame, ["DALS", DISC]), rsuffix=" here", how="inner")
            return self.sided((both[DISC] - both[DISC + " here"]).abs() - (both["DALS"] - both["DALS here"]).abs())
        both = self.common(frame, [FIXED, DISC])
        if name in ("C8a", "C8b"): return self.sided(both[FIXED] - both[DISC])
        if name in ("C8c", "C8d", "C8e", "C8f"):
            if len(both) < 5: return OPEN
            low, high = self.ends(both[DISC] - both[FIXED])
            return HOLDS if low > -1 else FAILS if high < -1 else OPEN
        assert name == "C9a"
        return self.front(ground)

    def own(self, name):
        "A part on the paper's own numbers."
        cell, scratch, tuned = self.table2.drop(columns="generation"), ["synthetic", "cifar10"], ["rte", "trec6", "imdb"]
        sizes = pd.Series({"synthetic": 2000, "cifar10": 10000, "rte": 277, "trec6": 500, "imdb": 25000})
        error = 196 * np.sqrt((cell / 100) * (1 - cell / 100) / sizes)

        def leads(strategy, column):
            first, second = cell[column].nlargest(2).index
            noise = math.hypot(*error.loc[[first, second], column])
            return first == strategy and cell[column][first] - cell[column][second] > noise

        def spread(strategy, columns):
            row = cell.loc[strategy, columns]
            return row.max() - row.min(), error.loc[strategy, [row.idxmax(), row.idxmin()]]

        def steadier(columns):
            (mine, a), (other, b) = spread("DALS", columns), spread(DISC, columns)
            return other - mine > math.sqrt((a**2).sum() + (b**2).sum())
        rank = cell.rank(ascending=False, method="min").loc[STLR]
        lead = cell[self.family[cell.index] == "SGD"].median() - cell[self.family[cell.index] == "Adam"].median()
        behind = cell.loc[DISC, tuned] - cell.loc[FIXED, tuned]
        noise = np.hypot(error.loc[DISC, tuned], error.loc[FIXED, tuned])
        points = pd.DataFrame({"epoch": self.table3.loc[TRIO, "epochs_to_90"], "best": cell.loc[TRIO, "synthetic"]})
        dominated = any(x.epoch <= y.epoch and x.best >= y.best and (x.epoch, x.best) != (y.epoch, y.best)
                        for x, y in itertools.permutations(points.itertuples(), 2))
        return {"C1c": leads("DALS", "synthetic"), "C6a": leads(COSINE, "cifar10"),
                "C2e": self.table3.loc["DALS", "epochs_to_90"] >= 3 * self.table3.loc["DALS-Fast", "epochs_to_90"],
                "C3c": not ((cell == cell.max()).all(axis=1)).any(), "C4f": rank[scratch].min() > rank[tuned].max(),
                "C5f": (lead[scratch] > 0).all() and (lead[tuned] < 0).all(), "C6c": rank["cifar10"] == 1,
                "C7a": steadier(["synthetic", "trec6", "imdb"]), "C7b": steadier([*sizes.index]),
                "C7c": (cell.max(axis=1) - cell.min(axis=1) < spread("DALS", [*sizes.index])[0] - 1e-9).sum() < 17 / 2,
                "C8g": None if not (behind + noise < -1).any() and not (behind - noise > -1).all() else (behind - noise > -1).all(),
                "C9b": not dominated}[name]


@pytest.fixture(scope="module")
def second():
    files = [path for path in (ROOT / "results").rglob("*.json") if not re.search(r"\+(validation|draw)", path.parts[-5])]
    return Second([json.loads(path.read_text(encoding="utf-8")) for path in files])


@pytest.fixture(scope="module")
def published():
    return list(Store(published=ROOT / "results", local="no such folder").runs(variant="*"))


@pytest.fixture(scope="module")
def found(published):
    return rulings(published)


@pytest.mark.parametrize("name", PART)
def test_every_verdict_on_the_published_records_by_a_second_implementation(name, found, second):
    for ruling in found[name]:
        if ruling.ground:
            assert ruling.verdict == second.verdict(name, ruling.ground), (ruling.where, ruling.evidence)
        else:
            own = second.own(name)
            assert ruling.verdict == (NOTHING if own is None else HOLDS if own else FAILS)


def test_nothing_is_open_that_the_published_records_decide(found, second):
    for name, row in found.items():
        for ruling in row:
            if ruling.verdict != OPEN:
                assert not ruling.lacking and not ruling.missing
                continue
            assert second.verdict(name, ruling.ground) == OPEN
            assert ruling.missing >= len(ruling.lacking) == min(LISTED, ruling.missing)
            keys = [config.key for config in ruling.lacking]
            assert len({*keys}) == len(keys)
            for key in keys: # none is there, and each is one that would count
                assert not Store(published=ROOT / "results", local="no such folder").path(key, "published").exists()
                assert key.seed != 42 and key.seed < 1000
            if not ruling.lacking:
                assert "No number of seeds" in ruling.evidence or "searched first" in ruling.evidence


def test_missing_runs_are_those_that_the_rule_asks_for(found, second):
    for name, row in found.items():
        part = PART[name]
        for ruling in row:
            if ruling.verdict == OPEN and ruling.seeds < ENOUGH and name not in ("C3a", "C3b", "C4c", "C6b", "C7d", "C8f"):
                frame = second.at(*ruling.ground, variants=part.variants).reindex(range(part.seeds))
                wanted = [*part.strategies, *part.variants]
                assert ruling.missing == part.seeds * len(wanted) - int(frame.reindex(columns=wanted).notna().sum().sum())


def test_what_a_part_lacks_can_be_trained(found):
    for ruling in (ruling for row in found.values() for ruling in row):
        for config in ruling.lacking[:3]:
            assert settings(config)["epochs"]
            assert bool(config.overrides) == (config.variant is not None or config.protocol == "tuned")
            if config.variant:
                assert config.strategy == STLR and config.variant in (UNDONE, ALL_UNDONE) and config.overrides["twice"] is False


def test_the_papers_seed_and_the_tuning_seeds_change_nothing(published, found):
    fewer = rulings([run for run in published if run.seed != 42 and run.seed < 1000])
    for name, row in found.items():
        assert [(r.verdict, r.evidence, r.missing) for r in row] == [(r.verdict, r.evidence, r.missing) for r in fewer[name]]


def test_the_order_of_the_records_changes_nothing(published, found):
    mixed = random.Random(0).sample(published, len(published))
    again = rulings(mixed, names=["C1", "C3", "C5", "C8"])
    assert {name: [(r.verdict, r.missing, r.seeds) for r in row] for name, row in again.items()} == {
        name: [(r.verdict, r.missing, r.seeds) for r in found[name]] for name in again}


def test_the_headline_counts_the_parts(found):
    for claim, rows in by_claim(found).items():
        voting = [ruling for ruling in rows if ruling.ground and ruling.part.votes]
        counted = Counter(ruling.verdict for ruling in voting)
        assert sum(int(number) for number in re.findall(r"(?:^|, )(\d+) (?=hold|do |does|open|without)", headline(rows))) == len(voting)
        assert overall(rows) == (PARTLY if counted[HOLDS] and counted[FAILS] else FAILS if counted[FAILS] else
                                 HOLDS if counted[HOLDS] and not counted[OPEN] else OPEN), claim


# ---- the declared list

def test_the_parts_are_declared_and_frozen():
    assert [*PART] == sorted(PART) and {part.claim for part in PARTS} == {*CLAIMS} and len(PART) == len(PARTS)
    assert {*JUDGES} == {part.name for part in PARTS if part.grounds} and {*PAPERS} == {part.name for part in PARTS if not part.grounds}
    for part in PARTS:
        assert part.rule.endswith(".") and part.question.endswith("?") and len(part.question) <= 60
        order = [(OWN, STANDIN, CUT, BESIDE).index(ground.grade) for ground in part.grounds]
        assert order == sorted(order)
        for grade in {ground.grade for ground in part.grounds}: # protocol released is asked first, of each task
            for task in {ground.task for ground in part.grounds if ground.grade == grade}:
                protocols = [ground.protocol for ground in part.grounds if (ground.grade, ground.task) == (grade, task)]
                assert protocols == [word for word in ("released", "paper", "tuned") if word in protocols]
    with pytest.raises(FrozenInstanceError):
        PARTS[0].rule = "another"


def test_a_grade_follows_from_the_name_and_the_profile():
    grades = {("trec6", "paper"): OWN, ("trec6+minilm-l6", "paper"): STANDIN, ("trec6+minilm-l6", "cpu"): CUT,
              ("synthetic-released", "paper"): OWN, ("synthetic", "paper"): BESIDE, ("cifar10+jpeg", "cpu"): CUT,
              ("cifar10", "smoke"): REHEARSAL, ("synthetic", "smoke"): REHEARSAL}
    for (task, profile), grade in grades.items():
        assert Ground(task, "released", profile).grade == grade


def test_from_scratch_the_released_task_votes_everywhere_and_the_texts_task_nowhere():
    for part in PARTS:
        tasks = [ground.task for ground in part.grounds]
        if "synthetic" in tasks:
            assert tasks[0] == "synthetic-released" and all(ground.grade == BESIDE for ground in part.grounds if ground.task == "synthetic")
    everything = race({**FLAT, "DALS": 97.0}, task="synthetic") + race({**FLAT, "DALS": 97.0}, task="synthetic", protocol="paper")
    row = rulings(everything, names=["C1a"])["C1a"]
    assert [ruling.verdict for ruling in row] == [OPEN, OPEN, HOLDS, HOLDS] and standing(row).verdict == OPEN


def test_the_rule_says_what_the_code_does():
    for words in (f"at least {ENOUGH} seeds", "Seeds 0 to 9 count", "seed 42 never", "Holm corrects within the part", "exploratory",
                  "nothing is corrected across", "no information", "released before paper", "holds in part"):
        assert words in RULE


def test_the_commonest_answers_are_those_of_the_test_sets():
    from dals.lab.tasks import Unavailable
    from dals.lab.texts import rte_pairs, trec_questions
    for base, read in (("rte", rte_pairs), ("trec6", trec_questions)):
        try:
            labels = Counter(int(label) for label in read()[1][1])
        except Unavailable as error:
            pytest.skip(f"the test sets are not here: {error}")
        assert COMMONEST[base] == pytest.approx(100 * max(labels.values()) / sum(labels.values()))


# ---- made-up records

def record(strategy, seed, best, task="synthetic-released", protocol="released", profile="paper", variant=None, epoch=3, last=None,
           test=2000):
    return Run(task=task, strategy=strategy, protocol=protocol, profile=profile, seed=seed, variant=variant,
               backbone="Stand-in" if "minilm" in task else None, data={"copy": "made up", "fingerprint": "0", "train": 100, "test": test},
               config={"epochs": 80, "batch_size": 10, "overrides": {"lr": 0.5} if protocol == "tuned" else {}}, history=[],
               best_accuracy=best, final_accuracy=best if last is None else last, epochs_to={"90": epoch}, diverged=False, seconds=1.0,
               device="made up", threads=1, versions={}, commit="none", finished="2026-01-01T00:00:00+00:00")


def race(levels, seeds=range(10), epochs=None, last=None, **where):
    "Each seed lifts all strategies together; a wobble of some hundredths, another in each seed, keeps equal strategies apart."
    def noise(name, seed): return random.Random(f"{name} {seed} {where.get('variant')}").choice((-0.02, -0.01, 0.0, 0.01, 0.02))
    return [record(name, seed, value := round(level + 0.2 * (seed % 4) + noise(name, seed), 2), epoch=(epochs or {}).get(name, 3),
                   last=value - (last or {}).get(name, 0), **where) for name, level in levels.items() for seed in seeds]


def verdicts(runs, *names):
    row = rulings(runs, names=names)
    return [standing(row[name]).verdict for name in names]


def grades(runs, name):
    ruling = standing(rulings(runs, names=[name])[name])
    return ruling.verdict, ruling.grade


@pytest.mark.parametrize("levels, expected", [({"DALS": 97.0}, [HOLDS, HOLDS]), ({"SGDR": 97.0}, [FAILS, FAILS]),
                                              ({"SGDR": 96.1}, [FAILS, HOLDS]), ({"DALS": 97.0, "SGDR": 97.2}, [FAILS, HOLDS])])
def test_c1_first_or_as_good_as_the_first(levels, expected):
    assert verdicts(race({**FLAT, **levels}), "C1a", "C1b") == expected


def test_equivalence_is_not_shown_by_restless_seeds():
    runs = race(FLAT)
    restless = [replace(run, best_accuracy=run.best_accuracy + 3 * math.sin(10 * run.seed) * (run.strategy == "Lion")) for run in runs]
    (ruling, *_), = rulings(restless, names=["C1b"]).values()
    assert ruling.verdict == OPEN and "16 of 17 rivals shown" in ruling.evidence and ruling.missing > 0
    assert verdicts(runs, "C1b") == [HOLDS]


def test_five_seeds_can_speak_about_a_mean_and_not_yes_or_no():
    runs = race({**FLAT, "DALS": 97.0}, range(5))
    assert verdicts(runs, "C1a", "C1b") == [OPEN, HOLDS] and verdicts(race({**FLAT, "DALS": 97.0}, range(4)), "C1a", "C1b") == [OPEN, OPEN]
    ruling = standing(rulings(runs, names=["C1a"])["C1a"])
    assert "5 seeds cannot reach 5 %: 0.062 at best; 6 can" in ruling.evidence
    assert verdicts(race({**FLAT, "DALS": 97.0}, range(6)), "C1a") == [HOLDS]


@pytest.mark.parametrize("n, comparisons, enough", [(5, 1, 6), (5, 3, 7), (9, 17, 10), (3, 1, 6)])
def test_the_floor_of_an_exact_test(n, comparisons, enough):
    clear = stats.permutation_test((np.ones(n),), np.mean, permutation_type="samples", n_resamples=np.inf) # the best that n seeds can do
    assert f"{clear.pvalue * comparisons:.3f} at best; {enough} can" in floor(n, comparisons)
    assert floor(enough, comparisons) == "" != floor(enough - 1, comparisons)


def test_no_evidence_is_silent_about_a_test_that_could_not_decide(found):
    for ruling in (ruling for row in found.values() for ruling in row):
        if ruling.ground and ENOUGH <= ruling.seeds < 6 and "exact p" in ruling.evidence and "one-sided" not in ruling.evidence:
            assert "cannot reach 5 %" in ruling.evidence


@pytest.mark.parametrize("epochs, expected", [((10, 2), [HOLDS, HOLDS, HOLDS, HOLDS]), ((5, 2), [HOLDS, HOLDS, FAILS, FAILS]),
                                              ((12, 4), [FAILS, HOLDS, HOLDS, OPEN]), ((2, 3), [HOLDS, FAILS, FAILS, FAILS]),
                                              ((3, 3), [HOLDS, OPEN, FAILS, FAILS]), ((None, None), [NOTHING] * 4),
                                              ((None, 1), [HOLDS, HOLDS, NOTHING, HOLDS])])
def test_c2_how_soon(epochs, expected):
    runs = race(FLAT, epochs=dict(zip(("DALS", "DALS-Fast"), epochs, strict=True)))
    assert verdicts(runs, "C2a", "C2b", "C2c", "C2d") == expected


def test_c3_two_tasks_and_a_planned_rival():
    lead = race({**FLAT, "DALS": 97.0, "Lion": 97.0})
    behind, ahead = ({"DALS": level, "Lion": 95.0, "AdamW": 96.0} for level in (95.0, 97.0))
    assert verdicts(lead + race(behind, range(5), **TREC), "C3b") == [HOLDS]
    assert verdicts(lead + race(ahead, range(5), **TREC), "C3b") == [FAILS]
    assert verdicts(race({**FLAT, "AdamW": 97.0}) + race(behind, range(5), **TREC), "C3b") == [FAILS]
    assert grades(lead + race(behind, range(5), protocol="paper", **TREC_CUT), "C3b") == (OPEN, OWN) # survivors of the same protocol
    assert {config.strategy for config in rulings(lead, names=["C3b"])["C3b"][2].lacking} == {"DALS", "Lion", "AdamW"}
    everywhere = [run for task in Second.FIVE.values() for run in race({**FLAT, "DALS": 97.0}, task=task)]
    assert verdicts(everywhere, "C3a") == [FAILS] and verdicts(lead, "C3a") == [OPEN]
    assert verdicts(race({**FLAT, "DALS": 97.0}) + race({**FLAT, "Adam": 97.0}, task="imdb"), "C3a") == [HOLDS]


def test_c4_where_and_why_it_collapses():
    deep, shallow = race({**FLAT, STLR: 80.0}), race({**FLAT, STLR: 93.0})
    tuned = race({**FLAT, STLR: 60.0}, range(6), **TREC)
    mended, still = (race({STLR: level}, variant=UNDONE) for level in (95.0, 81.0))
    assert verdicts(deep + tuned + mended, "C4a", "C4c", "C4d") == [HOLDS, FAILS, FAILS]
    assert verdicts(deep + race({**FLAT, STLR: 93.0}, range(6), **TREC) + still, "C4a", "C4c", "C4d") == [HOLDS, HOLDS, HOLDS]
    assert verdicts(shallow, "C4a", "C4d") == [FAILS, OPEN]
    assert verdicts(race({**FLAT, STLR: 96.5}) + still, "C4d") == [NOTHING] # it is not behind
    for level, expected in ((90.0, HOLDS), (65.0, FAILS)):
        assert grades(tuned + race({STLR: level}, range(5), variant=UNDONE, **TREC), "C4e") == (expected, STANDIN)
    lacking = rulings(tuned, names=["C4e"])["C4e"][1].lacking
    assert {(config.variant, config.seed) for config in lacking} == {(v, seed) for v in (UNDONE, ALL_UNDONE) for seed in range(6)}
    assert overall(by_claim(rulings(deep + tuned + mended, names=["C4"]))["C4"]) == PARTLY


def families(sgd, adam):
    return {name: sgd if strategy.family == "SGD" else adam for name, strategy in STRATEGIES.items()}


def test_c5_families_by_their_medians_at_the_best_and_at_the_last_epoch():
    sgd, adam = families(97, 96), families(96, 97)
    assert verdicts(race(sgd) + race(adam, range(6), **TREC), "C5a", "C5c", "C5d") == [HOLDS, HOLDS, OPEN]
    assert verdicts(race(adam) + race(sgd, range(6), **TREC), "C5a", "C5c") == [FAILS, FAILS]
    assert verdicts(race({**sgd, STLR: 10.0}), "C5a") == [HOLDS]  # one member cannot carry its family
    fades = {name: 3.0 for name, strategy in STRATEGIES.items() if strategy.family == "SGD"}
    assert verdicts(race(sgd, last=fades), "C5a") == [FAILS]
    level = {name: 1.0 for name, strategy in STRATEGIES.items() if strategy.family == "SGD"}
    assert verdicts(race(sgd, last=level), "C5a") == [OPEN]       # ahead at the best epoch, level at the last


def test_c6_other_rivals_at_the_stand_ins_full_budget():
    cut = race({**FLAT, "Adam": 98.0}, range(5), task="cifar10+jpeg", profile="cpu", protocol="paper")
    assert grades(cut, "C6b") == (FAILS, CUT)
    full = race(dict.fromkeys((COSINE, "SGDR", STLR, FIXED, "Grokfast", "SAM+Discriminative"), 96.0), range(8), task="cifar10+jpeg")
    assert grades(cut + full, "C6b") == (HOLDS, STANDIN)
    assert grades(cut + full[8:], "C6b") == (FAILS, CUT)          # without Cosine itself
    lacking = rulings(cut, names=["C6b"])["C6b"][2].lacking
    assert len(lacking) == 6 * 8 and [config.seed for config in lacking[:7]] == [0] * 6 + [1] # complete seeds first


def test_c7_and_c8():
    names = ("DALS", DISC)
    both = race(dict.fromkeys(names, 97.0)) + race({"DALS": 95.0, DISC: 93.0}, range(6), **TREC)
    assert grades(both, "C7d") == (HOLDS, STANDIN)
    assert grades(both + race({"DALS": 90.0, DISC: 93.0}, range(6), task="trec6"), "C7d") == (FAILS, OWN)
    assert verdicts(race({**FLAT, DISC: 95.0}), "C8a") == [HOLDS] and verdicts(race({**FLAT, DISC: 97.0}), "C8a") == [FAILS]
    for level, expected in ((95.5, HOLDS), (94.0, FAILS), (95.0, OPEN)):
        assert verdicts(race({FIXED: 96.0, DISC: level}, range(6), **TREC), "C8c") == [expected]
    tuned = race({FIXED: 96.0, DISC: 96.0}, range(4), protocol="tuned", **TREC_CUT)
    (ruling,) = rulings(tuned, names=["C8f"])["C8f"]
    assert ruling.verdict == OPEN and {config.seed for config in ruling.lacking} == {4, 5}
    assert all(config.overrides == {"lr": 0.5} for config in ruling.lacking) # the rates of the runs that are there
    assert verdicts(tuned + race({FIXED: 96.0, DISC: 96.0}, [4], protocol="tuned", **TREC_CUT), "C8f") == [HOLDS]
    assert "searched first" in rulings([], names=["C8f"])["C8f"][0].evidence


@pytest.mark.parametrize("levels, epochs, expected", [
    ((96, 95, 97), (5, 2, 9), HOLDS),   # each can do something that the others cannot
    ((96, 97, 96), (5, 2, 5), FAILS),   # DALS-Fast is better in both
    ((96, 96, 96), (5, 2, 2), FAILS),   # DALS is later and gains nothing
    ((96, 96, 96), (3, 3, 3), OPEN), ((96, 97, 97), (None, None, None), NOTHING)])
def test_c9_a_front_or_a_dominated_variant(levels, epochs, expected):
    runs = race(dict(zip(TRIO, levels, strict=True)), epochs=dict(zip(TRIO, epochs, strict=True)))
    assert verdicts(runs, "C9a") == [expected]
    if expected in (HOLDS, FAILS):
        assert verdicts([run for run in runs if run.seed < 6], "C9a") == [OPEN] # twelve comparisons need nine seeds
        assert "9 can" in standing(rulings([run for run in runs if run.seed < 6], names=["C9a"])["C9a"]).evidence


def test_a_column_at_chance_has_no_information_and_asks_for_no_runs():
    guess = race(dict.fromkeys(TABLE2, 52.0), range(6), task="rte+minilm-l6", test=277)
    ruling = standing(rulings(guess, names=["C8e"])["C8e"])
    assert (ruling.verdict, ruling.grade, ruling.lacking, ruling.missing) == (NOTHING, STANDIN, (), 0)
    reads = race({**dict.fromkeys(TABLE2, 52.0), "Adam": 65.0}, range(6), task="rte+minilm-l6", test=277)
    assert verdicts(reads, "C8e") == [HOLDS] # one strategy that reads, and the column has information
    lucky = race(dict.fromkeys(TABLE2, 65.0), range(6), last=dict.fromkeys(TABLE2, 13.0), task="rte+minilm-l6", test=277)
    assert verdicts(lucky, "C8e") == [NOTHING] # the best epoch of a column that guesses is no reading
    few = [run for run in guess if run.strategy in NAMES[:8]]
    assert NOTHING not in [ruling.verdict for ruling in rulings(few, names=["C8e"])["C8e"]]


def test_the_best_grade_that_decides_stands_and_nothing_below_it_overrules():
    hurt, fine = {FIXED: 96.0, DISC: 90.0}, {FIXED: 96.0, DISC: 96.0}
    cut, full, own = race(hurt, range(6), **TREC_CUT), race(fine, range(6), **TREC), race(hurt, range(6), task="trec6")
    assert grades(cut, "C8c") == (FAILS, CUT) and grades(cut + full, "C8c") == (HOLDS, STANDIN)
    assert grades(cut + full + own, "C8c") == (FAILS, OWN)
    assert grades(cut + full[:6], "C8c") == (FAILS, CUT)          # an open ground above does not silence a decided one below
    both = race(fine, range(6), protocol="paper", **TREC) + race(hurt, range(6), **TREC)
    assert standing(rulings(both, names=["C8c"])["C8c"]).ground.protocol == "released"


@pytest.mark.parametrize("name", [part.name for part in PARTS if part.grounds and part.name not in ("C3a", "C8f")])
def test_running_what_it_lacks_settles_a_part(name):
    "From an empty store: the records that a part asks for are enough, where the verdict is plain."
    level = {**families(97.0, 96.0), STLR: 80.0, DISC: 94.0, "DALS": 97.5, "AdamW": 96.5}
    soon = {"DALS": 9, "DALS-Fast": 2, "DALS-Acc": 3}

    def run(config):
        shift = 15.0 if config.variant == UNDONE else 0.0
        if config.task != "synthetic-released":
            shift += {STLR: 5.0, DISC: -1.0}.get(config.strategy, 0.0)
        mine = {config.strategy: level[config.strategy] + shift}
        return race(mine, [config.seed], epochs=soon, task=config.task, protocol=config.protocol, profile=config.profile,
                    variant=config.variant)[0]
    runs = []
    for _ in range(4):
        ruling = rulings(runs, names=[name])[name][0]
        if not ruling.lacking:
            break
        runs += [run(config) for config in ruling.lacking]
    assert ruling.verdict in (HOLDS, FAILS) and len(runs) <= 18 * 10 * 2


def test_a_rehearsal_is_called_one_and_asks_for_smoke_runs_only():
    found = rulings([], "smoke")
    assert {ruling.grade for row in found.values() for ruling in row} == {REHEARSAL, PAPER}
    assert {config.profile for row in found.values() for ruling in row for config in ruling.lacking} == {"smoke"}
    runs = race({FIXED: 96.0, DISC: 90.0}, range(6), task="trec6+minilm-l6", profile="smoke")
    ruling = standing(rulings(runs, "smoke", ["C8c"])["C8c"])
    assert (ruling.verdict, ruling.grade) == (FAILS, REHEARSAL) and verdicts(runs, "C8c") == [OPEN]
    chance = race(dict.fromkeys(TABLE2, 30.0), range(6), task="trec6+minilm-l6", profile="smoke", test=64)
    assert standing(rulings(chance, "smoke", ["C8c"])["C8c"]).verdict == HOLDS # a rehearsal goes the whole way, at chance too
    assert len(rulings([], "smoke", ["C8c"])["C8c"]) == 4 # the cut and the full budget are one rehearsal
    with pytest.raises(ValueError, match="only 'smoke'"):
        rulings([], "cpu")
    with pytest.raises(ValueError, match="no claim or part 'C10'"):
        rulings([], names=["C10"])


def test_records_of_another_budget_or_copy_are_never_mixed():
    runs = race({FIXED: 96.0, DISC: 90.0}, range(3), **TREC)
    other = [replace(run, data={**run.data, "fingerprint": "1"}) for run in race({FIXED: 96.0, DISC: 90.0}, range(3, 6), **TREC)]
    assert verdicts(runs + other, "C8c") == [OPEN]
    assert gather(runs + other, Ground("trec6+minilm-l6", "released", "paper")).seeds((FIXED, DISC)) in ([0, 1, 2], [3, 4, 5])


def test_a_run_that_diverged_at_once_is_the_worst_not_missing():
    runs = [replace(run, best_accuracy=None, final_accuracy=None, epochs_to={"90": None}, diverged=True)
            if (run.strategy, run.seed) == ("DALS", 0) else run for run in race({**FLAT, "DALS": 97.0})]
    records = gather(runs, Ground("synthetic-released", "released", "paper"))
    assert records.best["DALS"][0] == records.last["DALS"][0] == 0 and records.epochs["DALS"][0] == 81 and len(records.seeds()) == 10


def test_needed_seeds_are_the_first_that_let_go_of_the_boundary():
    for sd, distance, level in ((1.0, 0.5, 0.05), (0.48, 0.078, 0.05), (2.0, 1.0, 0.10), (1.0, 0.3, 0.05 / 17)):
        n = needed(sd, distance, level)
        def half(m, sd=sd, level=level): return stats.t.ppf(1 - level / 2, m - 1) * sd / math.sqrt(m)
        assert half(n) <= distance < half(n - 1)
    assert needed(1.0, 1e-3) == LIMIT + 1


def test_further_seeds_count_and_are_asked_for_in_order():
    runs = race(FLAT, epochs={"DALS": 6, "DALS-Fast": 2})
    restless = [replace(run, epochs_to={"90": 5 + 3 * (run.seed % 2)}) if run.strategy == "DALS" else run for run in runs]
    ruling = standing(rulings(restless, names=["C2d"])["C2d"])
    assert ruling.verdict == OPEN and "By estimate" in ruling.evidence
    seeds = sorted({config.seed for config in ruling.lacking})
    assert seeds[0] == 10 and 42 not in seeds and ruling.missing == 2 * (int(re.search(r"estimate (\d+) seeds", ruling.evidence)[1]) - 10)
    more = [replace(run, epochs_to={"90": 9}) if run.strategy == "DALS" else run
            for run in race(FLAT, range(10, 60), epochs={"DALS-Fast": 2})]
    ruling = standing(rulings(restless + more, names=["C2d"])["C2d"])
    assert ruling.verdict == HOLDS and ruling.seeds == 59 # without 42


@pytest.mark.parametrize("seed", range(3))
def test_both_implementations_agree_on_records_drawn_at_random(seed):
    "Levels close together and few seeds, so that verdicts fall on all sides of their rules; holes, runs that fade, levels never reached."
    draw, runs = random.Random(seed), []
    for task, profile, size in (("synthetic-released", "paper", 2000), ("cifar10+jpeg", "cpu", 2000), ("cifar10", "paper", 10000),
                                ("trec6+minilm-l6", "paper", 500), ("trec6+minilm-l6", "cpu", 500), ("rte", "paper", 277)):
        middle, width, seeds = draw.choice((53, 90)), draw.choice((0.1, 0.5, 2.0)), draw.choice((4, 5, 6, 8, 10))
        for protocol, name in itertools.product(("released", "paper"), NAMES):
            level = middle + draw.gauss(0, width) - draw.choice((0, 0, 12)) * (name == STLR)
            for number, variant in itertools.product(range(seeds), (None, UNDONE) if name == STLR else (None,)):
                if draw.random() > 0.005:
                    best = round(level + draw.gauss(0, 0.5) + bool(variant) * draw.gauss(6, 5), 2)
                    runs.append(record(name, number, best, task, protocol, profile, variant, draw.choice((1, 2, 3, 4, 9, 12, None)),
                                       round(best - abs(draw.gauss(0, width)), 2), size))
    second, words = Second([run.to_dict() for run in runs]), Counter()
    for name, row in rulings(runs).items():
        for ruling in row:
            if ruling.ground:
                words[ruling.verdict] += bool(ruling.seeds)
                assert ruling.verdict == second.verdict(name, ruling.ground), (name, ruling.where, ruling.evidence)
    assert min(words[HOLDS], words[FAILS], words[OPEN]) >= 2, words


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_holes_in_the_records_never_stop_it(share):
    tasks = ("synthetic-released", "synthetic", "cifar10", "rte", "trec6", "imdb", "trec6+minilm-l6")
    everything = [run for task in tasks for protocol in ("released", "paper")
                  for run in race(FLAT, [*range(7), 42], task=task, protocol=protocol, profile="cpu" if "+" in task else "paper")]
    everything += race({STLR: 96.0}, range(7), variant=UNDONE)
    for seed in range(3):
        kept = [run for run in everything if random.Random(f"{seed} {run.task} {run.protocol} {run.strategy} {run.seed}").random() < share]
        found = rulings(kept)
        assert "{" not in claims_html(found)
        assert all((ruling.verdict == OPEN) >= bool(ruling.lacking) for row in found.values() for ruling in row)


# ---- the page

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.span = [], [], 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append(tag)
        if tag == "th":
            self.span += int(dict(attributes).get("rowspan", 0))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_shows_every_grade_beside_its_verdict(found, tmp_path):
    html, rows = claims_html(found), claims_rows(found)
    tags = Tags(html)
    assert tags.seen.count("tbody") == 9 and tags.seen.count("tr") == 1 + len(rows) == 1 + tags.span
    assert len(rows) == sum(len(shown(row)) for row in found.values()) and sum(row["stands"] == "yes" for row in rows) == len(PARTS)
    for row in rows: # a full stand-in is never called a cut, nor the other way round
        part = row["where"].split(" (")[0]
        assert (row["grade"] == CUT) == (("cpu cut" in row["where"]) if "+" in part else False), row
        assert (row["verdict"] == OPEN) >= bool(row["runs"]) and (row["missing"] > 0) == bool(row["runs"])
    count = Counter(row["verdict"] for row in rows) + Counter(row["overall"] for row in {row["claim"]: row for row in rows}.values())
    assert html.count('class="v differs"') == count[FAILS] and html.count('class="v agrees"') == count[HOLDS]
    assert html.count('class="v not-judged"') == count[NOTHING]
    assert all(part.rule.split("<")[0][:40] in html for part in PARTS if "'" not in part.rule[:40]) and RULE[:60] in html
    assert save_table(html, "claims", tmp_path, rows).exists() and len(pd.read_csv(tmp_path / "claims.csv")) == len(rows)


def test_everything_on_the_page_is_escaped():
    nasty = "<b>&\"'"
    config = Config(nasty, nasty, 0, "released")
    ruling = Ruling(PART["C8c"], PART["C8c"].grounds[0], OPEN, nasty, nasty, 3, (config,), 1)
    html = claims_html({"C8c": [ruling]})
    assert "<b>&" not in html and html.count("&lt;b&gt;&amp;") == 4
    Tags(html)


def test_parts_can_be_asked_alone(found, published):
    alone = rulings(published, names=["C2d", "C9"])
    assert [*alone] == ["C2d", "C9a", "C9b"] and alone["C9a"][0].evidence == found["C9a"][0].evidence
    assert [*by_claim(alone)] == ["C2", "C9"] and len(claims_rows(alone)) < 12


def test_an_empty_store_decides_nothing_about_our_side():
    found = rulings([])
    assert {ruling.verdict for row in found.values() for ruling in row if ruling.ground} == {OPEN}
    assert {overall(rows) for rows in by_claim(found).values()} == {OPEN} and statistics.fmean(len(row) for row in found.values()) > 1
    with pytest.raises(ValueError, match="does not count"):
        standing([Ruling(PARTS[0], Ground("synthetic", "paper", "paper"), HOLDS, "")])
    with pytest.raises(ValueError, match="one of holds"):
        Ruling(PARTS[0], None, "probably", "")


def test_the_experiment_is_a_papermill_notebook():
    notebook = json.loads((ROOT / "nbs" / "experiments" / "claims.ipynb").read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    for name in ("out", "published", "local", "profile"):
        assert re.search(rf"^{name} = ", "".join(cell["source"]), re.M)
