"A copy of template/ does in two commands, those of its README, what chapter 4.23 says."
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parent.parent / "template"


def run(folder, *words):
    "A Python process in the copy, with one thread"
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "mine"
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("_*"))
    block = re.search(r"```sh\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)[1]
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[0] for command in commands] == ["dals", "papermill"]
    for module, *words in commands:
        run(folder, "-m", module, *words)
    return folder


FIELDS = "where", "what", "paper", "ours", "seeds", "verdict", "decides"
JUDGED = """
import json
import verdicts
from dals.lab.store import Store

def judge(unlike="", *folders):
    verdicts.UNLIKE = unlike
    rows = verdicts.judge(Store(*folders))
    return rows, verdicts.decide(rows, Store(*folders))

print(json.dumps({"own": judge(), "stand-in": judge("stand-in"), "no run": judge("", "none", "none"),
                  "published": judge("", "_results", "none")}))
"""


@pytest.fixture(scope="module")
def judged(mine):
    "By situation: the rows, and what would decide them"
    return {name: ([dict(zip(FIELDS, row, strict=True)) for row in rows], said)
            for name, (rows, said) in json.loads(run(mine, "-c", JUDGED)).items()}


def test_every_number_of_the_template_says_that_it_is_made_up():
    lines = [*csv.DictReader((TEMPLATE / "published.csv").read_text(encoding="utf-8").splitlines())]
    assert len(lines) == 5 and all(line["where"].startswith("made up") for line in lines)
    assert "made up" in (TEMPLATE / "README.md").read_text(encoding="utf-8")


def test_the_page_has_a_number_that_holds_one_that_does_not_and_an_open_one_with_what_would_decide_it(mine):
    found = [*csv.DictReader((mine / "_out" / "table1.csv").read_text(encoding="utf-8").splitlines())]
    assert [row["verdict"] for row in found] == ["differs", "agrees", "holds", "open", "does not hold"]
    assert [int(row["decides"]) > 8 for row in found] == [False, False, False, True, False] and {row["seeds"] for row in found} == {"8"}
    page = json.loads((mine / "_out" / "page.ipynb").read_text(encoding="utf-8"))
    data = [output["data"] for cell in page["cells"] for output in cell.get("outputs", []) if "data" in output]
    table, said = "".join(data[0]["text/html"]), "".join(data[1]["text/markdown"])
    assert "The paper does not exist" in "".join(page["cells"][0]["source"])
    for words in ("86.9", "<td>differs</td>", "<td>does not hold</td>", f"<td>{found[3]['decides']}</td>", "trained now, 16 runs",
                  "data: drawn with seed 7"):
        assert words in table, words
    total = int(found[3]["decides"])
    assert said.count("\n") == 0 and f"by estimate {total} seeds would decide it, {total - 8} more, for about" in said
    assert shlex.split(said.split("`")[1])[-2:] == ["--seeds", f"0-{total - 1 if total <= 42 else f'41,43-{total}'}"]


def test_the_means_and_the_interval_are_those_of_the_records(mine, judged):
    from scipy import stats
    folder, finals = mine / "_results" / "rings" / "paper" / "paper", []
    for name in ("Cosine Decay SGD", "AdamW"):
        texts = [(folder / name / f"{seed}.json").read_text(encoding="utf-8") for seed in range(8)]
        finals.append([json.loads(text)["final_accuracy"] for text in texts])
    leads = [a - b for a, b in zip(*finals, strict=True)]
    mean, half = sum(leads) / 8, stats.t.ppf(0.975, 7) * stats.sem(leads)
    assert {row["ours"] for row in judged["own"][0][2:]} == {f"{mean:.2f} ± {half:.2f}"}
    p = {points: stats.ttest_1samp(leads, points).pvalue for points in (0, 2, 5)}
    assert mean > 0 and p[0] < 0.05 and p[2] > 0.05 and p[5] < 0.05


def test_a_stand_in_is_named_in_its_verdicts(judged):
    assert [row["verdict"] for row in judged["stand-in"][0][:2]] == ["stand-in far", "stand-in near"]


def test_without_runs_nothing_is_judged_and_every_statement_says_what_it_needs(judged):
    rows, said = judged["no run"]
    assert [row["verdict"] for row in rows] == ["not run", "not run", "open", "open", "open"] and len(said) == 3
    for line in said:
        assert "by estimate 5 seeds would decide it, 5 more, for an unknown time" in line and line.endswith("--seeds 0-4`")


def test_published_records_make_the_page_without_training(judged):
    assert judged["published"] == judged["own"]
