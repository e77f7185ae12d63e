"A strategy and a task that somebody adds, one cell each, in a copy of the repository: every command knows them."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STRATEGY = '''#| export
from torch.optim import SGD as _SGD_with_nesterov

@strategy("Nesterov SGD", "1", "SGD", "Nesterov 1983", scratch=dict(lr=0.02, momentum=0.9), finetune=dict(lr=1e-3, momentum=0.9))
def nesterov_sgd(model: nn.Module, plan: Plan, *, lr: float, momentum: float) -> Built:
    return _SGD_with_nesterov(trainable(model), lr, momentum, nesterov=True), constant'''
TASK = '''#| export
TASKS["stripes"] = replace(TASKS["synthetic"], name="stripes")'''


def added(path, source):
    "The notebook with one more cell at its end."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"].append({"cell_type": "code", "execution_count": None, "id": "newcomer", "metadata": {}, "outputs": [],
                              "source": source.splitlines(keepends=True)})
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("newcomers")
    for name in ("nbs", "dals"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("_out", "__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    added(root / "nbs/2_evidence/00_strategies.ipynb", STRATEGY)
    added(root / "nbs/4_workshop/08_tasks.ipynb", TASK)
    run(root, Path(sys.executable).parent / "nbdev_export")
    return root


def run(root, *words):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], cwd=root, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def dals(root, line, *more):
    "A command; the second of three parts is one word."
    words = [*line.split(), *more[:1], *" ".join(more[1:]).split()]
    return run(root, sys.executable, "-m", "dals.cli", *words)


def test_a_nineteenth_strategy_and_another_task_are_known_to_every_command(copy):
    where = run(copy, sys.executable, "-c", "import dals; print(dals.__file__, len(dals.STRATEGIES))")
    assert where.split() == [str(copy / "dals" / "__init__.py"), "19"]
    said = dals(copy, "train --task stripes synthetic-released --strategy", "Nesterov SGD", "DALS --seeds 0-1 --profile smoke --jobs 1")
    assert "8 of 8 runs to do" in said
    said = dals(copy, "status --profile smoke")
    (row,) = re.findall("^Nesterov SGD (.*)", said, re.M)
    assert row.split().count("2") == 2 and "stripes" in said and "of 19 cells complete" in said
    said = dals(copy, "status --profile smoke --protocol released") # which the newcomer is not in
    assert "Nesterov" not in said
    words = [sys.executable, "-m", "dals.cli", "train", "--task", "stripes", "--protocol", "released", "--strategy", "Nesterov SGD"]
    refused = subprocess.run(words, cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(copy)})
    assert refused.returncode == 2 and "protocol 'released' has no settings for Nesterov SGD" in refused.stderr
    dals(copy, "decide --profile smoke --dry-run")


def test_the_page_has_a_row_for_a_strategy_that_the_paper_lacks(copy):
    dals(copy, "reproduce --profile smoke --seeds 0 --only table2 --jobs 1")
    page = (copy / "_reproduced" / "index.html").read_text(encoding="utf-8")
    row = re.search(r'<tr><th scope="row" class="g">Nesterov SGD<small>not in the paper</small></th>(.*?)</tr>', page)
    assert row and re.search(r"<b>\d+\.\d\d</b>", row[1]) and "not run" in row[1] # ours by the text, and nothing under the other protocol
    assert page.count('<th scope="row" class="g') >= 19
