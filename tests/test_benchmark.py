"""A task of one's own: what is refused and in which words, what reaches the workers, what comes back."""

import json
import math
import re
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dals import benchmark, own_task
from dals.lab.compare import check, Comparison, default_target, load_task, stack, table
from dals.cli import main
from dals.lab.plans import counted_seeds, Refused
from dals.lab.store import Conflict, Store
from dals.lab.sweep import run_one
from dals.recipes.strategies import PAPER, STRATEGIES
from dals.lab.tasks import TASKS, Budget, get_task, Unavailable

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
TRAIN, TEST = (X[:80], Y[:80]), (X[80:], Y[80:])
FILE = """
import torch
from torch import nn
from dals import own_task
from beside import CLASSES

x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)
trials = []

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))

task = own_task("mine", model, (x[:80], y[:80]), (x[80:], y[80:]), epochs=2, batch_size=16)
"""


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def mine(**more):
    return own_task(**{"name": "mine", "model": net, "train": TRAIN, "test": TEST, "epochs": 2, "batch_size": 16, **more})


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    "A folder outside the repository, with a task in a file and what that file imports from beside it"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my_task.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "sub" / "beside.py").write_text("CLASSES = 3\n", encoding="utf-8")
    return tmp_path


def records(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in sorted((root / "_results").rglob("*.json"))}


class Returns(nn.Module):
    "A model that answers with whatever a function makes of its logits"
    def __init__(self, change):
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x):
        return self.change(self.net(x))


class Bare(Returns):
    def __init__(self):
        super().__init__(lambda logits: logits)
        self.magic = nn.Parameter(torch.ones(3))


def broken(value):
    x = TRAIN[0].clone()
    x[7, 1] = value
    return x, TRAIN[1]


