"""Faults and processes around the store: what happens when a disk is full, a worker dies, or two writers meet."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dals.lab.sweep
import dals.lab.store
from dals.lab.intervals import binomial_se, prediction_interval, summary
from dals.lab.records import Config, Key, Run
from dals.lab.store import Conflict, NewerRecord, Store, StoreError
from dals.lab.sweep import sweep
from dals.lab.training import settings


def made_up(config: Config) -> Run:
    "A record without a training, the worker function of the sweeps below; what else it does is told by the variant."
    if log := os.environ.get("RUN_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{config.seed}\n")
    match config.variant:
        case "fails" if not os.environ.get("RUNS_ARE_TAME"):
            raise ArithmeticError("the rate is on fire")
        case "kills" if not os.environ.get("RUNS_ARE_TAME"):
            os.kill(os.getpid(), signal.SIGKILL)
        case "long":
            time.sleep(60)
        case "short":
            time.sleep(0.2)
    asked = settings(config)
    return Run(
        task=config.task, strategy=config.strategy, protocol=config.protocol, profile=config.profile, seed=config.seed,
        variant=config.variant, backbone=None, config={**asked, "steps_per_epoch": 2},
        data={"copy": "made up", "fingerprint": "00", "train": 2 * asked["batch_size"], "test": 4},
        history=[{"epoch": epoch, "train_loss": 0.5, "test_accuracy": 75.0 if epoch == 2 else 50.0, "lr": 0.1}
                 for epoch in range(1, asked["epochs"] + 1)],
        best_accuracy=75.0, final_accuracy=75.0, epochs_to={"60": 2, "70": 2, "80": None, "90": None}, diverged=False, seconds=0.1,
        device="cpu", threads=1, versions={"torch": "0"}, commit="none", finished="2026-01-01T00:00:00+00:00")


def config(seed: int = 42, strategy: str = "STLR+Discriminative", **more) -> Config:
    return Config("synthetic", strategy, seed, profile="smoke", **more)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "results", tmp_path / "_results")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_path_is_the_key_and_comes_back_equal(store):
    run = made_up(config(7, variant="data-draw-3"))
    path = store.put(run)
    assert path.relative_to(store.local).as_posix() == "synthetic/smoke/paper/STLR+Discriminative/7-data-draw-3.json"
    back = store.get(*run.key)
    assert back.to_dict() == run.to_dict()
    assert back.origin == "local" and "origin" not in back.to_dict()
    assert store.runs() == [] and len(store.runs(variant="data-draw-3")) == len(store.runs(variant="*")) == 1


@pytest.mark.parametrize("part, value", [("task", "../up"), ("strategy", ""), ("strategy", "a/b"), ("profile", ".hidden"),
                                         ("variant", "x/y"), ("seed", -1), ("seed", 1.0), ("seed", True)])
def test_what_cannot_be_a_file_name_is_refused(store, part, value):
    with pytest.raises(ValueError, match=part):
        store.path(config().key._replace(**{part: value}))
    with pytest.raises(ValueError, match=part):
        replace(config(), **{part: value})


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk_leaves_nothing_half(store, monkeypatch, call):
    real, count = getattr(os, call), [0]

    def full(*arguments):
        count[0] += 1
        if call == "write" and count[0] == 1: # some of it fits
            return real(arguments[0], arguments[1][:100])
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match="could not write 42.json.*No space left.*the result could not be kept beside it") as caught:
        store.put(made_up(config()))
    first, _, record = str(caught.value).partition("\n")
    assert dals.lab.store.from_text(record) == made_up(config()) and files(store.local) == [] # nothing half, and nothing lost
    monkeypatch.undo()
    assert store.put(made_up(config())).exists()


def test_a_number_that_json_does_not_have_is_refused_and_leaves_nothing(store):
    run = made_up(config())
    run.history[0]["train_loss"] = math.nan
    with pytest.raises(ValueError):
        store.put(run)
    assert not store.local.exists()


def test_the_same_again_is_nothing_new_and_another_configuration_is_an_error(store):
    path = store.put(made_up(config()))
    before = path.stat().st_ino, path.read_bytes()
    assert store.put(made_up(config())) == path
    other = made_up(config())
    other.config["hyperparameters"]["lr"] = 0.2
    other.config["epochs"] = 3
    with pytest.raises(Conflict, match=r"STLR\+Discriminative/42.*config\.epochs, config\.hyperparameters\.lr"):
        store.put(other)
    assert (path.stat().st_ino, path.read_bytes()) == before and files(store.local) == ["42.json"]


def test_of_many_writers_one_wins_and_the_file_is_whole(store):
    runs = [made_up(config()) for _ in range(16)]
    for number, run in enumerate(runs):
        run.config["multiplier"] = float(number + 1)
    barrier, lost = threading.Barrier(len(runs)), []

    def write(run: Run) -> None:
        barrier.wait()
        try:
            store.put(run)
        except Conflict:
            lost.append(run.config["multiplier"])
    threads = [threading.Thread(target=write, args=(run,)) for run in runs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    winner = store.get(*runs[0].key).config["multiplier"]
    assert sorted(lost + [winner]) == list(range(1, len(runs) + 1)) and files(store.local) == ["42.json"]


def damage(kind: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    if kind == "cut":
        path.write_text(text[:len(text) // 2], encoding="utf-8")
    elif kind == "empty":
        path.write_text("", encoding="utf-8")
    elif kind == "noise":
        path.write_bytes(bytes(range(256)))
    elif kind == "a list":
        path.write_text("[1, 2]", encoding="utf-8")
    elif kind == "no history":
        del record["history"]
        path.write_text(json.dumps(record), encoding="utf-8")
    elif kind == "seed is a list":
        path.write_text(json.dumps({**record, "seed": [42]}), encoding="utf-8")
    else:
        path.write_text(json.dumps({**record, "seed": 43}), encoding="utf-8")


@pytest.mark.parametrize("kind", ["cut", "empty", "noise", "a list", "no history", "seed is a list", "at a wrong path"])
def test_a_damaged_record_is_named_set_aside_and_done_again(store, kind):
    path = store.put(made_up(config()))
    store.put(made_up(config(1)))
    damage(kind, path)
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=r"local record synthetic/smoke/paper/STLR.Discriminative/42.json is damaged and counts as not"):
        assert [run.seed for run in store.runs()] == [1]
    assert path.read_bytes() == damaged # reading moves nothing
    with pytest.warns(UserWarning, match=r"42.json was set aside as 42.json.damaged, for a new one"):
        store.put(made_up(config()))
    assert path.with_name("42.json.damaged").read_bytes() == damaged
    damage(kind, path)
    with pytest.warns(UserWarning, match=r"42.json.1.damaged"):
        store.put(made_up(config())) # a damaged record is in the way of the new one
    assert [run.seed for run in store.runs()] == [1, 42] and len(files(store.local)) == 4


def test_every_cut_of_a_record_is_noticed(store):
    text = dals.lab.store.to_text(made_up(config())).rstrip()

    @given(st.integers(0, len(text) - 1))
    def cut(length):
        with pytest.raises(ValueError):
            dals.lab.store.from_text(text[:length])
    cut()


def test_older_records_stay_readable_and_newer_ones_are_left_alone(store):
    path = store.put(made_up(config()))
    now = json.loads(path.read_text(encoding="utf-8"))
    fresh = {"precision": "float32", "compiled": False, "together": 1, "peak_memory": None, "behaviour": None}
    old = {name: value for name, value in now.items() if name not in fresh} | {"schema": 1} # as version 1 wrote it
    path.write_text(json.dumps(old), encoding="utf-8")
    assert store.get(*config().key).to_dict() == {**now, **fresh}
    path.write_text(json.dumps(now, indent=1), encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace('"schema": 3', '"schema": 99'), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(NewerRecord, match="schema 99.*newer dals"):
        store.get(*config().key)
    with pytest.warns(UserWarning, match="42.json.*schema 99"):
        assert store.runs() == []
    with pytest.raises(NewerRecord):
        store.put(made_up(config()))
    assert path.read_bytes() == before


def test_local_overlays_published_and_publishing_loses_nothing(store):
    store.put(made_up(config(0)))
    store.put(made_up(config(1)))
    assert [path.name for path in store.publish()] == ["0.json", "1.json"] and files(store.local) == []
    assert [run.origin for run in store.runs()] == ["published"] * 2
    local = made_up(config(1))
    local.commit = "later"
    store.put(local)
    assert [(run.origin, run.commit) for run in store.runs()] == [("published", "none"), ("local", "later")]
    assert store.get(*local.key, where="published").commit == "none"
    assert store.publish() == [] and files(store.local) == ["1.json"] # the twin stays where it is
    other = made_up(config(0))
    other.config["multiplier"] = 9.0
    here = store.put(other)
    store.put(made_up(config(2)))
    before = here.read_bytes(), store.path(other, "published").read_bytes()
    with pytest.raises(Conflict) as caught:
        store.publish()
    assert all(text in str(caught.value) for text in (str(here), str(store.path(other, "published")), "config.multiplier"))
    assert (here.read_bytes(), store.path(other, "published").read_bytes()) == before
    assert store.path(config(2), "published").exists() # what could be published was


def test_a_killed_writer_leaves_a_file_that_is_ignored_and_cleaned(store):
    program = ("import os, signal, sys; from test_results import made_up, config; from dals.lab.store import Store\n"
               "os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
               "Store(sys.argv[1], sys.argv[2]).put(made_up(config()))")
    died = subprocess.run([sys.executable, "-c", program, store.published, store.local], cwd=Path(__file__).parent)
    assert died.returncode == -signal.SIGKILL
    [left] = files(store.local)
    assert left.startswith(".42.json.") and left.endswith(".tmp") and store.runs() == []
    assert store.clean() == 0 # it could belong to a writer at work
    assert store.clean(older_than=0) == 1 and files(store.local) == []


def test_a_sweep_survives_a_failing_run_and_a_run_that_kills_its_worker(store, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("RUN_LOG", str(log))
    configs = [config(0), config(1, variant="fails"), config(2, variant="kills"), config(3), config(4)]
    lines: list[str] = []
    swept = sweep(configs, store, jobs=2, progress=lines.append, run=made_up)
    assert sorted(key.seed for key in swept.finished) == [0, 3, 4] and sorted(key.seed for key in swept.failed) == [1, 2]
    text = "\n".join(lines)
    assert "ArithmeticError: the rate is on fire" in text and "in made_up" in text and "killed twice" in text
    assert [run.seed for run in store.runs(variant="*")] == [0, 3, 4]
    store.clean(older_than=0) # a killed worker may have left a temporary file
    assert files(store.local) == ["0.json", "1-fails.failed", "2-kills.failed", "3.json", "4.json"]
    assert {key.seed: reason for key, reason in store.unfinished()[1].items()} == {
        1: "ArithmeticError: the rate is on fire",
        2: "RuntimeError: its worker was killed twice, the second time alone; is there enough memory?"}
    assert "in made_up" in store.path(configs[1]).with_suffix(".failed").read_text(encoding="utf-8")
    log.unlink()
    monkeypatch.setenv("RUNS_ARE_TAME", "1")
    assert sorted(key.seed for key in sweep(configs, store, progress=None, run=made_up).finished) == [1, 2]
    assert sorted(log.read_text(encoding="utf-8").split()) == ["1", "2"] # what was finished is not run again
    assert store.unfinished() == ({}, {}) and not any(name.endswith(".failed") for name in files(store.local))


def test_two_sweeps_on_one_store(store):
    configs = [config(seed, variant="short") for seed in range(6)]
    swept: list = []
    both = [threading.Thread(target=lambda: swept.append(sweep(configs, store, jobs=1, progress=None, run=made_up))) for _ in range(2)]
    [thread.start() for thread in both]
    [thread.join() for thread in both]
    assert len(swept) == 2 and not any(one.failed for one in swept)
    assert [run.seed for run in store.runs(variant="short")] == list(range(6))
    assert files(store.local) == [f"{seed}-short.json" for seed in range(6)]


def test_only_local_runs_what_is_published_too(store):
    store.put(made_up(config()))
    store.publish()
    assert dals.lab.sweep.missing([config()], store) == [] and len(dals.lab.sweep.missing([config()], store, only_local=True)) == 1


def test_one_path_cannot_be_asked_for_twice_in_different_ways(store):
    with pytest.raises(Conflict, match="wanted twice.*hyperparameters.lr"):
        dals.lab.sweep.missing([config(), config(overrides={"lr": 1})], store)
    store.put(made_up(config(overrides={"lr": 1})))
    with pytest.raises(Conflict, match="the local store holds.*hyperparameters.lr.*variant"):
        dals.lab.sweep.missing([config()], store)
    assert dals.lab.sweep.missing([config(overrides={"lr": 1})], store) == []
    with pytest.raises(ValueError, match="needs task and strategy"):
        dals.lab.sweep.missing([{"task": "synthetic"}], store)
    with pytest.raises(ValueError, match="stratgy"):
        dals.lab.sweep.missing([{"task": "synthetic", "strategy": "DALS", "stratgy": "DALS"}], store)
    with pytest.raises(ValueError, match="jobs"):
        sweep([config()], store, jobs=0)


def test_ctrl_c_loses_only_the_run_in_flight_and_leaves_no_worker(store, tmp_path):
    program = ("import sys; from test_results import made_up, config; from dals.lab.store import Store\nfrom dals.lab.sweep import sweep\n"
               "if __name__ == '__main__':\n"
               "    sweep([config(seed, variant='long' if seed == 1 else None) for seed in range(4)],\n"
               "          Store(sys.argv[1], sys.argv[2]), jobs=1, run=made_up)")
    script = tmp_path / "script.py"
    script.write_text(program, encoding="utf-8")
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
                   "RUN_LOG": str(log)}
    process = subprocess.Popen([sys.executable, script, store.published, store.local], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, env=environment)
    until = time.monotonic() + 120
    while not (log.exists() and "1\n" in log.read_text(encoding="utf-8")):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT) # what a terminal does
    out, err = process.communicate(timeout=30) # returns when nobody holds the pipes any more: no worker is left
    assert "stopped: 1 runs are stored, 3 are left; the same call goes on from here" in out
    assert err.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert files(store.local) == ["0.json"]


def test_statistics_agree_with_scipy_and_say_what_one_value_cannot():
    from scipy import stats
    values = [97.2, 97.9, 98.1, 97.5]
    got = summary(values)
    assert (got.low, got.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)), rel=1e-12)
    assert summary([5.0])[:2] == (1, 5.0) and math.isnan(summary([5.0]).sd) and prediction_interval([5.0]) == (-math.inf, math.inf)
    assert binomial_se(50, 277) == pytest.approx(3.004, abs=1e-3)
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            summary(wrong)
    with pytest.raises(ValueError, match="0 to 100"):
        binomial_se(0.98 * 200, 2000)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_a_further_run_is_less_certain_than_the_mean(values):
    low, high = prediction_interval(values)
    mean = summary(values)
    assert low <= mean.low <= mean.high <= high


def test_a_config_a_run_and_a_key_have_one_key():
    key = Key("synthetic", "smoke", "paper", "STLR+Discriminative", 42)
    assert config().key == made_up(config()).key == key.key == key
    assert Config.of({"task": "synthetic", "strategy": "STLR+Discriminative", "profile": "smoke"}) == config() == Config.of(config())


@pytest.mark.parametrize("more, says", [({"sede": 1}, "may have seed"), ({"overrides": [1]}, "by the names of hyperparameters"),
                                        ({"fast": "yes"}, "True, False or None"), ({"protocol": "../up"}, "name of a file")])
def test_a_config_that_is_none_is_refused_in_a_sentence(more, says):
    with pytest.raises(ValueError, match=says):
        Config.of({"task": "synthetic", "strategy": "DALS", **more})


def test_a_config_keeps_its_overrides_to_itself():
    own = {"lr": 0.1}
    asked = config(overrides=own)
    own["lr"] = 0.2
    assert asked.overrides == {"lr": 0.1} and {asked: 1}[config(overrides={"lr": 0.1})] == 1


def test_only_a_run_that_wants_its_place_moves_a_damaged_file(tmp_path):
    "A reader may be pointed at any folder, by a parameter of a notebook: what lies there stays as it is"
    theirs = Store(tmp_path / "theirs", tmp_path / "also_theirs")
    for where in ("published", "local"):
        path = theirs.path(config(), where)
        path.parent.mkdir(parents=True)
        path.write_text("{", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.warns(UserWarning, match="42.json is damaged and counts as not done"):
        assert theirs.runs(variant="*") == [] and theirs.get(*config().key) is None and theirs.publish() == []
    theirs.unfinished()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.warns(UserWarning, match="set aside as 42.json.damaged"):
        theirs.put(made_up(config()))
    assert theirs.path(config(), "published").read_text(encoding="utf-8") == "{" and [run.origin for run in theirs.runs()] == ["local"]
