"The door: what `import dals` gives, what works before torch is imported, and that the order of imports changes nothing."
import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import dals
from dals.recipes.strategies import Registry

ROOT = Path(__file__).resolve().parent.parent

NO_TORCH = """
import sys
class Without:
    "An environment in which torch cannot be imported"
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch": raise ModuleNotFoundError("torch is blocked", name=name)
sys.meta_path.insert(0, Without())
"""


def python(program, *words):
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_version_plans_and_help_need_no_torch():
    said = python(NO_TORCH + """
import dals, dals.cli, dals.lab.plans, dals.lab.intervals, dals.lab.statistics, dals.paper.published
assert {*dals.__all__, "lab", "optim"} <= {*dir(dals)} and dals.__version__ and dals.lab.plans is sys.modules["dals.lab.plans"]
print(len(dals.paper.published.TABLE2), round(dals.lab.intervals.binomial_se(50.0, 100), 6))
for words in (["--help"], ["reproduce", "--help"], ["train", "--help"], ["--version"]):
    try: dals.cli.main(words)
    except SystemExit as end: assert end.code in (0, None), words
try: dals.DALS
except ModuleNotFoundError as missing: print(missing)
print("torch" in sys.modules)
""")
    assert said.splitlines()[0] == "18 5.0" and said.splitlines()[-2:] == ["torch is blocked", "False"]
    assert "reproduce" in said and "usage: dals train" in said


def test_records_are_read_and_kept_without_torch(tmp_path):
    said = python(NO_TORCH + """
from pathlib import Path
from dals.lab.records import Config
from dals.lab.store import Store
store = Store(Path(sys.argv[1]), Path(sys.argv[2]))
runs = store.runs("synthetic", "paper", "paper", "DALS")
again = Store(sys.argv[2], sys.argv[2])
path = again.put(runs[0])
print(len(runs), store.path(Config("synthetic", "DALS", 0)) == path, again.runs() == runs[:1], store.unfinished(), "torch" in sys.modules)
""", ROOT / "results", tmp_path)
    number, rest = said.split(maxsplit=1)
    assert int(number) >= 10 and rest.split() == ["True", "True", "({},", "{})", "False"]


STATUS = NO_TORCH + """
import os, shutil
from pathlib import Path
from dals.cli import main
root, here = map(Path, sys.argv[1:])
os.chdir(here)
Path("settings.ini").touch()
for task in ("synthetic", "trec6+minilm-l6"): # records from before they said what their code does: that is asked of torch
    place = Path("results", task, "paper", "released" if task[0] == "t" else "paper", "DALS")
    place.mkdir(parents=True)
    for path in (root / place).glob("*.json"):
        if b'"behaviour"' not in path.read_bytes(): shutil.copy(path, place)
"""


def test_status_needs_no_torch_and_knows_a_nineteenth_strategy_and_a_task_of_ones_own(tmp_path):
    said = python(STATUS + """
from dals.lab.tasks import TASKS, Budget, Data, Split, Task, mlp, torch
from dals.recipes.strategies import Adam, cosine, strategy, trainable, warmed
def parity(budget): return Data(*[Split((torch.zeros(8, 16),), torch.zeros(8).long())] * 2, "nothing", "0")
budgets = {"paper": Budget(40, 64, 8, 8), "cpu": Budget(20, 64, 8, 8)}
TASKS["parity"] = Task("parity", "scratch", 2, parity, lambda: mlp(16, 2), budgets, chance=50.0)
@strategy("Adam+Cosine", "2", "Adam", "a test", scratch=dict(lr=3e-4), finetune=dict(lr=5e-5))
def adam_cosine(model, plan, *, lr, warmup=0.0): return Adam(trainable(model), lr), warmed(cosine, warmup)
for words in ([], ["--task", "synthetic", "parity"], ["--profile", "cpu"], ["--protocol", "tuned"], ["--seeds", "0-2", "--jobs", "1"]):
    assert main(["status", *words]) == 0, words
assert "torch" not in sys.modules
""", ROOT, tmp_path)
    lines = said.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("Adam+Cosine ")] == [["Adam+Cosine", "-"]] * 5
    runs = len(list((tmp_path / "results" / "synthetic").rglob("*.json")))
    assert runs >= 10 and f"synthetic: 1 of 19 cells complete, {runs} runs, 0 of them local; 18 more to complete them, for about" in said
    assert "parity: 0 of 19 cells complete, 0 runs" in said and "trec6+minilm-l6: 0 of 19 cells complete" in said
    assert "its rates are not all tuned: dals tune --task synthetic" in said


def test_who_hands_runs_to_workers_needs_no_torch(tmp_path):
    said = python(NO_TORCH + """
import os
from pathlib import Path
from dals.cli import main
os.chdir(sys.argv[1])
Path("settings.ini").touch()
assert main("train --task synthetic --strategy Adam DALS --profile smoke --seeds 0 --jobs 1".split()) == 0
print("torch" in sys.modules)
""", tmp_path)
    assert said.splitlines()[-1] == "False" and len([*tmp_path.rglob("0.json")]) == 2