SHARED = net()
LIES = {
    "label too high": (dict(classes=2), "labels of train go from 0 to 2, but 2 classes are numbered 0 to 1"),
    "label too high in the test": (dict(test=(X[80:], Y[80:] + 1), classes=3), "labels of test go from 1 to 3, but 3 classes"),
    "label below 0": (dict(train=(TRAIN[0], TRAIN[1] - 1)), "labels of train go from -1 to 1"),
    "labels from 1": (dict(train=(TRAIN[0], TRAIN[1] + 1), test=(TEST[0], TEST[1] + 1)),
                      "the labels of train go from 1 to 3, but 3 outputs are numbered 0 to 2: count them from 0, not from 1."),
    "more labels than outputs": (dict(test=(X[80:], Y[80:] + 2)), "labels of test go from 2 to 4, but 3 outputs are numbered 0 to 2."),
    "float labels": (dict(train=(TRAIN[0], TRAIN[1] + 0.5)), "the labels of train are real numbers (torch.float32)"),
    "labels that are nan": (dict(train=(TRAIN[0], TRAIN[1] * math.nan)), "the labels of train are real numbers"),
    "one-hot labels": (dict(test=(TEST[0], nn.functional.one_hot(TEST[1]))), "the labels of test have shape [40, 3]"),
    "one class": (dict(train=(TRAIN[0], TRAIN[1] * 0), test=(TEST[0], TEST[1] * 0)), "every label is 0"),
    "nan": (dict(train=broken(math.nan)), "train has inputs that are not finite: example 7 is the first"),
    "infinite": (dict(train=broken(-math.inf)), "train has inputs that are not finite: example 7 is the first"),
    "fewer examples than a batch": (dict(batch_size=81), "train has 80 examples, fewer than one batch of 81"),
    "no epochs": (dict(epochs=0), "at least one epoch"),
    "regime": (dict(regime="pretrain"), "regime 'pretrain' is neither"),
    "multipliers": (dict(multipliers={"Adam": -1.0}), "multipliers are positive numbers"),
    "family": (dict(multipliers={"Lion": 2.0}), "multipliers are positive numbers for 'SGD' and 'Adam'"),
    "a factor in words": (dict(multipliers={"Adam": "twice"}), "multipliers are positive numbers"),
    "a factor of yes": (dict(multipliers={"Adam": True}), "multipliers are positive numbers"),
    "no regime": (dict(regime=["scratch"]), "regime ['scratch'] is neither"),
    "no words": (dict(about=""), "the copy of the data is '', where the records need a few words"),
    "a number for words": (dict(about=7), "the copy of the data is 7, where the records need a few words"),
    "no parameters": (dict(model=lambda: nn.Flatten()), "no trainable parameters: there is nothing to train."),
    "frozen": (dict(model=lambda: net().requires_grad_(False)), "every one of its parameters has requires_grad=False"),
    "a module": (dict(model=SHARED), "model is a module"),
    "the same model": (dict(model=lambda: SHARED), "the same weights twice"),
    "no model": (dict(model=lambda: None), "returns a NoneType, not a torch.nn.Module"),
    "a factory with arguments": (dict(model=lambda width: net()), "the model function fails: TypeError"),
    "other weights": (dict(model=lambda: net().apply(lambda m: isinstance(m, nn.Linear) and nn.init.constant_(m.bias, next(COUNT)))),
                      "other weights for the same seed"),
    "wrong inputs": (dict(model=lambda: nn.Linear(5, 3)), "fails on a batch of 16 (inputs of shape [16, 4] float32): RuntimeError"),
    "too few logits": (dict(model=lambda: nn.Linear(4, 2)), "logits of shape [16, 2] for a batch of 16, where [16, 3] is needed"),
    "too many logits": (dict(model=lambda: nn.Linear(4, 4)), "logits of shape [16, 4]"),
    "a sequence of logits": (dict(model=lambda: Returns(lambda y: y[:, None])), "logits of shape [16, 1, 3]"),
    "logits of no example": (dict(model=lambda: Returns(lambda y: y[0])), "logits of shape [3]"),
    "a loss": (dict(model=lambda: Returns(lambda y: y.mean())), "a single number, as a loss would be"),
    "a dictionary": (dict(model=lambda: Returns(lambda y: {"logits": y})), "returns a dict, not a tensor of logits"),
    "nan logits": (dict(model=lambda: Returns(lambda y: y * math.nan)), "loss of the fresh model is not a finite number"),
    "detached": (dict(model=lambda: Returns(lambda y: y.detach())), "does not depend on the model's parameters"),
    "a last batch of one": (dict(model=lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), batch_size=79), "fails on a batch of 1 "),
    "no layer": (dict(model=Bare), "cannot tell how deep the parameter 'magic' lies"),
    **{f"name {name!r}": (dict(name=name), "cannot be a folder of the store")
       for name in ("", "a/b", "..", ".hidden", "a b", "x+draw-1", "a" * 101, "a\n", 7, None, b"a")},
    "a name of the paper's": (dict(name="synthetic-released"), "is one of the paper's tasks"),
}
COUNT = iter(range(1000))


@pytest.mark.parametrize("lie", LIES)
def test_a_task_that_lies_is_told_so_before_anything_trains(lie, tmp_path):
    more, says = LIES[lie]
    task, state = mine(**more), torch.get_rng_state()
    with pytest.raises(ValueError) as refused:
        benchmark(task, seeds=1, store=Store(local=tmp_path), progress=None)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir()) and torch.equal(torch.get_rng_state(), state) and "mine" not in TASKS


