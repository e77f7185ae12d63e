"""The program from outside: what it refuses, what it survives, and what it leaves behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from dals import tasks
from dals.cli import columns, cost, expected, main, parse_seeds, parser, plan, seeds_text
from dals.released import VARIANTS
from dals.results import Store, claimed, run_one
from dals.strategies import STRATEGIES
from dals.training import device_name, find_device

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
    words = ["train", "--task", "synthetic-released", "--profile", "smoke", "--seeds", "0-24",
             "--strategy", "Fixed SGD", "AdamW", "DALS", "SAM"]
    first = subprocess.Popen([*DALS, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    until = time.monotonic() + 180
    while len(records(root)) < 3:
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0]
        time.sleep(0.02)
    (os.killpg if whom == "everybody" else os.kill)(first.pid, signal.SIGKILL)
    first.communicate(timeout=60) # returns when nobody holds the pipe any more: no worker is left
    before = records(root)
    assert 3 <= len(before) < 100
    for path in before: # whole: it can be read, and its history has both epochs
        assert len(json.loads(Path(path).read_text())["history"]) == 2
    second = subprocess.run([*DALS, *words], capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{100 - len(before)} of 100 runs to do" in second.stdout and second.stdout.count("synthetic-released") == 100 - len(before)
    after = records(root)
    assert len(after) == 100 and {path: after[path] for path in before} == before # no finished run was repeated
    assert len(Store().runs()) == 100 and not list(root.rglob("*.damaged"))


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
                        (["--out", "settings.ini"], "cannot write")):
        assert main(["report", "--only", "figure4", *words]) == 2
        assert says in capsys.readouterr().err
    assert not list(root.rglob("ran")) and not (root / "_reproduced").exists()


def test_one_failing_notebook_does_not_stop_the_others(root, capsys):
    experiment(root, "table1_components.ipynb", "from dals.report import save_table\nassert rows == [1, 2]\n"
               "save_table('<table><tr><td>kept</td></tr></table>', 'table1_components', out)", "out = '_out'\nrows = None")
    experiment(root, "figure4_stlr.ipynb", "raise ArithmeticError('the triangle\\nhas no corner')", "out = '_out'\nrows = None")
    assert main(["report", "--only", "table1", "figure4", "-p", "rows=[1, 2]", "--out", "_page"]) == 1
    out = capsys.readouterr().out
    assert "figure4: FAILED, ArithmeticError: the triangle" in out and "open _page/index.html" in out
    page = (root / "_page" / "index.html").read_text()
    assert "kept" in page and "ArithmeticError: the triangle" in page
    assert "has no corner" in (root / "_page" / "notebooks" / "figure4.log").read_text()
    assert sorted(path.name for path in (root / "nbs" / "experiments").iterdir()) == ["figure4_stlr.ipynb", "table1_components.ipynb"]
    experiment(root, "figure4_stlr.ipynb", "1", "out = '_out'") # mended
    assert main(["report", "--only", "figure4", "table3", "--out", "_page"]) == 1 # table3 has no notebook here
    assert "table3_convergence.ipynb is missing" in capsys.readouterr().out
    assert not (root / "_page" / "notebooks" / "figure4.log").exists()


def test_a_variant_is_kept_beside_the_plain_run_and_is_another_run(root, capsys):
    plain = ["train", "--task", "synthetic", "--protocol", "released", "--strategy", "STLR+Discriminative", "--profile", "smoke"]
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
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    Path("golden.json").write_text(json.dumps(golden))
    assert main(["replay", "golden.json"]) == 0
    out = capsys.readouterr().out
    assert "28 of 28 runs within 1e-10" in out and "TOO FAR" not in out
    golden["runs"]["RAdam"]["params"]["25"]["layer1.bias"][0] *= 1 + 1e-9
    golden["runs"]["Lion"]["optimizer"] = "Lyon"
    Path("golden.json").write_text(json.dumps(golden))
    assert main(["replay", "golden.json"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("TOO FAR")]
    assert [line.split()[0] for line in failed] == ["RAdam", "Lion"] and "Did you mean 'Lion'?" in failed[1]
    Path("golden.json").write_text('{"problem": {}, "runs": {}}')
    assert main(["replay", "golden.json"]) == 1


def test_reproduce_trains_here_whatever_is_published_and_resumes(root, capsys):
    experiment(root, "table2_benchmark.ipynb", "from dals.results import Store\n"
               "assert {run.origin for run in Store(published, local).runs()} == {'local'}", "out = '_out'\npublished = ''\nlocal = ''")
    words = ["reproduce", "--only", "table2", "--profile", "smoke", "--seeds", "1"]
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


def test_a_record_is_repeated_on_the_path_that_made_it(root, monkeypatch):
    assert main(["train", "--task", "synthetic", "--strategy", "DALS", "--profile", "smoke", "--jobs", "1"]) == 0
    record, = Store().runs()
    asked = []
    monkeypatch.setattr("dals.results.run_one", lambda config: asked.append(config["fast"]) or record)
    for changes in ({}, {"precision": "bfloat16"}, {"compiled": True}):
        Store().path(record, "local").write_text(json.dumps({**record.to_dict(), **changes}))
        assert main(["verify", "-n", "1"]) == 0
    assert asked == [False, True, True]


def test_records_that_do_not_fit_are_named_and_nothing_is_lost(root, capsys):
    words = ["train", "--task", "synthetic", "--strategy", "DALS", "AdamW", "--profile", "smoke", "--jobs", "1"]
    assert main(words) == 0 and main(["publish", "--strategy", "DALS"]) == 0
    published = Store().path(("synthetic", "smoke", "paper", "DALS", 42), "published")
    record = json.loads(published.read_text())
    assert main(["verify", "-n", "1", "--task", "synthetic", "--within", "60", "--pick", "1"]) == 0
    capsys.readouterr()

    record["history"][1]["train_loss"] *= 1.001 # as another machine might have it
    published.write_text(json.dumps(record))
    assert main(["verify", "-n", "9"]) == 0
    assert "2 agree, 0 do not" in capsys.readouterr().out
    record["history"][0]["train_loss"] *= 1.5 # as no machine might
    published.write_text(json.dumps(record))
    assert main(["verify", "-n", "9"]) == 1
    assert "TOO FAR" in capsys.readouterr().out

    record["config"]["hyperparameters"]["lr"] = 9.0
    published.write_text(json.dumps(record))
    assert main(words) == 2
    assert "the published store holds synthetic DALS, seed 42 with other settings" in capsys.readouterr().err
    assert main(["verify", "-n", "9"]) == 1
    assert "other settings: config.hyperparameters.lr" in capsys.readouterr().out

    local = published.parents[5] / "_results" / published.relative_to(root / "results")
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(json.dumps({**record, "config": {**record["config"], "multiplier": 3.0}}))
    texts = local.read_text(), published.read_text()
    assert main(["publish"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(local) in err and str(published) in err and (local.read_text(), published.read_text()) == texts

    published.write_text("{")
    assert main(["status", "--profile", "smoke", "--task", "synthetic"]) == 0
    out, err = capsys.readouterr()
    assert "warning: the published record synthetic/smoke/paper/DALS/42.json is damaged, was set aside" in err
    assert published.with_name("42.json.damaged").read_text() == "{"


def test_a_task_without_its_data_says_so_in_one_sentence(root, capsys, monkeypatch):
    monkeypatch.setenv("DALS_DATA_DIR", str(root))
    assert main(["train", "--task", "trec6+minilm-l6", "--profile", "smoke"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "train_5500.label" in err and not records(root)


def test_starting_is_light():
    program = ("import sys, dals.cli; dals.cli.parser()\nheavy = {'matplotlib', 'papermill', 'scipy', 'pandas', 'transformers', "
               "'datasets', 'distributed', 'nbdev', 'fastcore', 'IPython', 'dals.report'} & set(sys.modules)\nassert not heavy, heavy")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_command_explains_itself(capsys):
    for command in ("reproduce", "train", "status", "publish", "report", "verify", "replay", "tune", "benchmark"):
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
    words = ["train", "--task", "synthetic", "--profile", "smoke", "--strategy"]
    assert main([*words, "DALS", "AdamW", "--seeds", "0-2"]) == 0 and main([*words, "Lion", "--seeds", "0"]) == 0
    store = Store()
    diverged = run_one({"task": "synthetic", "strategy": "SGDR", "profile": "smoke", "overrides": {"lr": 1e30}})
    store.put(diverged)

    def key(strategy, seed):
        return ("synthetic", "smoke", "paper", strategy, seed)
    for strategy, seed, text in (("Adam", 0, "ArithmeticError: the rate is on fire\nTraceback"), ("Lion", 1, "OSError: no room"),
                                 ("DALS", 0, "OSError: an old story, there is a record")):
        path = store.path(key(strategy, seed)).with_suffix(".failed")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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
    far = timed(1.0, device="abacus")
    assert expected([smoke, full], []) == [None, None]
    assert expected([smoke, full], [far]) == pytest.approx([1.0, work])
    assert expected([full], [far, timed(300.0, device="abacus", profile="paper")]) == [300.0] # its profile before others
    assert expected([full], [timed(3.0), timed(300.0, device="abacus", profile="paper")]) == pytest.approx([3 * work]) # our device first
    assert expected([smoke], [far, timed(3.0, strategy="SAM"), timed(9.0, strategy="gone"), timed(9.0, task="gone")]) == [1.5]
    assert cost([smoke, smoke, {**smoke, "task": "synthetic-released"}], [timed(2.0), timed(4.0)]) == (6.0, 1)


def test_a_cluster_without_its_package_is_one_sentence(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["train", "--task", "synthetic", "--profile", "smoke", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    out, err = capsys.readouterr()
    assert err == "dals: --engine dask needs the package distributed: pip install '.[cluster]' brings it\n" and not records(root)