def test_what_is_imported_later_is_what_type_checkers_read():
    import ast
    from importlib import import_module
    from dals.recipes.strategies import Later
    waiting = 0
    for path in sorted((ROOT / "dals").rglob("*.py")):
        if "Later(" not in (text := path.read_text(encoding="utf-8")): continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        typed = {alias.asname or alias.name: (node, alias.name) for block in ast.parse(text).body
                 if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                 for node in block.body for alias in node.names}
        for word, later in vars(import_module(name)).items():
            if isinstance(later, Later):
                node, original = typed.pop(word)
                there = import_module(original if isinstance(node, ast.Import) else node.module)
                assert later._find() is (there if isinstance(node, ast.Import) else getattr(there, original)), (name, word)
                waiting += 1
    assert waiting > 20


def test_every_name_is_what_its_module_makes_and_an_unknown_one_is_answered_with_those_there_are():
    for name in dals.__all__:
        made = getattr(dals, name)
        assert made is getattr(dals, name)
        if name != "STRATEGIES":
            assert made.__name__ == name and getattr(sys.modules[made.__module__], name) is made
    space: dict = {}
    exec("from dals import *", space)
    assert {*dals.__all__} <= {*space}
    with pytest.raises(AttributeError, match="no attribute 'Dals': it has DALS, "):
        dals.Dals  # noqa: B018


def test_the_names_for_type_checkers_are_those_that_are_imported():
    import ast
    from pathlib import Path
    tree = ast.parse(Path(dals.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"dals.{home}" for name, home in dals._HOMES.items()} and {*typed} == {*dals.__all__}


ORDERS = """
import importlib, json, sys
import torch
found = {}
for order in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "dals"]: del sys.modules[name]
    for name in order.split(): importlib.import_module(name)
    from dals.lab.tasks import TASKS
    from dals.recipes.strategies import PROTOCOLS
    found[order] = [list(TASKS), list(PROTOCOLS)]
print(json.dumps(found))
"""
TASKS = ["synthetic", "synthetic-released", "trec6+minilm-l6", "trec6", "rte+minilm-l6", "rte", "imdb+minilm-l6", "imdb", "cifar10",
         "cifar10+jpeg"]
PROTOCOLS = ["paper", "tuned", "ablation", "released"]


def test_tasks_and_protocols_do_not_depend_on_the_order_of_imports():
    orders = ["dals", "dals.lab.pictures", "dals.lab.texts dals.lab.pictures", "dals.lab.pictures dals.lab.texts", "dals.lab.training",
              "dals.recipes.released", "dals.recipes.released dals.recipes.ablation", "dals.recipes.replay dals.lab.tasks",
              "dals.lab.store dals.lab.pictures", "dals.paper.claims", "dals.lab.sweep", "dals.cli"]
    found = json.loads(python(ORDERS, *orders))
    for order in orders:
        assert found[order] == found["dals"], order
    tasks, protocols = found["dals"] # and somebody's own may stand between ours
    assert [name for name in tasks if name in TASKS] == TASKS and [name for name in protocols if name in PROTOCOLS] == PROTOCOLS


def test_a_task_that_is_added_first_is_known_and_is_none_of_the_papers():
    said = python("""
from dals.lab.tasks import TASKS, Budget, Task
TASKS["mine"] = Task("mine", "scratch", 2, None, None, {"smoke": Budget(1, 8, 8, 8)}, 50.0)
import sys
assert "dals.lab.texts" not in sys.modules
from dals.lab.training import PAPER_TASKS
print(*TASKS, "mine" in TASKS, "mine" in PAPER_TASKS)
del TASKS["mine"]
print("mine" in TASKS)
""")
    first, second = said.splitlines()
    *names, known, papers = first.split()
    assert {"mine", *TASKS} <= {*names} and len({*names}) == len(names) and [known, papers, second] == ["True", "False", "False"]


def test_a_registry_is_a_table():
    table: Registry[int] = Registry()
    table["one"], table["two"] = 1, 2
    assert table == {"one": 1, "two": 2} and repr(table) == "{'one': 1, 'two': 2}"
    table["one"] = 3
    assert list(table.values()) == [3, 2] and len(table) == 2
    del table["one"]
    assert list(table) == ["two"] and table.get("one") is None


def test_many_threads_may_look_at_once():
    said = python("""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from dals.lab.tasks import TASKS
from dals.recipes.strategies import PROTOCOLS
start = Barrier(8)
def look(i):
    start.wait()
    return (*TASKS,) if i % 2 else (*PROTOCOLS,)
with ThreadPoolExecutor(8) as pool: looks = {*pool.map(look, range(8))}
print(len(looks), looks == {(*TASKS,), (*PROTOCOLS,)})
""")
    assert said == "2 True\n"


@pytest.mark.parametrize("name", ["DALS", "DALSFast", "DALSAcc", "layer_groups", "fit", "benchmark", "own_task"])
def test_help_says_what_every_parameter_means(name):
    import re
    text = pydoc.render_doc(getattr(dals, name), renderer=pydoc.plaintext)
    for parameter in inspect.signature(getattr(dals, name)).parameters:
        listed = re.findall(rf"^[ |]*((?:\**\w+, )*\**{parameter}(?:, \**\w+)*) : ", text, re.M)
        assert listed or re.search(rf"^[ |]*(?:\**\w+, )*\**{parameter}(?:, \**\w+)*$", text, re.M), f"{name}: {parameter}"