@pytest.mark.parametrize("changes, says", [
    ({"profiles": {}}, "no profile 'paper'"), ({"profiles": {"paper": None}}, "profile 'paper' of the task is None, not a"),
    *(({"profiles": {"paper": replace(Budget(2, 16, 80, 40), **{part: value})}}, f"{part} of the task is a whole number")
      for part in ("epochs", "batch_size", "train_examples", "test_examples") for value in (2.0, "2", None, True)),
    ({"classes": 3.0}, "classes of the task is a whole number"), ({"backbone": ""}, "the backbone is ''"),
    ({"read": lambda budget: None}, "reading the data fails: AttributeError"), ({"read": lambda budget: 1 / 0}, "reading the data fails"),
    ({"read": lambda budget: sys.exit(3)}, "reading the data fails: SystemExit: 3"),
])
def test_a_task_made_by_hand_with_a_part_of_another_kind_is_told_so(changes, says):
    with pytest.raises(ValueError) as refused:
        check(replace(mine(), **changes))
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("more, says", [
    *(({name: value}, f"{name} is a whole number, not") for name in ("epochs", "batch_size") for value in (2.5, "2", None, True, [2])),
    *(({"classes": value}, "the number of classes, is a whole number") for value in (3.0, "3", True)),
    ({"multipliers": 3}, "multipliers are positive numbers"), ({"train": (X * 1j, Y)}, "batch 1 of train has complex numbers"),
    ({"test": (X, Y * 1j)}, "batch 1 of test has complex numbers"),
])
def test_own_task_takes_numbers_for_numbers(more, says):
    with pytest.raises(ValueError) as refused:
        mine(**more)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    task = mine(epochs=np.int64(2), batch_size=np.int32(16), classes=np.int8(3))
    found = benchmark(task, ["Adam"], seeds=1, store=Store(local=tmp_path), progress=None)
    assert found.runs[0].history == benchmark(mine(), ["Adam"], seeds=1, store=Store(local=tmp_path), progress=None).runs[0].history


