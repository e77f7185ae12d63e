"Claims put to made-up records where the right verdict is plain: far ahead, equal, too few seeds, nothing at all."
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dals.claims import (CHECKS, ENOUGH, FAILS, FINETUNING, HOLDS, OPEN, RULE, STAND_IN, Finding, against, claims_html, claims_rows,
                         findings, gather, overall)
from dals.published import CLAIMS, TABLE2
from dals.report import save_table
from dals.results import Store
from dals.strategies import STRATEGIES
from dals.training import Run

FLAT = dict.fromkeys(TABLE2, 96.0)
UNDONE = "undo decay applied twice"


def record(strategy, seed, best, task="synthetic-released", protocol="released", profile="paper", variant=None, epoch=3):
    return Run(task=task, strategy=strategy, protocol=protocol, profile=profile, seed=seed, variant=variant,
               backbone="Stand-in" if "+" in task else None, data={"copy": "made up", "fingerprint": "0", "train": 100, "test": 2000},
               config={"epochs": 80, "batch_size": 10}, history=[], best_accuracy=best, final_accuracy=best, epochs_to={"90": epoch},
               diverged=False, seconds=1.0, device="made up", threads=1, versions={}, commit="none", finished="2026-01-01T00:00:00+00:00")


def race(levels, seeds=range(10), epochs=None, **where):
    "Each seed lifts all strategies together; a wobble of a hundredth makes even equal strategies differ now and then."
    return [record(name, seed, round(level + 0.2 * (seed % 4) + 0.01 * ((seed + i) % 2), 2), epoch=(epochs or {}).get(name, 3), **where)
            for i, (name, level) in enumerate(levels.items()) for seed in seeds]


def votes(runs, claim):
    return [finding.verdict for finding in findings(runs)[claim] if finding.decides]


def verdict(runs, claim):
    return overall(findings(runs)[claim])


def test_every_claim_has_a_check_and_nothing_is_decided_about_our_side_without_records():
    assert list(CHECKS) == ["C1", "C6", "C2", "C3", "C4", "C5", "C7", "C8", "C9"] and set(CHECKS) == set(CLAIMS)
    found = findings([])
    assert list(found) == list(CLAIMS)
    assert all(rows and {row.verdict for row in rows if row.decides} == {OPEN} for rows in found.values())
    assert all(row.question.startswith("In the paper's own numbers") for rows in found.values() for row in rows if not row.decides)


@pytest.mark.parametrize("levels, expected", [({"DALS": 97.0}, HOLDS), ({"SGDR": 97.0}, FAILS), ({}, OPEN),
                                              ({"DALS": 97.0, "SGDR": 97.0}, OPEN)])
def test_c1_who_is_first(levels, expected):
    assert verdict(race({**FLAT, **levels}), "C1") == expected


def test_c1_needs_ten_seeds_for_seventeen_comparisons_and_all_of_them():
    ahead = race({**FLAT, "DALS": 97.0})
    assert verdict([run for run in ahead if run.seed < 9], "C1") == OPEN
    for seeds, expected in ((9, HOLDS), (5, OPEN)):  # Holm asks less of the last comparison, but five seeds cannot pass any
        assert verdict([run for run in ahead if run.strategy != "Lion" or run.seed < seeds], "C1") == expected
    assert verdict([run for run in ahead if run.strategy != "Lion"], "C1") == OPEN
    nine = against(gather([run for run in ahead if run.seed < 9], "synthetic-released"))
    assert {round(p, 6) for _, p in nine.values()} == {round(17 * 2 / 2**9, 6)}


def test_a_single_seed_or_the_papers_own_decides_nothing():
    strong = {name: 97.0 - 20 * (STRATEGIES[name].family == "Adam") for name in TABLE2} | {"DALS": 99.0, "STLR+Discriminative": 40.0}
    for seeds in ([0], [42], [0, 1, 2, 42, 43]):
        everything = [run for task in ("synthetic-released", "synthetic", "cifar10", *FINETUNING) for run in race(strong, seeds, task=task)]
        everything += race({"STLR+Discriminative": 97.0}, seeds, task="synthetic", variant=UNDONE)
        assert {overall(rows) for rows in findings(everything).values()} == {OPEN}


def test_the_papers_seed_is_mentioned_and_not_counted():
    runs = race(FLAT) + race({**FLAT, "DALS": 50.0}, [42])
    records = gather(runs, "synthetic-released")
    assert records.seeds() == list(range(10)) and min(records.best["DALS"].values()) > 90 and records.own["DALS"] < 51
    first = findings(runs)["C1"][0]
    assert "paper's own seed 42, not counted, DALS has 50" in first.evidence and "place 18 of 18" in first.evidence


def test_protocol_paper_and_cuts_have_no_vote():
    ahead = {**FLAT, "DALS": 97.0}
    rows = findings(race(ahead, protocol="paper"))["C1"]
    assert [(row.verdict, row.decides) for row in rows[:2]] == [(OPEN, True), (HOLDS, False)] and "protocol paper" in rows[1].question
    rows = findings(race(ahead, profile="cpu"))["C1"]
    assert rows[0].verdict == OPEN and "cpu cut" in rows[0].question and "full budget" in rows[0].evidence
    assert gather(race(ahead, profile="smoke"), "synthetic-released").best == {}


