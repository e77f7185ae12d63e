"Verdicts, the choice of records, and a page that is whole whatever it is given."
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given, settings, strategies as st

from dals.published import COLUMNS, TABLE2
from dals.report import (EXPERIMENTS, RULE, RULE3, VERDICTS, build_index, kinds, save_figure, save_table, simple_table, table2,
                         table2_about, table2_html, table2_rows, table3, table3_about, table3_html, table3_rows, verdict, verdict_epochs)
from dals.training import Run

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
accuracy = st.floats(40, 99).map(lambda value: round(value, 2))
seeds = st.lists(accuracy, min_size=1, max_size=6)


def record(strategy="DALS", seed=0, best=97.0, task="synthetic-released", profile="paper", origin="local", epochs=80, **changes):
    run = Run(task=task, strategy=strategy, protocol="paper", profile=profile, seed=seed, backbone="Stand-in" if "+" in task else None,
              data={"copy": "made up", "fingerprint": "0" * 12, "train": 100, "test": 2000}, config={"epochs": epochs, "batch_size": 10},
              history=[], best_accuracy=best, final_accuracy=best, epochs_to={"60": 1, "70": 1, "80": 2, "90": None}, diverged=False,
              seconds=1.0, device="cpu (made up)", threads=1, versions={"torch": "0"}, commit="none", finished="2026-01-02T03:04:05+00:00")
    for name, value in changes.items():
        setattr(run, name, value)
    run.origin = origin
    return run


class Balanced(HTMLParser):
    "Fails on a tag that is closed in the wrong place; collects what the page loads or links to."
    void = {"meta", "link", "img", "br", "wbr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.targets, self.images = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@settings(deadline=None)
@given(accuracy, seeds, st.sampled_from([277, 500, 2000, 25000]))
def test_a_verdict_does_not_depend_on_the_order_of_seeds_and_one_seed_never_agrees(paper, ours, size):
    word = verdict(paper, ours, size)
    assert word in VERDICTS and word == verdict(paper, ours[::-1], size)
    assert len(ours) > 1 or word != "agrees"


@settings(deadline=None)
@given(accuracy, seeds)
def test_a_larger_test_set_never_makes_the_verdict_kinder(paper, ours):
    order = [VERDICTS.index(verdict(paper, ours, size)) for size in (100, 1000, 10000)]
    assert order == sorted(order)


@settings(deadline=None)
@given(st.lists(accuracy, min_size=2, max_size=6))
def test_a_paper_that_reports_our_mean_agrees(ours):
    assert verdict(sum(ours) / len(ours), ours, 2000) in ("agrees", "within noise")  # rounding may leave a zero-width interval
    if max(ours) - min(ours) > 0.01:
        assert verdict(sum(ours) / len(ours), ours, 2000) == "agrees"


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.sampled_from([1.0, 2.0, 3.0, 8.0, float("inf")]), min_size=1, max_size=6))
def test_epochs_are_equal_or_in_range_or_differ(paper, ours):
    word = verdict_epochs(paper, ours)
    assert (word == "differs") == (not min(ours) <= paper <= max(ours))


@settings(deadline=None)
@given(st.lists(max_size=12, elements=st.builds(
    record, strategy=st.sampled_from(["DALS", "SGDR", "Adam"]), seed=st.integers(0, 2), epochs=st.sampled_from([3, 5]),
    task=st.sampled_from(["trec6", "trec6+minilm-l6", "rte"]), profile=st.sampled_from(["paper", "cpu", "smoke"]))))
def test_a_column_never_mixes_kinds(runs):
    found = kinds(runs, "trec6")
    assert all(len({(run.task, run.profile, run.config["epochs"]) for run in kind}) == 1 for kind in found)
    assert sorted(map(id, sum(found, []))) == sorted(id(run) for run in runs if run.task != "rte" and run.profile != "smoke")
    covered = [len({run.strategy for run in kind}) for kind in found]
    assert covered == sorted(covered, reverse=True)


def test_released_records_never_stand_for_the_text():
    runs = [record(protocol="released")]
    assert kinds(runs, "synthetic-released") == [] and kinds(runs, "synthetic-released", protocol="released") == [runs]