def test_a_file_that_does_not_end_says_so_and_one_that_moves_away_is_found_again(root, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(threading, "Timer", lambda *words: started.append(Clock(*words)) or started[-1])
    load_task("sub/my_task.py:task")
    assert [clock.at for clock in started] == [["start", "cancel"]]
    with pytest.warns(UserWarning, match="sub/my_task.py is still running after 20 seconds"):
        started[0].run()
    (root / "sub" / "my_task.py").write_text(f"import os\nos.chdir({str(root / 'sub')!r})\n" + FILE, encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.chdir(root)
    assert main(["benchmark", "sub/my_task.py:task", "--strategy", "Adam", "--seeds", "1", "--jobs", "1", "--out", "page"]) == 0
    assert len(records(root)) == 1 and (root / "page" / "mine.md").is_file() and "page/mine.md" in capsys.readouterr().out.splitlines()


class Clock:
    "A timer that is told when its time has come"
    def __init__(self, seconds, what, words):
        self.run, self.at = lambda: what(*words), []

    def start(self):
        self.at.append("start")

    def cancel(self):
        self.at.append("cancel")


def test_the_truth_is_believed_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    assert len(check(mine()).train) == 80 and torch.equal(torch.get_rng_state(), state)
    check(mine(model=lambda: Bare()), strategies=["AdamW", "LARS"]) # these do not ask for layers
    check(get_task("synthetic"), "smoke")


@pytest.mark.parametrize("batches, says", [
    ([], "train is empty: it yielded no example"), (iter([]), "train is empty"), (None, "a NoneType, which yields no batches"),
    ((X[:0], Y[:0]), "train is empty"), (TensorDataset(X, Y), "batch 1 of train is a single example"),
    ([X, Y, X], "batch 1 of train is a Tensor, not a pair"), ([(X, Y, Y)], "batch 1 of train is 3 things, not a pair"),
    ([(X, Y), (X, Y[:-1])], "batch 2 of train has 120 inputs and 119 labels"),
    ([(X, Y), (X[:, 1:], Y)], "batch 2 of train has inputs of another shape"),
    ([((X, X[1:]), Y)], "batch 1 of train has 119 inputs and 120 labels"), ([("a text", Y)], "is not made of numbers"),
    ([(X, Y), (X, Y[:, None])], "differ in shape from batch to batch"),
])
def test_batches_that_do_not_fit_are_named(batches, says):
    with pytest.raises(ValueError) as refused:
        stack(batches)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_however_batches_come_they_make_one_task():
    ways = [TRAIN, list(TRAIN), (TRAIN[0].double().numpy(), TRAIN[1].int().numpy()), DataLoader(TensorDataset(*TRAIN), batch_size=7),
            [(TRAIN[0][:50], TRAIN[1][:50]), (TRAIN[0][50:], TRAIN[1][50:])], (pair for pair in [TRAIN])]
    tasks = [mine(train=way) for way in ways]
    for task in tasks:
        data = task.load()
        assert torch.equal(data.train.inputs[0], TRAIN[0]) and torch.equal(data.train.labels, TRAIN[1])
        assert data.fingerprint == tasks[0].load().fingerprint and task.classes == 3
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=7, shuffle=True)
    assert mine(train=loader).load().fingerprint == mine(train=loader).load().fingerprint != tasks[0].load().fingerprint
    changed = mine(train=(TRAIN[0], TRAIN[1].flip(0)))
    assert changed.load().fingerprint != tasks[0].load().fingerprint
    two = mine(train=((TRAIN[0], TRAIN[0][:, 0]), TRAIN[1]))
    assert [x.shape for x in two.load().train.inputs] == [(80, 4), (80,)]
    assert mine(multipliers={"Adam": 3.0}).multipliers == {"SGD": 1.0, "Adam": 3.0}


def test_a_second_call_does_what_is_missing_and_a_run_is_that_of_fit(tmp_path):
    store, said = Store(local=tmp_path), []
    names = ["Fixed SGD", "SAM", "DALS"]
    first = benchmark(mine(), names[:2], seeds=1, store=store, progress=said.append)
    assert said[0] == "2 of 2 runs to do" and "mine" not in TASKS
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    second = benchmark(mine(), names, seeds=[0, 3], store=store, progress=said.append)
    assert "4 of 6 runs to do" in said and {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "mine" / "paper" / "paper" / "DALS" / "3.json").is_file()
    assert len(second.runs) == 6 and len(first.runs) == 2
    TASKS["mine"] = mine()
    try:
        alone = run_one({"task": "mine", "strategy": "DALS", "seed": 3})
    finally:
        del TASKS["mine"]
    assert alone.history == next(run.history for run in second.runs if (run.strategy, run.seed) == ("DALS", 3))
    for other, says in ((mine(train=(X[:80] + 1, Y[:80])), "on other data"), (mine(epochs=3), "other settings"),
                        (mine(multipliers={"SGD": 2.0}), "other settings")):
        with pytest.raises(Conflict, match=says) as refused:
            benchmark(other, names, seeds=1, store=store, progress=None)
        assert "another name" in str(refused.value) and "variant" not in str(refused.value)


def test_a_task_in_a_file_trains_in_two_processes_as_it_does_here(root, capsys):
    words = ["benchmark", "sub/my_task.py:task", "--strategy", "Fixed SGD", "DALS", "--seeds", "0-1", "--out", "_page"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "4 of 4 runs to do" in out and "last epoch, %" in out and "nobody tuned for this task" in out
    before = records(root)
    assert len(before) == 4 and "_results/mine/paper/paper/DALS/1.json" in before
    assert main([*words, "--jobs", "1"]) == 0
    assert "nothing to do: all 4 runs are in the store" in capsys.readouterr().out and records(root) == before
    here = benchmark(mine(), ["Fixed SGD", "DALS"], seeds=2, store=Store(local="_here"), progress=None)
    there = Store().runs("mine")
    assert {(run.strategy, run.seed): run.history for run in here.runs} == {(run.strategy, run.seed): run.history for run in there}
    page = (root / "_page" / "mine.md").read_text(encoding="utf-8")
    assert page.startswith("# mine\n\nUntuned: ") and "\n\n| strategy |" in page and page.count("\n| ") == 4
    for name in ("curves", "cost"):
        assert (root / "_page" / f"mine_{name}.png").read_bytes().startswith(b"\x89PNG")
        about = json.loads((root / "_page" / f"mine_{name}.json").read_text(encoding="utf-8"))
        assert f"(mine_{name}.png)" in page and len(about["alt"]) > 30


def test_an_object_that_can_be_imported_reaches_the_workers_and_another_says_it_cannot(tmp_path):
    result = benchmark(mine(), ["Adam"], seeds=2, jobs=2, store=Store(local=tmp_path), progress=None)
    assert len(result.runs) == 2 and not result.failed
    with pytest.raises(ValueError, match="cannot travel to worker processes .*: leave jobs at 1"):
        benchmark(mine(model=lambda: net()), ["Adam"], seeds=3, jobs=2, store=Store(local=tmp_path), progress=None)


def test_a_script_gives_its_own_task_to_its_workers(root):
    script = FILE.replace("from beside import CLASSES", "CLASSES = 3") + (
        "from dals import benchmark\n"
        "if __name__ == '__main__':\n    print(benchmark(task, ['Fixed SGD', 'Lion'], seeds=1, jobs=2, progress=None))\n")
    (root / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("strategy") and len(records(root)) == 2


@pytest.mark.parametrize("words, says", [
    (["sub/my_task.py"], "write FILE.py:NAME"), (["nowhere.py:task"], "there is no file nowhere.py"),
    (["sub/my_task.py:tusk"], "Did you mean 'task'?"), (["sub/my_task.py:trials"], "is a list, not a task"),
    (["sub/beside.py:task"], "makes no task"), (["sub/broken.py:task"], "sub/broken.py, line 2: ZeroDivisionError"),
    (["sub/liar.py:task"], "logits of shape [16, 2] for a batch of 16"), (["sub/empty.py:task"], "train is empty"),
    (["sub/my_task.py:task", "--strategy", "Adm"], "Did you mean 'Adam'?"),
    (["sub/my_task.py:task", "--profile", "cpu"], "Known: paper, smoke"),
    (["sub/my_task.py:task", "--protocol", "text"], "There is no protocol 'text'"),
    (["sub/my_task.py:task", "--device", "abacus"], "no device"),
    (["sub/my_task.py:task", "--seeds", "x"], "is no seed"), (["sub/my_task.py:task", "--seeds", ""], "names no seed"),
])
def test_on_the_command_line_a_fault_is_one_sentence(root, capsys, words, says):
    (root / "sub" / "broken.py").write_text("import dals\n1 / 0\n", encoding="utf-8")
    (root / "sub" / "liar.py").write_text(FILE.replace("8, CLASSES", "8, 2"), encoding="utf-8")
    (root / "sub" / "empty.py").write_text(FILE.replace("(x[:80], y[:80])", "[]"), encoding="utf-8")
    assert main(["benchmark", *words]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("dals: ") and err.count("\n") == 1 and not out and not records(root)


def test_a_run_that_fails_is_counted_and_the_others_go_on(tmp_path):
    def moody():
        class Net(Returns):
            def forward(self, x): # fails in evaluation, where the check does not look
                assert self.training, "no answers today"
                return self.net(x)
        return Net(lambda logits: logits)
    with pytest.raises(RuntimeError, match="none of the 2 runs came to an end: AssertionError: no answers today"):
        benchmark(mine(model=moody), ["Adam", "Lion"], seeds=1, store=Store(local=tmp_path), progress=None)
    store = Store(local=tmp_path / "two")
    benchmark(mine(), ["Adam"], seeds=1, store=store, progress=None)
    result = benchmark(mine(model=moody), ["Adam", "Lion"], seeds=1, store=store, progress=None)
    assert [key.strategy for key in result.failed] == ["Lion"] and len(result.rows) == 1
    assert "1 run failed and is not counted" in str(result)


def test_where_every_run_fails_the_command_says_why_and_fails(root, capsys):
    (root / "moody.py").write_text(FILE.replace("from beside import CLASSES", "CLASSES = 3").replace("def model():", """
class Net(nn.Linear):
    def forward(self, x):
        assert self.training, "no answers today"
        return super().forward(x)

def model():
    return Net(4, 3)"""), encoding="utf-8")
    assert main(["benchmark", "moody.py:task", "--strategy", "Adam", "--seeds", "1", "--jobs", "1"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED, AssertionError: no answers today" in out
    assert err == "dals: none of the 1 runs came to an end: AssertionError: no answers today\n"


def test_a_file_that_draws_other_data_each_time_is_found_out_unless_torch_draws(root, capsys):
    for name, draw in (("numpy", "torch.from_numpy(__import__('numpy').random.permutation(120))"), ("torch", "torch.randperm(120)")):
        text = FILE.replace("trials = []", f"order = {draw}\nx, y = x[order], y[order]")
        (root / "sub" / f"{name}_split.py").write_text(text, encoding="utf-8")
    assert main(["benchmark", "sub/numpy_split.py:task", "--strategy", "Adam", "--seeds", "1"]) == 2
    out, err = capsys.readouterr()
    assert "makes other data each time it is run" in err and err.count("\n") == 1 and not out and not records(root)
    assert main(["benchmark", "sub/torch_split.py:task", "--strategy", "Adam", "--seeds", "1"]) == 0
    assert Store().runs("mine")[0].data["fingerprint"] == load_task("sub/torch_split.py:task").load().fingerprint


def test_a_model_that_returns_more_than_logits_is_told_where_they_are(tmp_path):
    task = mine(model=lambda: Returns(lambda logits: {"logits": logits}))
    task = replace(task, logits=lambda model, *inputs: model(*inputs)["logits"], augment=lambda x: x + 0.0)
    told_so = benchmark(task, ["DALS"], seeds=1, store=Store(local=tmp_path / "a"), progress=None)
    plain = mine(model=lambda: Returns(lambda logits: logits))
    plain = benchmark(plain, ["DALS"], seeds=1, store=Store(local=tmp_path / "b"), progress=None)
    assert told_so.runs[0].history == plain.runs[0].history


def test_missing_data_is_its_own_sentence_and_other_records_do_not_disturb_verify(root, capsys):
    def read(budget):
        raise Unavailable("The tape is in the other room.")
    with pytest.raises(Unavailable, match="other room"):
        benchmark(replace(mine(), read=read), seeds=1, progress=None)
    assert main(["benchmark", "sub/my_task.py:task", "--strategy", "Adam", "--seeds", "1", "--jobs", "1"]) == 0
    assert main(["train", "--task", "synthetic", "--strategy", "Adam", "--profile", "smoke", "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["verify", "-n", "5"]) == 0
    assert "repeating 1 of 1 records" in capsys.readouterr().out
    assert main(["status", "--profile", "smoke", "--task", "synthetic"]) == 0


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return benchmark(mine(), ["Adam"], seeds=1, store=Store(local=tmp_path_factory.mktemp("store")), progress=None).runs[0]


def told(record, strategy, seed, scores, seconds=1.0, diverged=False):
    history = [{"epoch": epoch, "train_loss": 1.0, "test_accuracy": float(score), "lr": 0.1} for epoch, score in enumerate(scores, 1)]
    return replace(record, strategy=strategy, seed=seed, history=history, seconds=seconds, diverged=diverged,
                   best_accuracy=float(max(scores)) if scores else None, final_accuracy=float(scores[-1]) if scores else None)


def test_the_rows_are_what_the_runs_say(record):
    runs = [told(record, "Adam", 0, [50, 99, 60], 2), told(record, "Adam", 1, [50, 60, 62], 4), told(record, "Fixed SGD", 0, [10, 70.5], 2),
            told(record, "Lion", 0, []), told(record, "SAM", 0, [80, 80, 80, 80], 8, True)]
    rows = {row.strategy: row for row in table(runs)}
    assert list(rows) == ["SAM", "Fixed SGD", "Adam", "Lion"] # by the last epoch, nothing last
    assert default_target(runs) == 70.0 and default_target([*runs, told(record, "Fixed SGD", 1, [30.9])]) == 30.0
    assert default_target(runs[:2]) == 61.0 and default_target(runs[3:4]) == 0.0
    adam, sam, lion = rows["Adam"], rows["SAM"], rows["Lion"]
    assert (adam.best.mean, adam.final.mean, adam.epochs, adam.seconds, adam.relative) == (80.5, 61.0, math.inf, 3.0, 1.5)
    assert (sam.epochs, sam.wait, sam.relative, sam.gradients, sam.diverged, sam.runs) == (1, 2.0, 4.0, 2, 1, 1)
    assert lion.final is None and lion.best is None and lion.epochs == math.inf
    assert {row.strategy: row.epochs for row in table(runs, 60)} == {"SAM": 1, "Fixed SGD": 2, "Adam": 2, "Lion": math.inf}
    assert table(runs[:2])[0].relative is None
    result = Comparison("mine", runs, 70.0)
    assert "SAM (1 of 1)" in str(result) and "| Lion | 5 | none | none | never | never |" in result.markdown()


def test_a_generation_has_one_colour_everywhere_and_every_strategy_is_drawn(record):
    from matplotlib.colors import to_hex
    runs = [told(record, name, seed, [50 + seed, 60 + i]) for i, name in enumerate(STRATEGIES) for seed in (0, 1)]
    result = Comparison("mine", [*runs, told(record, "Adam", 2, [])], 60.0)
    figure = result.curves()
    assert [ax.get_title(loc="left") for ax in figure.axes[:6]] == [*(f"generation {i}" for i in range(1, 6)), "the paper's own"]
    colours = ["#d9b65c", "#5fb0a0", "#4a8ec2", "#9a559e", "#2f5d3a", "#7a1020"]
    drawn = {}
    for ax, colour in zip(figure.axes[:6], colours, strict=True):
        for line in ax.lines:
            if not line.get_label().startswith("_"):
                drawn[line.get_label()] = list(line.get_ydata())
                assert to_hex(line.get_color()) == colour
    assert drawn == {name: [50.5, 60 + i] for i, name in enumerate(STRATEGIES)}
    cost = result.cost()
    assert [text.get_text() for text in cost.axes[0].get_yticklabels()] == [row.strategy for row in result.rows]
    assert "<table" in result._repr_html_() and all(name in result._repr_html_() for name in STRATEGIES)


def test_one_run_and_no_run_are_drawn_too(record, tmp_path):
    one = Comparison("mine", [told(record, "DALS", 0, [50.0])], 60.0)
    assert "nothing to compare with" in str(one) and len(one.save(tmp_path)) == 5
    none = Comparison("mine", [told(record, "DALS", 0, [])], 60.0)
    assert "No run finished an epoch." in str(none) and len(none.save(tmp_path)) == 3


def test_load_task_finds_what_lies_beside_it_and_leaves_the_path_alone(root):
    before = list(sys.path)
    assert load_task("sub/my_task.py:task").classes == 3 and sys.path == before


def test_budgets_of_an_own_task():
    assert mine().profiles == {"paper": Budget(2, 16, 80, 40), "smoke": Budget(2, 16, 80, 40)}
    assert mine(epochs=9, batch_size=5).profiles["smoke"] == Budget(2, 5, 40, 40)


SCRIPT = FILE.replace("from beside import CLASSES", "from dals import benchmark\nCLASSES = 3") # a task, and below it a call


def test_a_script_without_a_guard_is_told_so_before_a_worker_starts(root):
    (root / "bare.py").write_text(f"{SCRIPT}\nprint(benchmark(task, ['Adam'], seeds=2, jobs=2))\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "bare.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1 and "memory" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: ") and 'below `if __name__ == "__main__":`' in done.stderr
    assert not records(root)


@pytest.mark.parametrize("program, found", [
    ("answer = unguarded()", True), ("def f():\n    return unguarded()\nanswer = f()", True),
    ("import logging\nlog = logging.getLogger(__name__)\ntry:\n    answer = unguarded()\nfinally:\n    pass", True),
    ("if __name__ == '__main__':\n    answer = unguarded()", False), ("if '__main__' == __name__ and 1:\n    answer = unguarded()", False),
    ("if __name__ != '__main__':\n    raise SystemExit\nanswer = unguarded()", False),
    ("def f():\n    return unguarded()\nif __name__ == '__main__':\n    answer = f()", False),
    ("answer = unguarded()\nif __name__ == '__main__':\n    pass", True),
    ("import multiprocessing\nif multiprocessing.parent_process() is None:\n    answer = unguarded()", False)])
def test_what_counts_as_a_guard(root, program, found):
    (root / "script.py").write_text(f"from dals.lab.sweep import unguarded\n{program}\n", encoding="utf-8")
    assert runpy.run_path("script.py", run_name="__main__")["answer"] is found
    exec(compile(f"from dals.lab.sweep import unguarded\n{program}", "<cell>", "exec"), cell := {"__name__": "__main__"})
    assert cell["answer"] is False # a cell of a notebook is imported by nobody


def test_strategies_that_the_file_registers_are_known_on_the_command_line(root, capsys, monkeypatch):
    for names in (STRATEGIES, PAPER.compositions, *PAPER.settings.values()):
        monkeypatch.setitem(names, "Plain", None) # so that it is taken out again
    (root / "plain.py").write_text(FILE.replace("from beside import CLASSES", """
from dals.optim.schedule import constant
from dals.recipes.strategies import strategy
CLASSES = 3

@strategy("Plain", "home-made", "SGD", "nobody's", scratch={"lr": 0.1}, finetune={"lr": 0.1})
def plain(model, plan, *, lr):
    return torch.optim.SGD(model.parameters(), lr), constant
"""), encoding="utf-8")
    words = ["benchmark", "plain.py:task", "--strategy", "Plain", "Adam", "--seeds", "1", "--jobs", "1", "--out", "page"]
    assert main(words) == 0
    assert "Plain" in capsys.readouterr().out and len(records(root)) == 2 and (root / "page" / "mine_curves.png").is_file()
    assert main(["benchmark", "plain.py:task", "--strategy", "Plane"]) == 2
    assert "Did you mean 'Plain'?" in capsys.readouterr().err


@pytest.mark.parametrize("package, words", [("scipy", []), ("matplotlib", ["--out", "page"])])
def test_a_plain_install_says_before_training_what_the_table_needs(root, capsys, monkeypatch, package, words):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["benchmark", "sub/my_task.py:task", "--strategy", "Adam", "--seeds", "1", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"needs the package {package}: pip install" in err and not records(root)


@pytest.mark.parametrize("target", [math.nan, math.inf, -0.1, 100.5])
def test_a_target_is_an_accuracy(tmp_path, target):
    with pytest.raises(ValueError, match="from 0 to 100"):
        benchmark(mine(), ["Adam"], seeds=1, target=target, store=Store(local=tmp_path), progress=None)


def test_what_leaves_the_program_is_a_fault_of_the_file(root):
    (root / "exits.py").write_text("import sys\n\n\nsys.exit('for lunch')\n", encoding="utf-8")
    with pytest.raises(ValueError, match="exits.py, line 4: SystemExit: for lunch"):
        load_task("exits.py:task")
    with pytest.raises(ValueError, match="the model function fails: SystemExit"):
        check(mine(model=lambda: sys.exit(1)))


def test_a_table_stays_whole_whatever_a_strategy_is_called(monkeypatch):
    name = "a|b \\| <b>c</b>\nd"
    monkeypatch.setitem(STRATEGIES, name, replace(STRATEGIES["Adam"], name=name))
    run = run_one({"task": "synthetic", "strategy": "Adam", "profile": "smoke"})
    lines = Comparison("mine", [run, replace(run, strategy=name)], 50.0).markdown().splitlines()
    head, rule, *rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 and {len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) for line in (head, rule, *rows)} == {13}
    assert any("a\\|b \\\\\\| &lt;b>c&lt;/b> d" in row for row in rows)


@pytest.mark.parametrize("words, seeds", [(["3"], [0, 1, 2]), (["2-3"], [2, 3]), (["3,7"], [3, 7]), (["3", "7"], [3, 7]), (["4,"], [4]),
                                          (["0"], [0])])
def test_a_number_alone_says_how_many_seeds_as_in_python(words, seeds):
    assert counted_seeds(words) == seeds


def test_what_is_no_seed_and_too_many_are_refused_before_anything_is_read():
    for words, reason in ((["5000"], "more than the 1000 seeds"), (["x"], "is no seed")):
        with pytest.raises(Refused, match=reason):
            counted_seeds(words)