def test_a_run_that_diverged_at_once_is_the_worst_not_missing():
    runs = [replace(run, best_accuracy=None, final_accuracy=None, epochs_to={"90": None}, diverged=True)
            if (run.strategy, run.seed) == ("DALS", 0) else run for run in race({**FLAT, "DALS": 97.0})]
    records = gather(runs, "synthetic-released")
    assert records.best["DALS"][0] == 0 and records.epochs["DALS"][0] == 81 and verdict(runs, "C1") == OPEN


@pytest.mark.parametrize("epochs, expected", [({"DALS-Fast": 2, "DALS": 6}, [HOLDS, HOLDS]), ({"DALS-Fast": 2, "DALS": 5}, [HOLDS, FAILS]),
                                              ({"DALS-Fast": 4, "DALS": 12}, [FAILS, HOLDS]),
                                              ({"DALS-Fast": None, "DALS": 3}, [FAILS, FAILS]),
                                              ({"DALS-Fast": 1, "DALS": None}, [HOLDS, HOLDS])])
def test_c2_how_soon(epochs, expected):
    assert votes(race(FLAT, epochs=epochs), "C2") == expected
    assert votes(race(FLAT, range(5), epochs=epochs), "C2") == [OPEN, OPEN]  # five of five may be an even chance


def test_c3_two_tasks_without_a_common_leader_are_enough():
    one, other = race({**FLAT, "DALS": 97.0}), race({**FLAT, "Adam": 97.0}, task="cifar10")
    assert verdict(one + other, "C3") == HOLDS and verdict(one, "C3") == OPEN
    assert verdict(one + race({**FLAT, "Adam": 97.0}, task=STAND_IN, profile="cpu"), "C3") == OPEN
    everywhere = [run for task in ("synthetic-released", "cifar10", *FINETUNING) for run in race({**FLAT, "DALS": 97.0}, task=task)]
    assert verdict(everywhere, "C3") == FAILS


def collapse(level, undone=None, task="synthetic"):
    runs = race({**FLAT, "STLR+Discriminative": level}, task=task)
    return runs if undone is None else runs + race({"STLR+Discriminative": undone}, task=task, variant=UNDONE)


def test_c4_is_there_a_collapse_and_is_pretraining_the_reason():
    both = collapse(80.0, task="synthetic-released")
    assert votes(both + collapse(80.0, 95.0), "C4") == [HOLDS, HOLDS, FAILS]  # undoing the second decay mends it
    assert votes(both + collapse(80.0, 81.0), "C4") == [HOLDS, HOLDS, HOLDS] and verdict(both + collapse(80.0, 81.0), "C4") == HOLDS
    assert votes(collapse(94.0, task="synthetic-released") + collapse(86.0), "C4")[:2] == [FAILS, OPEN]  # two points, and just ten
    assert votes(collapse(80.0), "C4") == [OPEN, HOLDS, OPEN]


def test_c4_looks_at_the_stand_in_beside():
    rows = findings(race({**FLAT, "STLR+Discriminative": 60.0}, task=STAND_IN, profile="cpu"))["C4"]
    (aside,) = [row for row in rows if "stand-in" in row.question]
    assert aside.verdict == HOLDS and not aside.decides and "cpu cut" in aside.question and overall(rows) == OPEN


def families(sgd, adam):
    return {name: sgd if strategy.family == "SGD" else adam for name, strategy in STRATEGIES.items()}


def test_c5_families():
    scratch = race(families(97, 96)) + race(families(97, 96), task="synthetic")
    tuned = [run for task in FINETUNING for run in race(families(96, 97), task=task)]
    assert verdict(scratch + tuned, "C5") == HOLDS and verdict(scratch, "C5") == OPEN
    assert verdict(scratch + race(families(97, 96), task="imdb"), "C5") == FAILS
    assert verdict(race(families(96, 97)), "C5") == FAILS
    assert votes(scratch + race(families(97, 96), task=STAND_IN, profile="cpu"), "C5")[2] == OPEN  # the stand-in refutes itself alone


def test_c6_and_c7_speak_when_the_records_are_there():
    assert verdict(race({**FLAT, "Cosine Decay SGD": 97.0}, task="cifar10"), "C6") == HOLDS
    assert verdict(race({**FLAT, "Adam": 97.0}, task="cifar10"), "C6") == FAILS
    levels = dict(zip(("synthetic-released", "cifar10", *FINETUNING), (98, 80, 60, 95, 90), strict=True))

    def spread(worst):
        return [run for task, level in levels.items()
                for run in race({"DALS": max(level, worst), "Discriminative LR": level}, task=task)]
    assert verdict(spread(70), "C7") == HOLDS and verdict(spread(60), "C7") == OPEN
    assert verdict([replace(run, strategy={"DALS": "Discriminative LR", "Discriminative LR": "DALS"}[run.strategy]) for run in spread(70)],
                   "C7") == FAILS