def test_an_empty_store_gives_a_whole_table_of_cells_that_were_not_run():
    table = table2([])
    assert {cell.verdict for cell in table.cells.values()} == {"not run"} and len(table.cells) == 18 * len(COLUMNS)
    html = table2_html(table)
    Balanced(html)
    assert html.count("<tr>") == 2 + 18 and RULE.split("'")[0] in html
    assert html.count(">not run<") == 18 * len(COLUMNS)
    html = table3_html(table3([]))
    Balanced(html)
    assert html.count("<tr>") == 2 + 6 and RULE3.split("'")[0] in html


def test_a_cell_says_what_it_rests_on():
    runs = [record(seed=0, best=97.0), record(seed=1, best=98.0, origin="published"), record(seed=2, best=None, diverged=True)]
    cell = table2(runs).cells["DALS", "synthetic-released"]
    assert (cell.best, cell.seeds, cell.diverged, cell.source) == ((97.0, 98.0), (0, 1), 1, "2 trained now, 1 stored")
    html = table2_html(table2(runs))
    assert "<b>97.50</b>" in html and "1 diverged" in html and "cpu (made up)" in html and "dals train" in html


def test_a_run_that_never_finished_an_epoch_is_not_hidden():
    cell = table2([record(best=None, diverged=True)]).cells["DALS", "synthetic-released"]
    assert (cell.verdict, cell.source, cell.diverged) == ("differs", "trained now", 1)


@pytest.mark.parametrize("wrong, words", [
    (lambda: table2([], tasks=["mnist"]), "no column for task 'mnist'"),
    (lambda: table2([], profile="huge"), "paper, cpu, smoke"),
    (lambda: build_index(".", failed=["table9"]), "Unknown experiment 'table9'")])
def test_wrong_names_are_refused_with_the_right_ones(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def figure():
    from matplotlib.figure import Figure
    made = Figure()
    made.add_subplot().plot([1, 2])
    return made


def test_the_index_shows_what_is_there_and_names_what_is_not(tmp_path):
    runs = [record(strategy, seed, TABLE2[strategy]["synthetic"], origin=origin)
            for strategy in TABLE2 for seed, origin in ((0, "local"), (1, "published"))]
    two, three = table2(runs), table3(runs)
    save_table(table2_html(two), "table2_benchmark", tmp_path, table2_rows(two), table2_about(two))
    save_table(table3_html(three), "table3_convergence", tmp_path, table3_rows(three), table3_about(three))
    save_table(simple_table("Parts", ["part", "from"], [("<script>alert(1)</script>", 'a "quoted" thing')]), "table1_components", tmp_path)
    for name in ("figure1_trinity", "figure4_stlr"):
        save_figure(figure(), name, tmp_path, alt='A line that rises, "quoted" & <bold>.')
    text = build_index(tmp_path, failed={"figure5": "ValueError: <nothing> to draw"}).read_text(encoding="utf-8")
    page = Balanced(text)
    assert "<script" not in text and "<nothing>" not in text and "ValueError: &lt;nothing&gt; to draw" in text
    assert "Figure 2 was not made in this run." in text and "5 of 8 tables and figures" in text
    assert all(name.replace("+", "+<wbr>") in text for name in TABLE2)
    assert [image["alt"] for image in page.images] == ['A line that rises, "quoted" & <bold>.'] * 2
    assert not [target for target in page.targets if re.match(r"(\w+:)?//", target)]
    local = [target for target in page.targets if not target.startswith(("#", "data:"))]
    assert local and all((tmp_path / target).exists() for target in local)
    assert not re.search(r"url\(|@import", text)


def test_the_csv_file_says_what_the_table_says(tmp_path):
    table = table2([record(seed=0), record(seed=1, best=98.0)])
    save_table(table2_html(table), "table2_benchmark", tmp_path, table2_rows(table), table2_about(table))
    with (tmp_path / "table2_benchmark.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["strategy"], row["task"]): row for row in csv.DictReader(file)}
    assert {key: row["verdict"] for key, row in rows.items()} == {key: cell.verdict for key, cell in table.cells.items()}
    assert rows["DALS", "synthetic-released"]["seeds"] == "0:97.00 1:98.00"


def test_a_second_build_replaces_the_first(tmp_path):
    assert build_index(tmp_path, failed=["table1"]) == build_index(tmp_path)
    assert 'class="failed"' not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_papermill_notebook(name):
    notebook = json.loads((ROOT / EXPERIMENTS[name].notebook).read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert re.search(r"^out = ", "".join(cell["source"]), re.M)
