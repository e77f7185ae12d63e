"""Hostile stores: records that contradict themselves, places that refuse, and records of another code. Each ends in a sentence."""

import errno
import json
import math
import os
import random
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import dals.lab.store
from dals.lab.compare import own_task
from dals.cli import main
from dals.optim.dals import DALS
from dals.lab.intervals import summary
from dals.lab.records import Config, Key
from dals.lab.store import code_notes, codes, mixed, outdated, Store, StoreError
from dals.lab.sweep import run_one, sweep
from dals.recipes.strategies import STRATEGIES
from dals.lab.tasks import get_task
from dals.lab.training import behaviour, planned
from records import assert_no_wait

GOOD = Path(__file__).parents[1] / "results" / "synthetic" / "paper" / "paper" / "DALS" / "0.json"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    "An empty project, and we are in it."
    (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(root) -> Store:
    return Store()


def config(seed: int = 0, strategy: str = "DALS", **more) -> Config:
    return Config("synthetic", strategy, seed, profile="smoke", **more)


def lay(store: Store, text: str, seed: int = 0, where: str = "local") -> Path:
    "A file in the place of a record."
    path = store.path(Key("synthetic", "paper", "paper", "DALS", seed), where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def changed(**values) -> str:
    "A good record, changed; a dotted name (with __) reaches inside, and ... takes a field away."
    record = dals.lab.store.from_text(GOOD.read_text(encoding="utf-8")).to_dict()
    for name, value in values.items():
        *parts, last = name.split("__")
        place = record
        for part in parts:
            place = place[int(part) if part.isdecimal() else part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return json.dumps(record)


def deep(times: int) -> dict:
    inner: dict = {}
    for _ in range(times):
        inner = {"a": inner}
    return inner


def nested(times: int) -> str:
    return changed().replace('"data": {', '"data": {' + '"a": {' * times + "}" * times + ", ", 1)


TOP = json.loads(GOOD.read_text(encoding="utf-8"))["best_accuracy"]
SAYS = "its best_accuracy is 100.0, not the {} that follows from its history".format
BEST = f'"best_accuracy": {json.dumps(TOP)}'
CASES = {
    "best contradicts its own history": (changed(best_accuracy=100.0, final_accuracy=100.0), SAYS(TOP)),
    "final contradicts its own history": (changed(final_accuracy=1.0), "its final_accuracy is 1.0, not the "),
    "best is NaN": (changed().replace(BEST, '"best_accuracy": NaN'), "NaN is no number"),
    "best is infinite": (changed().replace(BEST, '"best_accuracy": 1e999'), "its best_accuracy is inf"),
    "best is a list": (changed(best_accuracy=[1]), "its best_accuracy is [1]"),
    "best has 4,000 digits": (changed().replace(BEST, '"best_accuracy": ' + "9" * 4000), "its best_accuracy is 99999"),
    "best has 5,000 digits": (changed().replace(BEST, '"best_accuracy": ' + "9" * 5000), "limit"),
    "nested 3,000 deep in data": (nested(3000), ""),
    "nested 40 deep in a setting": (changed(config__overrides={"lr": deep(40)}), "its config.overrides.lr is"),
    "200,000 opening brackets": ("[" * 200_000, "nested too deeply"),
    "config is null": (changed(config=None), "its config is None"),
    "config without epochs": (changed(config__epochs=...), "its config is"),
    "config.epochs is a list": (changed(config__epochs=[2]), "its config.epochs is [2]"),
    "config.epochs is not the length": (changed(config__epochs=3), "as long as the 3 of its config"),
    "a hyperparameter is infinite": (changed(config__hyperparameters__lr=0).replace('"lr": 0,', '"lr": 1e999,', 1), "lr is inf"),
    "data is empty": (changed(data={}), "its data is {}"),
    "data.test is a text": (changed(data__test="512"), "its data.test is '512'"),
    "data.test is 1 where the task has 2,000": (changed(data__test=1), "a share of 1 examples"),
    "data.train is 1": (changed(data__train=1), "its config.steps_per_epoch is"),
    "data.train is true": (changed(data__train=True), "its data.train is True"),
    "diverged is a text": (changed(diverged="no"), "its diverged is 'no'"),
    "diverged, and yet whole": (changed(diverged=True), "shorter than"),
    "seconds is a text": (changed(seconds="1"), "its seconds is '1'"),
    "seconds is negative": (changed(seconds=-1), "its seconds is -1"),
    "versions is null": (changed(versions=None), "its versions is None"),
    "versions has a number": (changed(versions={"torch": 2}), "its versions is"),
    "finished is a number": (changed(finished=5), "its finished is 5"),
    "finished is no time": (changed(finished="yesterday"), "yesterday"),
    "finished has no zone": (changed(finished="2026-01-01T00:00:00"), "a time with its zone"),
    "backbone is a list": (changed(backbone=["x"]), "its backbone is ['x']"),
    "peak_memory is a text": (changed(peak_memory="x"), "its peak_memory is 'x'"),
    "threads is 100000": (changed(threads=100_000), "its threads is 100000"),
    "threads is 0": (changed(threads=0), "its threads is 0"),
    "epochs_to contradicts the history": (changed(epochs_to__90=1), "its epochs_to.90 is 1, not the "),
    "epochs_to is empty": (changed(epochs_to={}), "its epochs_to is {}"),
    "epochs_to has a word": (changed(epochs_to__most=1), "most"),
    "history is empty and best is 100": (changed(history=[], best_accuracy=100.0), "0 epochs long"),
    "history is a text": (changed(history="long"), "its history is 'long'"),
    "history has a gap": (changed(history__0__epoch=7), "its epochs is [7, 2"),
    "a loss is a text": (changed(history__0__train_loss="0.1"), "its train_loss is"),
    "an accuracy is above 100": (changed(history__0__test_accuracy=101), "not percent"),
    "an accuracy is no share": (changed(history__0__test_accuracy=50.001), "a share of 1600 examples"),
    "a row has a further number": (changed(history__0__more=1), "rows of epoch"),
    "seed is beyond 64 bits": (changed(seed=2**64), "below 2**64"),
    "schema is a text": (changed(schema="2"), "its schema is '2'"),
    "schema is 0": (changed(schema=0), "its schema is 0"),
    "behaviour is a number": (changed(schema=3, behaviour=7), "its behaviour is 7"),
    "strategy is of another folder": (changed(strategy="Lion"), "it is the record of synthetic/paper/paper/Lion/0"),
    "ISO-8859-1": (None, "codec"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_record_that_contradicts_itself_is_named_with_the_reason_and_the_rest_counts(store, name):
    text, reason = CASES[name]
    lay(store, changed(seed=1), 1)
    path = lay(store, text or "", 0)
    if text is None:
        path.write_bytes(changed(device="größe").replace("\\u00f6", "ö").encode("latin-1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [run.seed for run in store.runs()] == [1]
    [said] = [str(one.message) for one in caught]
    assert said.startswith("the local record synthetic/paper/paper/DALS/0.json is damaged and counts as not done")
    assert reason in said and "\n" not in said and len(said) < 300
    assert path.exists() and not list(path.parent.glob("*.damaged")) # reading moves nothing


def random_damage(text: str, draw: random.Random) -> str:
    "One fault: a value replaced, a field taken away or renamed, a piece of the text cut, doubled or overwritten."
    kind = draw.randrange(6)
    if kind < 3:
        record = json.loads(text)
        place, where = record, draw.choice(list(record))
        while isinstance(place[where], (dict, list)) and place[where] and draw.random() < 0.7:
            place = place[where]
            where = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        values = [None, True, False, 0, -1, 1, 7, 1e300, 10**400, 2**64, "", "x", "1", [], [1], {}, {"a": 1}, deep(60), "ü" * 500, "../up",
                  0.1, 99.95, 100, [[[]]], "2026-01-01", "NaN"]
        if kind == 0 and isinstance(place, dict):
            del place[where]
        else:
            place[where] = draw.choice(values)
        return json.dumps(record)
    at, length = draw.randrange(len(text)), draw.randrange(1, 40)
    if kind == 3:
        return text[:at] + text[at + length:]
    if kind == 4:
        return text[:at] + text[at:at + length] * 2 + text[at + length:]
    return text[:at] + draw.choice(["NaN", "-Infinity", "1e999", "\0", "😀", "}", "[", '"',
                                    "9" * 4400, "{" * 5000]) + text[at + length:]


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "\x1b[31mred", "\u202eturned", "\u200ehidden", "\u2028line", "\x00"])
@pytest.mark.parametrize("where", ["device", "commit", "backbone", "variant", "strategy", "data", "versions"])
def test_a_text_that_would_break_or_turn_a_line_of_a_table_makes_no_record(run, where, text):
    record = run.to_dict()
    if where == "data":
        record["data"] = {**record["data"], "copy": text}
    elif where == "versions":
        record["versions"] = {**record["versions"], "torch": text}
    else:
        record[where] = text
    with pytest.raises(ValueError, match=f"{where}|versions"):
        dals.lab.store.from_text(json.dumps(record))


def test_130_damaged_records_end_in_no_traceback_and_none_is_counted_silently(store):
    draw, names, waits, other = random.Random(23), [], [], Store(store.published, Path(store.local).parent / "one_by_one")
    for seed in range(130):
        text = random_damage(changed(seed=seed), draw)
        path = lay(other, text, seed)
        names.append(lay(store, text, seed).name)
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.runs(variant="*")
        waits.append(time.monotonic() - start)
        for left in path.parent.iterdir():
            left.unlink()
    assert_no_wait(waits)
    lay(store, changed(seed=1000), 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = store.runs(variant="*")
    said = [str(one.message) for one in caught]
    counted = {f"{run.seed}.json" for run in runs} - {"1000.json"}
    assert "1000.json" in {f"{run.seed}.json" for run in runs} and all("\n" not in line for line in said)
    for name in names:
        named = [line for line in said if line.startswith(f"the local record synthetic/paper/paper/DALS/{name} ")]
        assert len(named) == (name not in counted), (name, named)
    assert len(counted) < 30 # most faults are noticed; these are still whole and agree with themselves
    for run in runs:
        scores = [row["test_accuracy"] for row in run.history]
        assert (run.best_accuracy, run.final_accuracy, len(scores)) == (max(scores), scores[-1], run.config["epochs"])
        assert all(math.isfinite(value) for row in run.history for value in row.values())
        dals.lab.store.from_text(dals.lab.store.to_text(run))
    assert math.isfinite(summary(run.best_accuracy for run in runs).mean)


def test_every_published_record_is_read_without_a_word():
    store = Store(GOOD.parents[4], "_none")
    files = [path for path in Path(store.published).rglob("*.json")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(store.runs(variant="*")) == len(files) >= 4650


# places

TRAIN = ["train", "--task", "synthetic", "--strategy", "DALS", "--profile", "smoke", "--seeds", "0"]
STATUS = ["status", "--task", "synthetic", "--profile", "smoke"]


@pytest.fixture(scope="module")
def run():
    return run_one(config())


def refused(capsys, words: list[str]) -> str:
    "The one sentence with which a command gives up, soon."
    begun = time.monotonic()
    assert main(words) == 2 and time.monotonic() - begun < 30
    err = capsys.readouterr().err
    assert err.startswith("dals: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_where_a_file_stands_for_the_folder_of_a_strategy_training_says_so_and_starts_nothing(root, capsys, monkeypatch):
    way = root / "_results" / "synthetic" / "smoke" / "paper"
    way.mkdir(parents=True)
    (way / "DALS").write_text("of a user", encoding="utf-8")
    monkeypatch.setattr("dals.lab.sweep._run_all", None)
    assert main(["train", "--task", "synthetic", "--strategy", "AdamW", "DALS", "--profile", "smoke"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{way / 'DALS'} is no folder" in err and not list(root.rglob("*.failed"))


@pytest.mark.parametrize("what, sentence", [("a link", "_results is a link that leads nowhere"), ("a file", "_results is no folder")])
def test_where_the_local_store_is_no_folder_training_says_so_and_starts_nothing(root, capsys, monkeypatch, what, sentence):
    (root / "_results").symlink_to(root / "nowhere") if what == "a link" else (root / "_results").write_text("", encoding="utf-8")
    monkeypatch.setattr(dals.lab.sweep, "ProcessPoolExecutor", None) # nothing may be started
    assert sentence in refused(capsys, TRAIN)
    assert main(STATUS) == 0
    assert "_results" in capsys.readouterr().err # named, and passed over


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_where_nothing_can_be_written_training_says_so_and_starts_nothing(root, capsys, monkeypatch, error):
    real = os.open

    def opened(path, flags, *rest, **more):
        if flags & os.O_CREAT and str(path).startswith(str(root)):
            raise OSError(error, os.strerror(error))
        return real(path, flags, *rest, **more)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(dals.lab.sweep, "ProcessPoolExecutor", None)
    assert os.strerror(error) in refused(capsys, TRAIN)


def test_a_record_and_a_folder_that_may_not_be_read_are_named_and_the_rest_counts(store, run, capsys, monkeypatch):
    path = store.put(run)
    other = run_one(config(1))
    store.put(other)
    closed = store.path(config(0, "Lion"))
    closed.parent.mkdir(parents=True)
    real_open, real_iterdir = os.open, Path.iterdir

    def opened(file, *rest, **more):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(file, *rest, **more)

    def listed(folder):
        if folder == closed.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_iterdir(folder)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "iterdir", listed)
    assert main(STATUS) == 0
    out, err = capsys.readouterr()
    assert "synthetic: 1 of 18 cells complete, 1 run," in out
    assert "DALS/0.json cannot be read (Permission denied), and is passed over" in err and "Lion cannot be read (Permission denied)" in err
    assert "the local record synthetic/smoke/paper/DALS/0.json cannot be read (Permission denied)" in refused(capsys, TRAIN)
    assert path.exists()


@pytest.mark.parametrize("what", ["a pipe", "a link", "a folder"])
def test_what_is_no_file_in_the_place_of_a_record_is_named_and_never_waited_for(store, run, capsys, what):
    store.put(run_one(config(1)))
    path = store.path(run)
    {"a pipe": os.mkfifo, "a link": lambda place: os.symlink("nowhere", place), "a folder": os.mkdir}[what](path)
    assert main(STATUS) == 0
    out, err = capsys.readouterr()
    assert "1 of 18 cells complete, 1 run," in out and err.count("DALS/0.json") == 1 and "passed over" in err
    refused(capsys, TRAIN)
    with pytest.raises(StoreError, match="the result is kept as 0.json.kept"):
        store.put(run)
    assert dals.lab.store.from_text((path.parent / "0.json.kept").read_text(encoding="utf-8")) == run and os.path.lexists(path)


def test_a_damaged_record_that_cannot_be_moved_is_no_endless_loop(store, run, monkeypatch):
    path = store.put(run)
    path.write_text("{", encoding="utf-8")

    def fixed(*_):
        raise OSError(errno.EPERM, "Operation not permitted")
    monkeypatch.setattr(Path, "rename", fixed)
    with pytest.warns(UserWarning, match="is damaged and counts as not done"), \
            pytest.raises(StoreError, match="cannot be moved away .Operation not permitted.*; the result is kept as 0.json.kept"):
        store.put(run)
    computed: list = []
    with pytest.warns(UserWarning), ThreadPoolExecutor(1) as pool:
        swept = sweep([config()], store, progress=None, run=computed.append, executor=pool)
    [reason] = swept.failed.values()
    assert "is in the way of one" in reason.splitlines()[0] and not computed # found out before anything was computed


def test_a_record_that_appears_meanwhile_with_other_settings_costs_no_result(store, run):
    def slow(asked):
        store.put(run_one(config(overrides={"lr": 0.5}))) # somebody else, with another rate
        return run_one(asked)
    with ThreadPoolExecutor(1) as pool:
        [reason] = sweep([config()], store, progress=None, run=slow, executor=pool).failed.values()
    assert "Conflict: the local store already holds" in reason and "the result is kept as 0.json.kept" in reason
    kept = dals.lab.store.from_text((store.path(run).parent / "0.json.kept").read_text(encoding="utf-8"))
    assert kept.history == run.history


def test_names_are_utf_8_whatever_the_locale_says(root):
    program = ("from dals.lab.store import Store\nfrom dals.lab.sweep import run_one\n"
               "run = run_one({'task': 'synthetic', 'strategy': 'DALS', 'seed': 0, 'profile': 'smoke'})\n"
               "run.device = 'cpu (Gr\\u00f6\\u00dfe)'\n"
               "store = Store(); store.put(run); [path] = store.publish()\n"
               "assert Store().runs()[0].device == run.device and run.device.encode() in path.read_bytes()")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root,
                   env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"})


def test_publishing_onto_a_disk_that_refuses_is_a_sentence_and_loses_nothing(store, run, capsys, monkeypatch):
    path, real = store.put(run), os.open

    def opened(file, flags, *rest, **more):
        if flags & os.O_CREAT and "/results/" in str(file):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(file, flags, *rest, **more)
    monkeypatch.setattr(os, "open", opened)
    assert "published 0 records and then had to stop: could not write 0.json" in refused(capsys, ["publish"])
    assert path.exists()


# behaviour

def hundredfold(self, closure=None):
    "The step of DALS, a hundred times as long."
    before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
    loss = original(self, closure)
    with torch.no_grad():
        for p, old in zip((p for group in self.param_groups for p in group["params"]), before, strict=True):
            p.add_(p - old, alpha=99.0)
    return loss


original = DALS.step


def trained(store: Store, *seeds: int, again: bool = False) -> list[int]:
    with ThreadPoolExecutor(1) as pool:
        swept = sweep([config(seed) for seed in seeds], store, progress=None, executor=pool, again=again)
    assert not swept.failed
    return sorted(key.seed for key in swept.finished)


def test_a_step_that_was_changed_in_the_library_is_seen_said_and_done_again(store, capsys, monkeypatch):
    assert trained(store, 0, 1) == [0, 1] and len(store.publish()) == 2
    assert trained(store, 2) == [2] and code_notes(store.runs()) == []
    old = {run.seed: run for run in store.runs()}
    assert len({run.behaviour for run in old.values()}) == 1 and None not in {run.behaviour for run in old.values()}

    monkeypatch.setattr(DALS, "step", hundredfold)
    assert trained(store, 0, 1, 2) == [] # settings agree, so nothing is missing
    assert main([*TRAIN[:-1], "0-2", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "nothing to do: all 3 runs are in the store\nnote: 3 of 3 records were made by code that behaves otherwise than today's "
        "(synthetic DALS, seed 0; synthetic DALS, seed 1; synthetic DALS, seed 2): dals train --again redoes them\n")
    assert trained(store, 3) == [3]
    [(cell, parts)] = mixed(store.runs()).items()
    assert (cell.strategy, parts) == ("DALS", [[0, 1, 2], [3]])
    assert main(STATUS) == 0
    out = capsys.readouterr().out
    assert "note: synthetic DALS (smoke, paper) mixes runs of code that behaves differently (seeds 0, 1, 2 against 3)" in out
    assert main([*TRAIN[:-1], "0-3", "--dry-run", "--again"]) == 0
    assert capsys.readouterr().out.startswith("3 of 4 runs to do")

    assert trained(store, 0, 1, 2, 3, again=True) == [0, 1, 2]
    assert trained(store, 0, 1, 2, 3, again=True) == [] # it can be stopped and goes on
    assert code_notes(store.runs()) == [] and len(codes(store.runs())[cell]) == 1
    for run in old.values():
        assert store.get(*run.key).history != run.history
    assert store.get(*old[0].key, where="published") == old[0] # never edited, now in the shadow of a local one
    aside = store.path(old[2]).with_name("2.json.replaced")
    assert dals.lab.store.from_text(aside.read_text(encoding="utf-8")) == old[2]


def test_records_from_before_there_was_a_fingerprint_are_marked_and_not_dropped(store, run):
    old = run_one(config(1))
    old.behaviour = None
    store.put(run)
    store.put(old)
    assert [one.seed for one in store.runs()] == [0, 1] and mixed(store.runs()) == {}
    [note] = code_notes(store.runs())
    assert "1 cell holds new records beside some from before records said what their code does (synthetic DALS)" in note
    assert code_notes([old]) == [] and [one.seed for one in outdated(store.runs())] == [1]
    assert trained(store, 0, 1) == [] and trained(store, 0, 1, again=True) == [1]
    assert code_notes(store.runs()) == []


def print_of(strategy: str, protocol: str = "paper", **changes) -> str | None:
    task = get_task("synthetic")
    values = planned(task, STRATEGIES[strategy], protocol, "paper", {})[1]["hyperparameters"]
    return behaviour(task, strategy, protocol, {**values, **changes})


def test_a_fingerprint_is_the_same_in_every_process_and_with_any_number_of_threads():
    program = ("import sys, torch; from test_store import print_of\nfrom dals.recipes.strategies import STRATEGIES\n"
               "torch.set_num_threads(2); torch.rand(3)\n"
               "print(*(print_of(name, ('paper', 'released')[i % 2]) for i, name in enumerate(STRATEGIES)))")
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=Path(__file__).parent,
                           env={**os.environ, "PYTHONHASHSEED": "7", "DNNL_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"})
    before = torch.get_rng_state()
    here = [print_of(name, ("paper", "released")[i % 2]) for i, name in enumerate(STRATEGIES)]
    assert other.stdout.split() == here and torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        i = list(STRATEGIES).index("SAM")
        assert print_of("SAM", ("paper", "released")[i % 2]) == here[i]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fingerprint_sees_the_composition_and_the_loop_but_not_the_rate(name, monkeypatch):
    plain = print_of(name)
    assert print_of(name, lr=0.123) == plain
    from dals.lab import training
    from dals.recipes.strategies import PAPER
    composition = PAPER.compositions[name]
    with monkeypatch.context() as patch: # the strategy's own line
        patch.setitem(PAPER.compositions, name, lambda model, plan, *, lr, **rest: composition(model, plan, lr=1.001 * lr, **rest))
        assert print_of(name) != plain
    real = training.train_epoch
    with monkeypatch.context() as patch: # the loop: half of the examples are left out
        patch.setattr(training, "train_epoch", lambda *args: real(*args[:4], args[4].take(torch.arange(3)), *args[5:]))
        assert print_of(name) != plain


class Net(nn.Module):
    spread = 1.0

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.head.weight.mul_(self.spread)

    def forward(self, x):
        return self.head(x)


def test_the_initial_weights_of_a_task_of_ones_own_are_part_of_its_behaviour(monkeypatch):
    x, y = torch.arange(48.0).sin().view(12, 4), torch.arange(12) % 3
    task = own_task("mine", Net, (x, y), (x, y), epochs=1, batch_size=4)
    values = planned(get_task("synthetic"), STRATEGIES["Lion"], "paper", "paper", {})[1]["hyperparameters"]
    plain = behaviour(task, "Lion", "paper", values)
    assert plain == behaviour(task, "Lion", "paper", values) != print_of("Lion")
    monkeypatch.setattr(Net, "spread", 1.1)
    assert behaviour(task, "Lion", "paper", values) != plain


def test_files_that_are_no_records_are_neither_read_nor_moved(tmp_path):
    "A folder that somebody names may be no store at all, and links in it lead anywhere, as those in /proc do"
    elsewhere = tmp_path / "elsewhere" / "in"
    for folder in (tmp_path / "results" / "a" / "b" / "c" / "d", elsewhere):
        folder.mkdir(parents=True)
        for name in ("settings.json", "7a.json", "x-1.json"):
            (folder / name).write_text('{"repo": "main"}', encoding="utf-8")
    (elsewhere / "7.json").write_text('{"repo": "main"}', encoding="utf-8") # even by a record's name, behind a link
    (tmp_path / "results" / "a" / "b" / "root").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "results" / "a" / "b" / "c" / "linked").symlink_to(elsewhere, target_is_directory=True)

    def files(): return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    before = files()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Store(tmp_path / "results", tmp_path / "_results").runs(variant="*") == []
    assert files() == before
