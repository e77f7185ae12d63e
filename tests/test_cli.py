"""The program from outside: what it refuses, what it survives, and what it leaves behind."""

import contextlib
import copy
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import dals.lab.compare
import dals.lab.sweep
from dals import __version__, cli
from dals.lab import tasks
from dals.cli import main, parser
from dals.lab.plans import columns, cost, expected, parse_seeds, plan, seeds_text
from dals.recipes.released import VARIANTS
from dals.paper.page import check_parameters
from dals.lab.records import Key
from dals.lab.store import claimed, Store
from dals.lab.sweep import run_one
from dals.recipes.strategies import STRATEGIES
from dals.lab.training import device_name, find_device
from dals.lab.tuning import Choice
from records import assert_no_wait

DALS = [sys.executable, "-m", "dals.cli"]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(root: Path) -> dict[str, tuple[int, int]]:
    "Which records there are, and what would change if one were written again."
    return {path.as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (root / "_results").rglob("*.json")}


def experiment(root: Path, name: str, code: str, parameters: str = "out = '_out'") -> None:
    "A notebook in the place of one of the experiments."
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)])
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    path = root / "nbs" / "experiments" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.mark.parametrize("whom", ["everybody", "the parent only"])
def test_kill_9_in_the_middle_and_again(root, whom):
    words = ["train", "--task", "synthetic-released", "--profile", "smoke", "--seeds", "0-9",
             "--strategy", "Fixed SGD", "AdamW", "DALS", "SAM"]
    first = subprocess.Popen([*DALS, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    until = time.monotonic() + 180
    while len(records(root)) < 3:
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0]
        time.sleep(0.02)
    (os.killpg if whom == "everybody" else os.kill)(first.pid, signal.SIGKILL)
    first.communicate(timeout=60) # returns when nobody holds the pipe any more: no worker is left
    before = records(root)
    assert 3 <= len(before) < 40
    for path in before: # whole: it can be read, and its history has both epochs
        assert len(json.loads(Path(path).read_text(encoding="utf-8"))["history"]) == 2
    second = subprocess.run([*DALS, *words], capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{40 - len(before)} of 40 runs to do" in second.stdout and second.stdout.count("synthetic-released") == 40 - len(before)
    after = records(root)
    assert len(after) == 40 and {path: after[path] for path in before} == before # no finished run was repeated
    assert len(Store().runs()) == 40 and not list(root.rglob("*.damaged"))


@pytest.mark.parametrize("words, says", [
    ("train --task sintetic", "Did you mean 'synthetic'? Known: synthetic, synthetic-released, trec6"),
    ("train --task synthetic --strategy dals", "Did you mean 'DALS'? Known: Fixed SGD"),
    ("train --task synthetic --profile papr", "no profile 'papr'. Did you mean 'paper'?"),
    ("train --task synthetic --variant 'undo stale filter'", "goes with --protocol released"),
    ("train --task synthetic --protocol released --variant 'undo stale'", "Did you mean 'undo stale filter'?"),
    ("train --task synthetic --protocol released --variant 'undo stale filter' --strategy DALS",
     "touches none of DALS: it is about DALS-Fast"),
    ("train --task synthetic+draw-0", "a number from 1 up"),
    ("replay nothing.json", "cannot read nothing.json"),
    ("replay settings.ini", "settings.ini is no file of trajectories"),
    ("replay", "required: FILE"),
    ("train --task synthetic --protocol text", "no protocol 'text'"),
    ("train --task synthetic --seeds 3-1", "'3-1' is no seed"),
    ("train --task synthetic --jobs 0", "at least 1, not 0"),
    ("train --task synthetic --jobs two", "invalid int value: 'two'"),
    ("train --task synthetic --device warp --profile smoke", "warp"),
    ("train", "required: --task"),
    ("", "required: COMMAND"),
    ("status --task everything", "no task 'everything'"),
    ("status --seeds 4-0", "'4-0' is no seed"),
    ("train --task synthetic --profile smoke --engine dask", "--engine dask needs --scheduler ADDRESS"),
    ("train --task synthetic --profile smoke --scheduler tcp://127.0.0.1:1", "--scheduler goes with --engine dask"),
    ("train --task synthetic --profile smoke --engine dask --scheduler nowhere://1", "no dask scheduler answers at nowhere://1"),
    ("train --task synthetic --engine slurm", "invalid choice: 'slurm'"),
    ("reproduce --only table2 figure9", "no experiment 'figure9'"),
    ("reproduce --profile huge", "no profile 'huge'"),
    ("reproduce", "run this in a checkout"),
    ("verify", "none of the 0 records"),
    ("verify -n 0", "at least 1"),
    ("report --color", "unrecognized arguments: --color"),
])
def test_bad_input_costs_one_sentence_and_nothing_else(root, capsys, words, says):
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("dals: ") and err.count("\n") == 1 and says in err
    assert [path.name for path in root.iterdir()] == ["settings.ini"]


def test_a_parameter_that_a_notebook_does_not_have_is_refused_before_anything_runs(root, capsys):
    experiment(root, "figure4_stlr.ipynb", "open('ran', 'w')", "out = '_out'\nsteps = 10")
    for words, says in ((["-p", "stesp=20"], "figure4 called 'stesp'. Did you mean 'steps'?"), (["-p", "steps"], "NAME=VALUE"),
                        (["-p", "out=x"], "--out"), (["--out", "nbs/here"], "where nbdev looks"),
                        (["--out", "settings.ini"], "cannot write"), (["--out", ""], "--out is the name of a folder"),
                        (["--out", "/proc/here"], "cannot write")):
        assert main(["report", "--only", "figure4", *words]) == 2
        assert says in capsys.readouterr().err
    assert not list(root.rglob("ran")) and not (root / "_reproduced").exists()


def test_one_failing_notebook_does_not_stop_the_others(root, capsys):
    experiment(root, "table1_components.ipynb", "from dals.lab.render import save_table\nassert rows == [1, 2]\n"
               "save_table('<table><tr><td>kept</td></tr></table>', 'table1_components', out)", "out = '_out'\nrows = None")
    experiment(root, "figure4_stlr.ipynb", "raise ArithmeticError('the triangle\\nhas no corner')", "out = '_out'\nrows = None")
    assert main(["report", "--only", "table1", "figure4", "-p", "rows=[1, 2]", "--out", "_page"]) == 1
    out = capsys.readouterr().out
    assert "figure4: FAILED, ArithmeticError: the triangle" in out and "open _page/index.html" in out
    page = (root / "_page" / "index.html").read_text(encoding="utf-8")
    assert "kept" in page and "ArithmeticError: the triangle" in page
    assert "has no corner" in (root / "_page" / "notebooks" / "figure4.log").read_text(encoding="utf-8")
    assert sorted(path.name for path in (root / "nbs" / "experiments").iterdir()) == ["figure4_stlr.ipynb", "table1_components.ipynb"]
    experiment(root, "figure4_stlr.ipynb", "1", "out = '_out'") # mended
    assert main(["report", "--only", "figure4", "table3", "--out", "_page"]) == 1 # table3 has no notebook here
    assert "table3_convergence.ipynb is missing" in capsys.readouterr().out
    assert not (root / "_page" / "notebooks" / "figure4.log").exists()


def test_a_variant_is_kept_beside_the_plain_run_and_is_another_run(root, capsys):
    plain = ["train", "--task", "synthetic", "--jobs", "1", "--protocol", "released", "--strategy", "STLR+Discriminative",
             "--profile", "smoke"]
    assert main(plain) == 0
    assert main([*plain, "--variant", "undo decay applied twice", "undo moved between epochs"]) == 0
    assert "2 of 2 runs to do" in capsys.readouterr().out
    runs = {run.variant: run for run in Store().runs(variant="*")}
    assert list(runs) == [None, "undo decay applied twice", "undo moved between epochs"] and len(Store().runs()) == 1
    assert [run.config["hyperparameters"]["twice"] for run in runs.values()] == [True, False, True]
    assert len({str(run.history) for run in runs.values()}) == 3
    assert main([*plain[:-4], "--profile", "smoke", "--variant", "all", "--dry-run"]) == 0
    count = sum(len(variant.strategies) for variant in VARIANTS.values()) - 2
    first, head, row, *listed = capsys.readouterr().out.splitlines()
    assert f"{count} of {count + 2} runs" in first and row.split()[:2] == ["synthetic", str(count)] and len(listed) == count
    assert "  synthetic  DALS-Fast  undo stale filter  seeds 42" in listed


def test_replay_says_how_far_and_fails_beyond_the_tolerance(root, capsys):
    golden = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
    Path("golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert main(["replay", "golden.json"]) == 0
    out = capsys.readouterr().out
    assert "28 of 28 runs within 1e-10" in out and "TOO FAR" not in out
    golden["runs"]["RAdam"]["params"]["25"]["layer1.bias"][0] *= 1 + 1e-9
    golden["runs"]["Lion"]["optimizer"] = "Lyon"
    Path("golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert main(["replay", "golden.json"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("TOO FAR")]
    assert [line.split()[0] for line in failed] == ["RAdam", "Lion"] and "Did you mean 'Lion'?" in failed[1]
    Path("golden.json").write_text('{"problem": {}, "runs": {}}', encoding="utf-8")
    assert main(["replay", "golden.json"]) == 1


def test_reproduce_trains_here_whatever_is_published_and_resumes(root, capsys):
    experiment(root, "table2_benchmark.ipynb", "from dals.lab.store import Store\n"
               "assert {run.origin for run in Store(published, local).runs()} == {'local'}", "out = '_out'\npublished = ''\nlocal = ''")
    words = ["reproduce", "--only", "table2", "--profile", "smoke", "--seeds", "1", "--jobs", "1"]
    assert main(words) == 0
    assert "18 of 18 runs to do" in capsys.readouterr().out
    assert main(["publish"]) == 0 and not records(root)
    assert main(words) == 0
    assert "18 of 18 runs to do" in capsys.readouterr().out
    before = records(root)
    assert main(words) == 0
    assert "0 of 18 runs to do" in capsys.readouterr().out and records(root) == before
    assert main(["publish"]) == 0
    assert "published 0 records into results; 18 stay local" in capsys.readouterr().out


def test_tuned_records_are_verified_by_their_own_rates(root, capsys):
    Store().put(run_one({"task": "synthetic", "strategy": "Adam", "protocol": "tuned", "profile": "smoke", "overrides": {"lr": 0.02}}))
    assert main(["verify", "-n", "1", "--protocol", "tuned"]) == 0
    assert "1 agree, 0 do not" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["tls://127.0.0.1:1", "ucx://nowhere", "tcp://127.0.0.1:port", "://"])
def test_a_scheduler_that_cannot_be_asked_is_one_sentence(root, capsys, address):
    pytest.importorskip("distributed")
    assert main(["train", "--task", "synthetic", "--profile", "smoke", "--engine", "dask", "--scheduler", address]) == 2
    err = capsys.readouterr().err
    assert f"no dask scheduler answers at {address}" in err and err.count("\n") == 1 and not records(root)


def test_a_record_is_repeated_on_the_path_that_made_it(root, monkeypatch):
    assert main(["train", "--task", "synthetic", "--strategy", "DALS", "--profile", "smoke", "--jobs", "1"]) == 0
    record, = Store().runs()
    asked = []
    monkeypatch.setattr("dals.lab.sweep.run_one", lambda config: asked.append(config.fast) or record)
    for changes in ({}, {"precision": "bfloat16"}, {"compiled": True}):
        Store().path(record, "local").write_text(json.dumps({**record.to_dict(), **changes}), encoding="utf-8")
        assert main(["verify", "-n", "1"]) == 0
    assert asked == [False, True, True]


def test_records_that_do_not_fit_are_named_and_nothing_is_lost(root, capsys):
    words = ["train", "--task", "synthetic", "--strategy", "DALS", "AdamW", "--profile", "smoke", "--jobs", "1"]
    assert main(words) == 0 and main(["publish", "--strategy", "DALS"]) == 0
    published = Store().path(Key("synthetic", "smoke", "paper", "DALS", 42), "published")
    record = json.loads(published.read_text(encoding="utf-8"))
    assert main(["verify", "-n", "1", "--task", "synthetic", "--within", "60", "--pick", "1"]) == 0
    capsys.readouterr()

    record["history"][1]["train_loss"] *= 1.001 # as another machine might have it
    published.write_text(json.dumps(record), encoding="utf-8")
    assert main(["verify", "-n", "9"]) == 0
    assert "2 agree, 0 do not" in capsys.readouterr().out
    record["history"][0]["train_loss"] *= 1.5 # as no machine might
    published.write_text(json.dumps(record), encoding="utf-8")
    assert main(["verify", "-n", "9"]) == 1
    assert "TOO FAR" in capsys.readouterr().out

    record["config"]["hyperparameters"]["lr"] = 9.0
    published.write_text(json.dumps(record), encoding="utf-8")
    assert main(words) == 2
    assert "the published store holds synthetic DALS, seed 42 with other settings" in capsys.readouterr().err
    assert main(["verify", "-n", "9"]) == 1
    assert "other settings: config.hyperparameters.lr" in capsys.readouterr().out

    local = published.parents[5] / "_results" / published.relative_to(root / "results")
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(json.dumps({**record, "config": {**record["config"], "multiplier": 3.0}}), encoding="utf-8")
    texts = local.read_bytes(), published.read_bytes()
    assert main(["publish"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(local) in err and str(published) in err and (local.read_bytes(), published.read_bytes()) == texts

    published.write_text("{", encoding="utf-8")
    assert main(["status", "--profile", "smoke", "--task", "synthetic"]) == 0
    out, err = capsys.readouterr()
    assert "warning: the published record synthetic/smoke/paper/DALS/42.json is damaged and counts as not done" in err
    assert published.read_text(encoding="utf-8") == "{"


def test_a_task_without_its_data_says_so_in_one_sentence(root, capsys, monkeypatch):
    monkeypatch.setenv("DALS_DATA_DIR", str(root))
    assert main(["train", "--task", "trec6+minilm-l6", "--profile", "smoke"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "train_5500.label" in err and not records(root)


def test_starting_is_light():
    program = ("import sys, dals.cli; dals.cli.parser()\nheavy = {'matplotlib', 'papermill', 'scipy', 'pandas', 'transformers', "
               "'datasets', 'distributed', 'nbdev', 'fastcore', 'IPython', 'dals.paper.tables'} & set(sys.modules)\n"
               "assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_command_explains_itself(capsys):
    for command in ("reproduce", "train", "status", "publish", "report", "verify", "replay", "tune", "benchmark", "decide"):
        with pytest.raises(SystemExit) as done:
            parser().parse_args([command, "--help"])
        assert done.value.code == 0 and f"dals {command}" in capsys.readouterr().out


def test_a_long_plan_is_told_by_task_with_its_cost(root, capsys):
    assert main(["train", "--task", "synthetic", "--strategy", "AdamW", "--seeds", "0", "--profile", "smoke"]) == 0
    capsys.readouterr()
    words = ["train", "--task", "synthetic", "synthetic-released", "--strategy", "AdamW", "DALS", "--profile", "smoke", "--dry-run"]
    assert main([*words, "--seeds", "0-1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 7 # run by run
    assert main([*words, "--seeds", "0-9,42"]) == 0
    first, head, one, other, *names = capsys.readouterr().out.splitlines()
    assert "43 of 44 runs to do" in first and head.split() == ["task", "runs", "computing"]
    assert one.split()[:2] == ["synthetic", "21"] and one.split()[-1] == "s" and other.split() == ["synthetic-released", "22", "unknown"]
    assert names == ["  synthetic  DALS  seeds 0-9,42", "  synthetic  AdamW  seeds 1-9,42",
                     "  synthetic-released  AdamW  seeds 0-9,42", "  synthetic-released  DALS  seeds 0-9,42"]
    assert parse_seeds([seeds_text([42, 5, 4, 9])]) == [4, 5, 9, 42]


def test_status_tells_complete_from_partial_running_failed_and_missing(root, capsys):
    words = ["train", "--task", "synthetic", "--jobs", "1", "--profile", "smoke", "--strategy"]
    assert main([*words, "DALS", "AdamW", "--seeds", "0-2"]) == 0 and main([*words, "Lion", "--seeds", "0"]) == 0
    store = Store()
    diverged = run_one({"task": "synthetic", "strategy": "SGDR", "profile": "smoke", "overrides": {"lr": 1e30}})
    store.put(diverged)

    def key(strategy, seed):
        return Key("synthetic", "smoke", "paper", strategy, seed)
    for strategy, seed, text in (("Adam", 0, "ArithmeticError: the rate is on fire\nTraceback"), ("Lion", 1, "OSError: no room"),
                                 ("DALS", 0, "OSError: an old story, there is a record")):
        path = store.path(key(strategy, seed)).with_suffix(".failed")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    capsys.readouterr()
    with claimed(store.claim(key("SAM", 1))), claimed(store.claim(key("AdamW", 5))), claimed(store.claim(key("Adam", 1))):
        assert main(["status", "--task", "synthetic", "--profile", "smoke"]) == 0
        plain = capsys.readouterr().out.splitlines()
        assert main(["status", "--task", "synthetic", "--profile", "smoke", "--seeds", "0-2", "--jobs", "1"]) == 0
        seeds = capsys.readouterr().out.splitlines()

    def cells(lines):
        return {name: lines[3 + row].removeprefix(name).strip() for row, name in enumerate(STRATEGIES)}
    wanted = {"DALS": "3", "AdamW": "3 1r", "Lion": "1 1f", "SGDR": "1*", "SAM": "1r", "Adam": "1r 1f", "LARS": "-"}
    assert {name: cells(plain)[name] for name in wanted} == wanted
    wanted |= {"Lion": "1/3 1f", "SGDR": "0/3*"}
    assert {name: cells(seeds)[name] for name in wanted} == wanted
    [summary] = [line for line in plain if line.startswith("synthetic: ")]
    assert "4 of 18 cells complete, 8 runs, 8 of them local; 14 more to complete them, for about " in summary
    [summary] = [line for line in seeds if line.startswith("synthetic: ")]
    assert "2 of 18 cells complete" in summary and f"{16 * 3 - 1} more to complete them" in summary
    assert [line for line in plain if line.startswith("failed: ")] == [
        "failed: synthetic Adam, seed 0: ArithmeticError: the rate is on fire", "failed: synthetic Lion, seed 1: OSError: no room"]
    assert sum(line.startswith("at work: synthetic ") and f"process {os.getpid()}" in line for line in plain) == 3
    assert main(["status", "--task", "synthetic", "--profile", "cpu"]) == 0
    assert "failed: " not in capsys.readouterr().out


def test_status_shows_each_column_of_the_paper_in_the_forms_that_have_something_to_show(root, monkeypatch, capsys):
    names = ("synthetic", "imdb", "imdb+minilm-l6", "imdb+other", "rte", "cifar10+jpeg")
    monkeypatch.setattr(tasks, "TASKS", {name: replace(tasks.TASKS["synthetic"], name=name, stand_in="+" in name) for name in names})
    assert columns([]) == ["synthetic", "imdb+minilm-l6", "rte", "cifar10+jpeg"]
    assert columns(["imdb", "synthetic+draw-1"]) == ["synthetic", "imdb", "rte", "cifar10+jpeg"]
    assert columns(["imdb+other", "imdb"]) == ["synthetic", "imdb", "imdb+other", "rte", "cifar10+jpeg"]
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["synthetic", "imdb", "rte", "cifar10"] and lines[2].split() == ["+minilm-l6", "+jpeg"]


def test_the_cost_of_a_run_comes_from_the_nearest_records(root):
    record = run_one({"task": "synthetic", "strategy": "AdamW", "profile": "smoke"})
    assert record.device == device_name(find_device(None))

    def timed(seconds, **more):
        return replace(record, **{"seconds": seconds, **more})
    [smoke] = plan(["synthetic"], ["AdamW"], [0], profile="smoke")
    [full] = plan(["synthetic"], ["AdamW"], [0], profile="paper")
    work = 80 * (6400 + 1600 / 3) / (2 * (512 + 512 / 3))
    far = timed(1.0, device="cpu (abacus)")
    assert expected([smoke, full], []) == [None, None] == expected([smoke, full], [timed(1.0, device="cuda (abacus)")])
    assert expected([smoke, full], [far]) == pytest.approx([1.0, work])
    older = timed(300.0, device="cpu (abacus)", profile="paper", config={**record.config, "epochs": 80})
    assert expected([full], [far, older]) == [300.0] # its profile before others
    assert expected([full], [replace(older, config={**record.config, "epochs": 40})]) == [600.0] # by the epochs that it was asked for
    assert expected([full], [timed(3.0), older]) == pytest.approx([3 * work]) # our device first
    assert expected([smoke], [far, timed(3.0, strategy="SAM"), timed(9.0, strategy="gone"), timed(9.0, task="gone")]) == [1.5]
    assert cost([smoke, smoke, replace(smoke, task="synthetic-released")], [timed(2.0), timed(4.0)]) == (6.0, 1)


def test_a_cluster_without_its_package_is_one_sentence(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["train", "--task", "synthetic", "--profile", "smoke", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    out, err = capsys.readouterr()
    assert err == "dals: --engine dask needs the package distributed: pip install 'dals[cluster]' brings it\n" and not records(root)


OWN = """
import torch
from torch import nn
from dals import own_task
x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
task = own_task("mine", lambda: nn.Linear(4, 3), (x[:24], x[:24, :3].argmax(1)), (x[24:], x[24:, :3].argmax(1)), epochs=1, batch_size=8)
"""
READS = """
from dataclasses import replace
def read(budget):
    return [][1]
task = replace(task, read=read)
"""
FILES = {"own.py": OWN, "base.py": "class Odd(BaseException): pass\nraise Odd('a\\nb')\n", "reads.py": OWN + READS,
         "exits.py": "import sys\nsys.exit(3)\n", "leaves.py": "raise SystemExit('for lunch')\n", "raises.py": "1 / 0\n",
         "empty.py": "", "runs_null.json": '{"problem": {}, "runs": null}', "sam_list.json": '{"sam": []}', "number.json": "7",
         "deep.json": "[" * 100_000, "half.json": '{"runs": ', "latin.json": b"{\xff}", "file": "of a user",
         "digits.json": '{"problem": {"losses": [' + "9" * 5000 + ']}, "runs": {}}'}


@pytest.fixture
def files(root) -> Path:
    for name, text in FILES.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    os.mkfifo(root / "fifo")
    (root / "dangling").symlink_to("nowhere")
    return root


@pytest.mark.parametrize("words, says", [
    ("train --task synthetic --seeds ,", "',' names no seed"),
    ("train --task synthetic --seeds ''", "names no seed"),
    ("status --seeds ,", "names no seed"),
    ("benchmark own.py:task --seeds ' , '", "names no seed"),
    ("train --task synthetic --seeds 0-9999999999 --dry-run", "more than the 1000 seeds"),
    ("train --task synthetic --seeds 0-600 2000-2600 --dry-run", "more than the 1000 seeds"),
    ("status --seeds 0-9999999999", "more than the 1000 seeds"),
    ("train --task synthetic --seeds 99999999999999999999999 --strategy Adam --profile smoke", "beyond the 64 bits"),
    ("benchmark own.py:task --seeds 18446744073709551616", "beyond the 64 bits"),
    (f"train --task synthetic --seeds {'9' * 5000}", "is no seed"),
    ("train --task synthetic --device meta --profile smoke --strategy Adam", "no device 'meta' on this machine. Known: cpu"),
    ("tune --task synthetic --device meta --profile smoke", "no device 'meta'"),
    ("benchmark own.py:task --device meta", "no device 'meta'"),
    ("train --task synthetic --device hpu", "no device 'hpu'"),
    ("train --task synthetic+draw-99999999999999999999 --profile smoke --strategy Adam", "of at most 9 digits"),
    ("train --task synthetic+draw-01", "a number from 1 up"),
    ("train --task trec6+draw-1", "before '+draw-' stands synthetic"),
    ("publish --task nosuch", "no task 'nosuch'"),
    ("publish --profile nosuch", "no profile 'nosuch'"),
    ("publish --protocol nosuch", "no protocol 'nosuch'"),
    ("publish --strategy nosuch", "no strategy 'nosuch'"),
    ("replay runs_null.json", "runs is no object with names"),
    ("replay sam_list.json", "sam is no object with names"),
    ("replay number.json", "holds no trajectories"),
    ("replay deep.json", "deep.json is no file of trajectories"),
    ("replay half.json", "half.json is no file of trajectories"),
    ("replay latin.json", "latin.json is no file of trajectories"),
    ("replay digits.json", "digits.json is no file of trajectories"),
    ("replay .", "cannot read ."),
    ("replay ''", "cannot read ''"),
    ("replay /dev/zero", "cannot read /dev/zero (it is no regular file)"),
    ("replay fifo", "cannot read fifo (it is no regular file)"),
    ("benchmark exits.py:task", "exits.py, line 2: SystemExit: 3"),
    ("benchmark leaves.py:task", "leaves.py, line 1: SystemExit: for lunch"),
    ("benchmark raises.py:task", "raises.py, line 1: ZeroDivisionError"),
    ("benchmark empty.py:task", "empty.py makes no task"),
    ("benchmark base.py:task", "base.py, line 2: Odd: a b"),
    ("benchmark reads.py:task", "reading the data fails: IndexError"),
    ("benchmark own.py:task --protocol tuned --seeds 7,1000", "Seed 1000 was used to choose the rates"),
    ("benchmark own.py:task --device ''", "no device ''"),
    ("benchmark own.py:task --device cuda:99", "no device 'cuda:99'"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out ''", "--out is the name of a folder"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out /proc/here", "cannot write into /proc/here"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out fifo", "cannot write into fifo"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out dangling", "cannot write into dangling"),
    ("benchmark own.py:tusk", "Did you mean 'task'?"),
    ("benchmark own.py:task --strategy Adm", "Did you mean 'Adam'?"),
    ("benchmark own.py:task --profile nosuch", "no profile 'nosuch'"),
    ("benchmark own.py:task --protocol nosuch", "no protocol 'nosuch'"),
    ("benchmark own.py:task --target nan --strategy Adam --seeds 0 --profile smoke", "from 0 to 100, not nan"),
    ("benchmark own.py:task --target -1", "from 0 to 100, not -1"),
    ("benchmark own.py:task --target inf", "from 0 to 100, not inf"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out file", "cannot write into file"),
    ("benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out file/below", "cannot write into file/below"),
    (f"benchmark own.py:task --strategy Adam --seeds 0 --profile smoke --out {'x' * 300}", "cannot write into"),
    ("train --task synthetic --minutes nan", "nan is no positive number"),
    ("train --task synthetic --minutes 0", "0 is no positive number"),
    ("train --task synthetic --minutes inf", "inf is no positive number"),
    ("train --task synthetic --minutes soon", "argument --minutes"),
    ("verify --within nan", "nan is no positive number"),
    ("train --task synthetic --jobs 99999999", "at most 1024"),
    ("train --task synthetic --device ''", "no device ''"),
    ("decide C4 --device ''", "no device ''"),
    ("train --task synthetic --protocol released --variant all nosuch", "no variant 'nosuch'"),
    ("verify --profile ''", "no profile ''"),
    ("verify --protocol nosuch", "no protocol 'nosuch'"),
    ("verify --task nosuch", "no task 'nosuch'"),
])
def test_what_cannot_work_is_refused_before_anything_is_done(files, capsys, words, says):
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dals: ") and err.count("\n") == 1 and says in err
    assert {path.name for path in files.iterdir()} <= {"settings.ini", "__pycache__", "fifo", "dangling", *FILES}


def golden() -> dict:
    return json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("where, value", [ # the five that were found, and others of their kind
    (("runs", "FixedLRSGD"), -1), (("runs", "CosineAnnealingSGD"), [1, [2]]), (("sam", "runs"), ["a"]),
    (("runs", "FixedLRSGD_plain"), True), (("runs", "CosineAnnealingSGD", "grouping"), None), (("runs",), -1), (("problem",), [1]),
    (("problem", "grads"), {}), (("problem", "grads", 3), "steep"), (("problem", "order"), [["a"]]),
    (("problem", "params0", "layer0.weight"), None), (("problem", "losses"), 0.5), (("problem", "losses", 2), {}),
    (("runs", "AdamW", "hyper"), 1e9), (("runs", "AdamW", "hyper", "lr"), "fast"),
    (("runs", "Lookahead_AdamW", "hyper", "inner"), []), (("runs", "Lion", "params"), []), (("runs", "Lion", "params", "5"), "far"),
    (("runs", "Lion", "lr"), 0.1), (("runs", "DALS_wd", "phase"), "two"), (("runs", "Lion", "optimizer"), 3),
    (("sam", "runs", "SAM_adaptive", "loss_at_w"), {}), (("sam", "A"), "matrix"), (("sam", "runs", "SAM_adaptive", "perturbed"), 1)])
def test_a_file_of_trajectories_with_a_part_of_another_kind_is_one_sentence(root, capsys, where, value):
    document = golden()
    part = document
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    Path("case.json").write_text(json.dumps(document), encoding="utf-8")
    assert main(["replay", "case.json"]) == 2
    out, err = capsys.readouterr()
    name = str(where[-1] if isinstance(where[-1], str) else where[-2])
    assert out == "" and err.count("\n") == 1 and "case.json is no file of trajectories" in err and name in err


def test_two_hundred_mutated_files_of_trajectories_end_in_words(root, capsys):
    draw = random.Random(20)
    junk = [None, True, -1, 0, 1e300, float("nan"), 10 ** 400, "", "\ud800", "layer0.weight", [], [[]], [1, [2]], {}, {"a": 1}, [None]]

    def inner(value, depth):
        places = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
        container, key = draw.choice(places)
        below = container[key]
        return inner(below, depth - 1) if depth and isinstance(below, (dict, list)) and below else (container, key)
    statuses, waits, whole = [], [], golden()
    for _ in range(200):
        one, sam = draw.choice(sorted(whole["runs"])), draw.choice(sorted(whole["sam"]["runs"])) # a run of each kind is enough
        document = copy.deepcopy({"problem": {**whole["problem"], "grads": whole["problem"]["grads"][:draw.choice((2, 5))]},
                                  "runs": {one: whole["runs"][one]}, "sam": {**whole["sam"], "runs": {sam: whole["sam"]["runs"][sam]}}})
        for _ in range(draw.choice((1, 1, 2, 4))):
            container, key = inner(document, draw.randrange(6))
            what = draw.randrange(3)
            if what == 0:
                del container[key]
            elif what == 1 and isinstance(container, dict):
                container[draw.choice(["", "a.b", "lr", "runs", "\ud800\n"])] = container.pop(key)
            else:
                container[key] = draw.choice(junk)
        text = json.dumps(document)
        Path("mutant.json").write_text(text[:draw.randrange(len(text))] if draw.random() < 0.05 else text, encoding="utf-8")
        start = time.monotonic()
        statuses.append(main(["replay", "mutant.json"]))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and "should not have happened" not in err, text[:2000]
        waits.append(time.monotonic() - start)
        assert err.count("\n") == (statuses[-1] == 2)
    assert {0, 1, 2} == set(statuses) and min(map(statuses.count, (1, 2))) > 20
    assert_no_wait(waits)


def test_a_hundred_and_fifty_command_lines_end_in_words(files, capsys, monkeypatch):
    draw = random.Random(21)
    monkeypatch.delenv("DALS_DATA_DIR", raising=False) # looking at models takes its time
    monkeypatch.setattr("dals.lab.sweep.sweep", lambda *args, **more: dals.lab.sweep.SweepResult()) # training is for other tests;
    monkeypatch.setattr(sys.modules["dals.lab.compare"], "sweep", dals.lab.sweep.sweep) # what is planned, refused and printed is real
    monkeypatch.setattr("dals.lab.tuning.tune", lambda *args, **more: [Choice("Adam", 0, {0: [50.0, 60.0]}, lr=1e-3)])
    monkeypatch.setattr(cli, "run_notebooks", lambda *args: {})
    names = ["synthetic", "synthetic-released", "synthetic+draw-3", "synthetic+draw-0", "synthetic+validation", "nosuch", "", "..", "a/b",
             "mine", "DALS", "Fixed SGD", "*", "\xe9\xb1\ud800", "0", "-1", "1e9", "nan", "inf", "9" * 30, "0-3", "3-0", "0-" + "9" * 12,
             ",", "smoke", "cpu", "paper", "released", "tuned", "own.py:task", "exits.py:task", "file", "own.py", "sam_list.json", "meta",
             "cpu:1", "seeds=[0,1]", "seeds='[0,1]'", "tasks=5", "profile=x", "=", "published=nowhere", "table2", "C4", "C99", "\n",
             "x" * 400, "--", "undo stale filter"]
    options = ["--task", "--strategy", "--seeds", "--profile", "--protocol", "--device", "--jobs", "--minutes", "--out", "--only", "-p",
               "-n", "--within", "--pick", "--variant", "--target", "--engine", "--scheduler", "--dry-run", "--fast", "--color"]
    commands = ["reproduce", "train", "status", "publish", "report", "verify", "replay", "tune", "benchmark", "decide"]
    valid = {"train": ["--task", "synthetic", "--profile", "smoke"], "tune": ["--task", "synthetic", "--profile", "smoke"],
             "replay": ["sam_list.json"], "benchmark": ["own.py:task", "--profile", "smoke"]}
    seen, waits = set(), []
    for number in range(150):
        command = commands[number % len(commands)]
        words = [command, *(valid.get(command, []) if draw.random() < 0.7 else [])]
        for _ in range(draw.randrange(4)):
            option = draw.choice(options)
            words += [option, *draw.sample(names, draw.choice((0, 1, 1, 2)))]
        if command in ("train", "tune", "decide", "benchmark") and draw.random() < 0.5:
            words.append("--dry-run")
        start = time.monotonic()
        status = main(words)
        out, err = capsys.readouterr()
        seen.add(status)
        assert status in (0, 1, 2) and "Traceback" not in out + err, words
        assert "should not have happened" not in err, (words, err)
        waits.append(time.monotonic() - start)
        assert status != 2 or [line for line in err.splitlines() if not line.startswith("warning")][-1].startswith("dals: "), words
    assert {0, 2} <= seen
    assert_no_wait(waits)


def test_what_nobody_foresaw_is_one_sentence_and_debug_shows_where(root, capsys, monkeypatch):
    def fails(error):
        def status(args):
            raise error
        monkeypatch.setattr(cli, "status", status)
    fails(KeyError("the\ngarden"))
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "KeyError" in err and "--debug" in err
    for words in (["--debug", "status"], ["status", "--debug"]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and "raise error" in err and err.splitlines()[-1].startswith("dals: ")
    for error, status, says in ((PermissionError(13, "Permission denied", "_results"), 2, "dals: Permission denied: _results\n"),
                                (OSError(28, "No space left on device"), 2, "dals: No space left on device\n"),
                                (KeyboardInterrupt(), 130, "dals: interrupted; the same command goes on from here\n"),
                                (BrokenPipeError(32, "Broken pipe"), 2, "dals: Broken pipe\n"), # not of our output, which is read
                                (ModuleNotFoundError("no tqdm", name="tqdm"), 2,
                                 "dals: this command needs the package tqdm: pip install 'dals[all]' brings it\n")):
        fails(error)
        assert main(["status"]) == status and capsys.readouterr().err == says
    fails(SystemExit(7))
    with pytest.raises(SystemExit) as left:
        main(["status"])
    assert left.value.code == 7


def test_the_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"dals {__version__}\n"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_who_has_read_enough_hears_nothing_more(root, lines):
    program = subprocess.Popen([*DALS, "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(lines):
        assert program.stdout.readline()
    program.stdout.close()
    assert program.stderr.read() == "" and program.wait(60) == 141


def test_a_terminal_without_our_letters_gets_others_and_the_table(files):
    done = subprocess.run([*DALS, "benchmark", "own.py:task", "--strategy", "Adam", "DALS", "--seeds", "0-2", "--jobs", "1"],
                          capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "+-" in done.stdout and "3 common seeds" in done.stdout and done.stdout.isascii()


def test_parameters_that_would_show_an_empty_page_are_refused(root, capsys):
    experiment(root, "table2_benchmark.ipynb", "1", "tasks = None\nseeds = None\nprofile = ''\npublished = ''\nlocal = ''\nout = ''")
    for given, says in (('seeds="[0,1]"', "seeds is a list of seeds"), ("seeds=3", "3 is no list"),
                        ("seeds=[-1]", "a seed is a whole number"),
                        ("seeds=[true]", "a seed is a whole number"), ("tasks=synthetic", "'synthetic' is no list"),
                        ('tasks=["syntetic"]', "Did you mean 'synthetic'?"), ("tasks=[]", "at least 1"),
                        ("tasks=null,", "is no list"), ('tasks=["synthetic+draw-3"]', "no column for task"), ("seeds=[0,0]", "twice"),
                        ("profile=huge", "profile is one of paper, cpu, smoke: 'huge' is none"), ("profile=5", "5 is none"),
                        ("published=nowhere", "no record in nowhere,"), ("local=settings.ini", "no record in"),
                        ("published=[1]", "the folder of a store")):
        assert main(["report", "--only", "table2", "-p", given]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and says in err, err
    assert not (root / "_reproduced").exists()
    Store().put(run_one({"task": "synthetic", "strategy": "Adam", "profile": "smoke"}))
    check_parameters("table2", {"local": "_results", "seeds": [0], "tasks": ["synthetic", "cifar10+jpeg"], "profile": "smoke"})
    check_parameters("table2", {"seeds": None, "tasks": None, "cut_task": "x"})


def test_status_names_the_folders_that_it_read(root, capsys):
    assert main(["status", "--task", "synthetic"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "profile paper, protocol paper, records from results and _results"


def test_own_tasks_are_published_by_name_alone(files, capsys):
    words = ["benchmark", "own.py:task", "--strategy", "Adam", "--seeds", "1", "--profile", "smoke", "--jobs", "1"]
    assert main(words) == 0 and main(["publish", "--profile", "smoke"]) == 0 # where nobody names them, they stay where they are
    said = capsys.readouterr().out
    assert "published 0 records into" in said and "1 of mine stays local: a task of your own is published by --task alone" in said
    assert main(["publish", "--task", "mine", "--profile", "smoke"]) == 0
    assert "published 1 record into" in capsys.readouterr().out
    assert main(["publish", "--task", "synthetic+draw-3"]) == 0 # a name that there is, without records


def test_train_stops_starting_when_the_minutes_are_up_and_goes_on(root, capsys, monkeypatch):
    words = ["train", "--task", "synthetic", "--strategy", "Adam", "DALS", "--seeds", "0-2", "--profile", "smoke", "--jobs", "1"]
    now = [0.0, 10.0, 59.9, *[60.0] * 4, 0.0, *[1.0] * 4] # the call, then a look before each run; and the second call
    clock = SimpleNamespace(**{**vars(time), "time": lambda: now.pop(0)})
    sweep = dals.lab.sweep.sweep

    def pool(*args, **more):
        with ThreadPoolExecutor(1) as executor, monkeypatch.context() as patch:
            patch.setattr(dals.lab.sweep, "time", clock)
            patch.setattr("dals.lab.sweep.claimed", lambda claim: contextlib.nullcontext(True))
            patch.setattr(Store, "clean", lambda self: 0)
            return sweep(*args, **{**more, "executor": executor})
    monkeypatch.setattr("dals.lab.sweep.sweep", pool)
    assert main([*words, "--minutes", "1"]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 runs to do" in out and "none started after 1 minute" in out
    assert "the minute is up: 4 of 6 runs were not started; the same call, later, goes on from here" in out and len(records(root)) == 2
    assert main([*words, "--minutes", "30"]) == 0
    assert "4 of 6 runs to do" in capsys.readouterr().out and len(records(root)) == 6


def test_the_limit_holds_in_processes_too(root, capsys):
    words = ["train", "--task", "synthetic", "--strategy", "Adam", "--seeds", "0-3", "--profile", "smoke", "--jobs", "2"]
    assert main([*words, "--minutes", "0.0001"]) == 0
    assert "4 of 4 runs were not started" in capsys.readouterr().out and not records(root) and not list(root.rglob("*.failed"))