def test_c8_discriminative_rates():
    hurt = {**FLAT, "Discriminative LR": 95.0}
    scratch = race(hurt) + race(hurt, task="synthetic")
    assert verdict(scratch + [run for task in FINETUNING for run in race({**FLAT, "Discriminative LR": 95.5}, task=task)], "C8") == HOLDS
    assert verdict(scratch, "C8") == OPEN
    assert verdict(scratch + race({**FLAT, "Discriminative LR": 90.0}, task="trec6"), "C8") == FAILS
    assert verdict(race({**FLAT, "Discriminative LR": 97.0}), "C8") == FAILS


@pytest.mark.parametrize("levels, epochs, expected", [
    ((96, 95, 97), (5, 2, 9), HOLDS),   # each can do something that the others cannot
    ((96, 97, 96), (5, 2, 5), FAILS),   # DALS-Fast is better in both
    ((96, 96, 96), (5, 2, 2), FAILS),   # DALS is later and gains nothing
    ((96, 96, 96), (3, 3, 3), OPEN)])
def test_c9_a_front_or_a_dominated_variant(levels, epochs, expected):
    names = ("DALS", "DALS-Fast", "DALS-Acc")
    runs = race(dict(zip(names, levels, strict=True)), epochs=dict(zip(names, epochs, strict=True)))
    assert verdict(runs, "C9") == expected
    assert verdict([run for run in runs if run.seed < 5], "C9") == OPEN


def test_the_papers_own_table_speaks_without_a_vote():
    own = {claim: [row.verdict for row in rows if not row.decides] for claim, rows in findings([]).items()}
    assert own == {"C1": [OPEN], "C2": [FAILS], "C3": [HOLDS], "C4": [FAILS], "C5": [HOLDS], "C6": [OPEN, FAILS],
                   "C7": [OPEN, FAILS, HOLDS], "C8": [FAILS], "C9": [FAILS]}
    spread = [row.evidence for row in findings([])["C7"][1:]]
    assert "DALS 38.8, Discriminative LR 39.3" in spread[0] and "DALS 7.9, Discriminative LR 12.5" in spread[2]


def test_the_verdict_on_a_claim_follows_from_its_votes():
    def said(*words, decides=True):
        return [Finding("C1", "", "", "", word, decides) for word in words]
    assert [overall(said(*words)) for words in ((HOLDS,), (HOLDS, OPEN), (HOLDS, OPEN, FAILS), ())] == [HOLDS, OPEN, FAILS, OPEN]
    assert overall(said(OPEN) + said(FAILS, HOLDS, decides=False)) == OPEN
    with pytest.raises(ValueError, match="one of holds"):
        said("probably")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.span = [], [], 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append(tag)
        self.span += int(dict(attributes).get("rowspan", 0))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("runs", [[], race({**FLAT, "SGDR": 97.0})], ids=["empty", "one column"])
def test_the_table_is_whole_and_a_claim_that_fails_is_printed_as_failing(runs, tmp_path):
    found = findings(runs)
    html, count = claims_html(found), sum(map(len, found.values()))
    tags = Tags(html)
    assert tags.seen.count("tbody") == 9 and tags.seen.count("tr") == 1 + count == 1 + tags.span
    assert html.count('class="v differs"') == sum(row.verdict == FAILS for rows in found.values() for row in rows) + sum(
        overall(rows) == FAILS for rows in found.values())
    assert (overall(found["C1"]) == FAILS) == bool(runs) and RULE[:60] in html
    rows = claims_rows(found)
    assert len(rows) == count and {row["overall"] for row in rows if row["claim"] == "C1"} == {FAILS if runs else OPEN}
    assert save_table(html, "claims", tmp_path, rows).exists() and (tmp_path / "claims.csv").stat().st_size > 1000


def test_the_published_records_can_be_read():
    for claim, rows in findings(Store(local="no such folder").runs(variant="*")).items():
        assert all(row.claim == claim and row.evidence and "{" not in row.question + row.evidence for row in rows)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_holes_in_the_records_never_stop_it(share):
    tasks = ("synthetic-released", "synthetic", "cifar10", *FINETUNING, STAND_IN)
    everything = [run for task in tasks for protocol in ("released", "paper")
                  for run in race(FLAT, [*range(7), 42], task=task, protocol=protocol, profile="cpu" if task == STAND_IN else "paper")]
    everything += race({"STLR+Discriminative": 96.0}, range(7), task="synthetic", variant=UNDONE)
    for seed in range(5):
        kept = [run for run in everything if random.Random(f"{seed} {run.task} {run.protocol} {run.strategy} {run.seed}").random() < share]
        assert "{" not in claims_html(findings(kept))


def test_the_rule_says_what_the_code_does():
    assert f"at least {ENOUGH} seeds" in RULE and "Seeds 0 to 9" in RULE and "fewer than 10 where 17" in RULE


def test_the_experiment_is_a_papermill_notebook():
    notebook = json.loads((Path(__file__).parents[1] / "nbs" / "experiments" / "claims.ipynb").read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    for name in ("out", "published", "local", "profile"):
        assert re.search(rf"^{name} = ", "".join(cell["source"]), re.M)
