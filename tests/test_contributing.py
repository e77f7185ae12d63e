"CONTRIBUTING.md, done: its cells are put into the notebooks of a copy and exported; every command and `make check` know what they add."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bs4
import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def cells(heading):
    "The code blocks under a heading"
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)


def test_every_link_and_path_of_the_guide_exists():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", GUIDE):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:nbs|tests|tools|dals|docs)/[\w/.]+)`", GUIDE):
        assert "NAME" in path or (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {*re.findall(r"`make (\w+)`", GUIDE)} <= targets


IGNORED = shutil.ignore_patterns("_out", "_proc", "_reproduced", "__pycache__", ".ipynb_checkpoints", "golden.json")


def insert(copy, notebook, source, after):
    "A new code cell behind the last one that matches"
    path = copy / "nbs" / notebook
    content = json.loads(path.read_text(encoding="utf-8"))
    at = max(i for i, cell in enumerate(content["cells"]) if cell["cell_type"] == "code" and after in "".join(cell["source"]))
    content["cells"].insert(at + 1, {"cell_type": "code", "execution_count": None, "id": "a-new-one", "metadata": {}, "outputs": [],
                                     "source": source.splitlines(keepends=True)})
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The repository with a few of its records, and with the guide's strategy, protocol, task and optimizer, exported"
    pytest.importorskip("nbdev")
    copy = tmp_path_factory.mktemp("newcomers")
    for name in ("nbs", "dals", "tests", "tools", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=IGNORED)
    for name in ("settings.ini", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, copy)
    some = Path("results") / "synthetic" / "paper" / "paper" / "DALS"
    shutil.copytree(ROOT / some, copy / some)
    (copy / ".venv").symlink_to(sys.prefix)
    (strategy,), (protocol,), (task,), (optimizer,) = map(cells, ("A strategy", "A protocol", "A task", "An optimizer"))
    insert(copy, "2_evidence/00_strategies.ipynb", protocol, '@strategy("DALS-Acc"')
    insert(copy, "2_evidence/00_strategies.ipynb", strategy, '@strategy("DALS-Acc"')
    insert(copy, "4_workshop/08_tasks.ipynb", task, "#| export\ndef sum_rule(")
    insert(copy, "1_generations/05_joint.ipynb", optimizer, "#| export\nclass Lion(")
    run(copy, Path(sys.executable).parent / "nbdev_export")
    run(copy, sys.executable, "tools/house.py")
    return copy


def start(copy, *words):
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1",
                   "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")} # what mypy found in torch holds here too
    return subprocess.run([*map(str, words)], cwd=copy, env=environment, capture_output=True, text=True, timeout=900)


def run(copy, *words):
    done = start(copy, *words)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


def dals(copy, *words):
    return run(copy, sys.executable, "-m", "dals.cli", *words)


def test_an_optimizer_is_one_cell(copy):
    said = run(copy, sys.executable, "-c", """
import dals
import torch
print(len(dals.STRATEGIES), dals.__file__)
from dals.optim.joint import SignSGD
p = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
p.grad = torch.tensor([2.0, -0.5, 0.0])
SignSGD([p], 0.25).step()
print(p.tolist())
try: SignSGD([p], -1.0)
except ValueError as error: print(error)
""")
    assert said.splitlines() == [f"19 {copy / 'dals' / '__init__.py'}", "[0.75, -0.75, 0.5]", "lr must be at least 0, not -1.0."]


def test_a_strategy_and_a_task_are_known_to_every_command(copy):
    said = dals(copy, "train", "--task", "parity", "synthetic-released", "--strategy", "Adam+Cosine", "DALS", "--seeds", "0-1",
                "--profile", "smoke", "--jobs", "1")
    assert "8 of 8 runs to do" in said
    for path in copy.rglob("parity/smoke/paper/Adam+Cosine/*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["best_accuracy"] > 0
    said = dals(copy, "status", "--profile", "smoke")
    (row,) = re.findall(r"^Adam\+Cosine (.*)", said, re.M)
    assert row.split().count("2") == 2 and "parity" in said and "of 19 cells complete" in said
    assert "Adam+Cosine" not in dals(copy, "status", "--profile", "smoke", "--protocol", "released") # which the newcomer is not in
    refused = start(copy, sys.executable, "-m", "dals.cli", "train", "--task", "parity", "--protocol", "released",
                    "--strategy", "Adam+Cosine")
    assert refused.returncode == 2 and "protocol 'released' has no settings for Adam+Cosine" in refused.stderr
    dals(copy, "decide", "--profile", "smoke", "--dry-run")


def test_a_protocol_is_one_cell(copy):
    dals(copy, "train", "--task", "parity", "--strategy", "Adam+Cosine", "--protocol", "halved", "--profile", "smoke", "--seeds", "0",
         "--jobs", "1")
    (record,) = copy.rglob("parity/smoke/halved/Adam+Cosine/0.json")
    assert json.loads(record.read_text(encoding="utf-8"))["config"]["hyperparameters"]["lr"] == 1.5e-4
    assert "protocol halved" in dals(copy, "status", "--profile", "smoke", "--protocol", "halved")


def test_the_page_has_a_row_for_a_strategy_that_the_paper_lacks(copy):
    dals(copy, "reproduce", "--profile", "smoke", "--seeds", "0", "--only", "table2", "--jobs", "1")
    page = bs4.BeautifulSoup((copy / "_reproduced" / "index.html").read_text(encoding="utf-8"), "html.parser")
    rows = {head.get_text(): head.find_parent("tr").get_text(" ") for head in page.find_all("th", scope="row")}
    (row,) = (text for head, text in rows.items() if head.startswith("Adam+Cosine") and "not in the paper" in head)
    assert re.search(r"\b\d+\.\d\d\b", row) and "not run" in row # ours by the text, and nothing under the other protocol
    assert len(rows) >= 19


def test_make_check_passes_with_the_newcomers(copy):
    if not shutil.which("make"):
        pytest.skip("there is no make here")
    said = run(copy, "make", "check")
    assert re.search(r"^\d+ passed, 0 failed", said, re.M)
