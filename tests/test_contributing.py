"CONTRIBUTING.md, done: its cells are put into the notebooks of a copy, exported, and used from the command line."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


IGNORED = shutil.ignore_patterns("_out", "_proc", "_reproduced", "__pycache__", "*.png", "golden.json")


@pytest.fixture
def copy(tmp_path):
    for name in ("nbs", "dals", "tests", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=IGNORED)
    for name in ("settings.ini", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def insert(copy, notebook, source, after):
    "A new code cell behind the last one that matches"
    path = copy / "nbs" / notebook
    content = json.loads(path.read_text(encoding="utf-8"))
    at = max(i for i, cell in enumerate(content["cells"]) if cell["cell_type"] == "code" and after in "".join(cell["source"]))
    content["cells"].insert(at + 1, {"cell_type": "code", "execution_count": None, "id": "a-new-one", "metadata": {}, "outputs": [],
                                     "source": source.splitlines(keepends=True)})
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def test_a_strategy_a_protocol_a_task_and_an_optimizer_are_one_cell_each(copy):
    pytest.importorskip("nbdev")
    (strategy,), (protocol,), (task,), (optimizer,) = map(cells, ("A strategy", "A protocol", "A task", "An optimizer"))
    insert(copy, "2_evidence/00_strategies.ipynb", protocol, '@strategy("DALS-Acc"')
    insert(copy, "2_evidence/00_strategies.ipynb", strategy, '@strategy("DALS-Acc"')
    insert(copy, "4_workshop/08_tasks.ipynb", task, "#| export\ndef sum_rule(")
    insert(copy, "1_generations/05_joint.ipynb", optimizer, "#| export\nclass Lion(")
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def run(*words):
        done = subprocess.run([*map(str, words)], cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dals(*words): return run(sys.executable, "-c", "import sys, dals.cli; sys.exit(dals.cli.main(sys.argv[1:]))", *words)

    run(Path(sys.executable).parent / "nbdev_export")
    run(sys.executable, "tools/house.py")
    run(sys.executable, "tools/house.py", "--check")
    run(Path(sys.executable).parent / "ruff", "check", "dals")
    assert run(sys.executable, "-c", "import dals; print(len(dals.STRATEGIES), dals.__file__)").split() == [
        "19", str(copy / "dals" / "__init__.py")]
    assert run(sys.executable, "-c", """
import torch
from dals.optim.joint import SignSGD
p = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
p.grad = torch.tensor([2.0, -0.5, 0.0])
SignSGD([p], 0.25).step()
print(p.tolist())
try: SignSGD([p], -1.0)
except ValueError as error: print(error)
""").splitlines() == ["[0.75, -0.75, 0.5]", "lr must be at least 0, not -1.0."]
    dals("train", "--task", "parity", "--strategy", "Adam+Cosine", "--profile", "smoke", "--seeds", "0", "--jobs", "1")
    (record,) = copy.rglob("parity/smoke/paper/Adam+Cosine/0.json")
    assert json.loads(record.read_text(encoding="utf-8"))["best_accuracy"] > 0
    assert "parity" in dals("status", "--profile", "smoke", "--task", "parity")
    dals("train", "--task", "parity", "--strategy", "Adam+Cosine", "--protocol", "halved", "--profile", "smoke", "--seeds", "0",
         "--jobs", "1")
    (record,) = copy.rglob("parity/smoke/halved/Adam+Cosine/0.json")
    assert json.loads(record.read_text(encoding="utf-8"))["config"]["hyperparameters"]["lr"] == 1.5e-4
    assert "Adam+Cosine" in dals("status", "--profile", "smoke", "--protocol", "halved")
