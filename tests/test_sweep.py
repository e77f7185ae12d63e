"""Sweeps under fire: clusters, threads, killed workers, two sweeps at once, dead claims, full disks, interrupts."""

import errno
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import dals.lab.sweep
import dals.lab.store
from dals.lab.records import Config, Run
from dals.lab.store import claimed, holder, Store, StoreError
from dals.lab.sweep import run_one, sweep

PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def config(seed: int = 42, strategy: str = "AdamW", **more) -> Config:
    return Config("synthetic", strategy, seed, profile="smoke", **more)


def logged(config: Config) -> None:
    with open(os.environ["RUN_LOG"], "a", encoding="utf-8") as file:
        file.write(f"{config.seed} {os.getpid()}\n")


def run(config: Config) -> Run:
    "A real run that is noted when it starts, and takes a while."
    logged(config)
    time.sleep(0.5)
    return run_one(config)


def refusing(times: int):
    "os.write on a disk that is full for so many files"
    real, left = os.write, [times]

    def write(descriptor, content):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)
    return write


def run_until_full(config: Config) -> Run:
    "A run after which the disk takes no record, or not even the word that it failed."
    done = run_one(config)
    if str(config.variant).startswith("full"):
        os.write = refusing(3 if config.variant == "full for good" else 1)
    return done


def run_or_die(config: Config) -> Run:
    if config.variant == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    return run_one(config)


at_once, most, threads_inside = 0, 0, []


def run_and_count(config: Config) -> Run:
    "A run that says how many of its kind are at work in this process."
    global at_once, most
    at_once += 1
    most = max(most, at_once)
    threads_inside.append(torch.get_num_threads())
    time.sleep(0.05)
    done = run_one(config)
    at_once -= 1
    return done


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "results", tmp_path / "_results")


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("RUN_LOG", str(path))
    return path


def starts(log: Path) -> list[tuple[int, int]]:
    return [(int(seed), int(pid)) for seed, pid in map(str.split, log.read_text(encoding="utf-8").splitlines())]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def beside(script: Path, store: Store) -> subprocess.Popen:
    "A script at work in a process of its own, which is told the folders of the store and can import this file."
    return subprocess.Popen([sys.executable, script, store.published, store.local], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "PYTHONPATH": PATH})


def until(what, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_dask_worker_is_killed_and_nothing_is_lost_or_run_twice(store, log):
    from distributed import Client, LocalCluster
    configs, killed = [config(seed) for seed in range(8)], []

    def kill() -> None:
        until(lambda: len(starts(log)) >= 4)
        seed, pid = starts(log)[-1]
        os.kill(pid, signal.SIGKILL)
        killed.append(seed)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None) as cluster, \
            Client(cluster.scheduler_address) as client:
        killer = threading.Thread(target=kill)
        killer.start()
        lines: list[str] = []
        swept = sweep(configs, store, progress=lines.append, run=run, executor=client.get_executor(pure=False))
        killer.join()
    assert sorted(key.seed for key in swept.finished) == list(range(8)) and not swept.failed and not swept.elsewhere, lines
    assert [len(run.history) for run in store.runs()] == [2] * 8 and files(store.local) == [f"{seed}.json" for seed in range(8)]
    again = [seed for seed, _ in starts(log)]
    [seed] = killed
    again.remove(seed)
    assert sorted(again) == list(range(8)) # every run was started once, and the killed one twice


def test_two_sweeps_in_two_processes_do_every_run_once(store, log, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; from test_sweep import config, run; from dals.lab.store import Store\nfrom dals.lab.sweep import sweep\n"
                      "if __name__ == '__main__':\n"
                      "    swept = sweep([config(seed) for seed in range(6)], Store(sys.argv[1], sys.argv[2]), jobs=1, run=run)\n"
                      "    assert not swept.failed and not swept.elsewhere and len(swept.finished) + len(swept.skipped) == 6",
                      encoding="utf-8")
    both = [beside(script, store) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(seed for seed, _ in starts(log)) == list(range(6)) and len({pid for _, pid in starts(log)}) >= 2
    assert files(store.local) == [f"{seed}.json" for seed in range(6)] and len(store.runs()) == 6


def test_a_task_that_is_given_twice_is_run_once(store, log):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        answers = [pool.submit(dals.lab.sweep._Worker(run, store), (config(),)) for _ in range(2)]
        answers = [one for answer in answers for one in answer.result()]
    assert len(starts(log)) == 1 and len(store.runs()) == 1
    assert all(answer == {"elsewhere": True} or "text" in answer for answer in answers) and any("text" in answer for answer in answers)


def test_threads_take_turns_and_each_run_is_what_it_is_alone(store):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as pool:
            swept = sweep([config(seed) for seed in range(5)], store, progress=None, run=run_and_count, executor=pool)
            assert set(pool.map(lambda _: torch.get_num_threads(), range(9))) == {2} # as it was
    finally:
        torch.set_num_threads(before)
    assert len(swept.finished) == 5 and most == 1 and set(threads_inside) == {1}
    torch.set_num_threads(1)
    try:
        for seed in range(5):
            assert store.get(*config(seed).key).history == run_one(config(seed)).history
    finally:
        torch.set_num_threads(before)


def at_work_elsewhere(store: Store, config: Config, tmp_path: Path) -> subprocess.Popen:
    "A process of its own that has claimed a run, and holds it until it is told to end or is killed."
    script = tmp_path / "holder.py"
    script.write_text("import sys; from pathlib import Path; from dals.lab.store import claimed\n"
                      "with claimed(Path(sys.argv[1])) as ours:\n    print(ours, flush=True); sys.stdin.read()", encoding="utf-8")
    process = subprocess.Popen([sys.executable, script, store.claim(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_a_living_claim_is_left_alone_and_named_and_a_dead_one_is_taken_over_at_once(store, log, tmp_path, monkeypatch):
    monkeypatch.setattr("dals.lab.sweep.PATIENCE", 1.0)
    dead, alive = (at_work_elsewhere(store, config(seed), tmp_path) for seed in (1, 0))
    dead.kill()
    dead.wait()
    for seed in (2, 3): # of a container that is no more, of something else that was written there; nobody has locked them
        who = '{"host": "a container", "pid": 1, "started": "yesterday"}' if seed == 2 else "?"
        store.claim(config(seed)).write_text(who, encoding="utf-8")
    assert [holder(store.claim(config(seed))) is None for seed in range(5)] == [False, True, True, True, True]
    [(key, who)] = store.unfinished()[0].items()
    assert key.seed == 0 and f"process {alive.pid}, since 20" in who
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        swept = sweep([config(seed) for seed in range(4)], store, progress=lines.append, run=run, executor=pool)
    assert [key.seed for key in swept.elsewhere] == [0] and sorted(key.seed for key in swept.finished) == [1, 2, 3]
    assert any(line.startswith("waiting up to 1.0 s for synthetic AdamW, seed 0, at work on ") and str(alive.pid) in line for line in lines)
    assert lines[-1].startswith("1 run is at work in another sweep on this store (on ") and f"process {alive.pid}" in lines[-1]
    assert sorted(seed for seed, _ in starts(log)) == [1, 2, 3]
    alive.communicate("")
    assert files(store.local) == ["1.json", "2.json", "3.json"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_changes_nothing(store, log, tmp_path, monkeypatch, hours):
    monkeypatch.setattr("dals.lab.sweep.PATIENCE", 1.0)
    alive, real = at_work_elsewhere(store, config(0), tmp_path), time.time
    os.utime(store.claim(config(0)), (real() - 3600 * hours,) * 2)
    dead = store.claim(config(1))
    dead.write_text("", encoding="utf-8")
    os.utime(dead, (real() + 3600 * hours,) * 2)
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        swept = sweep([config(seed) for seed in range(2)], store, progress=None, run=run, executor=pool)
    assert ([key.seed for key in swept.elsewhere], [key.seed for key in swept.finished]) == ([0], [1]) and time.monotonic() - begun < 20
    alive.communicate("")


def test_a_run_that_another_sweep_gives_back_is_waited_for(store, log, tmp_path):
    alive = at_work_elsewhere(store, config(0), tmp_path)
    threading.Timer(1.0, lambda: alive.communicate("")).start()
    with ThreadPoolExecutor(1) as pool:
        swept = sweep([config(0)], store, progress=None, run=run, executor=pool)
    assert [key.seed for key in swept.finished] == [0] and not swept.elsewhere


def test_a_stale_claim_has_one_heir(store):
    barrier, lock, heirs = threading.Barrier(12), threading.Lock(), []

    def inherit(claim: Path) -> None:
        barrier.wait()
        with claimed(claim) as ours:
            if ours:
                with lock:
                    heirs.append(claim)
            barrier.wait()
    for attempt in range(10):
        claim = store.claim(config(attempt))
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.write_text("of somebody who is dead", encoding="utf-8")
        threads = [threading.Thread(target=inherit, args=(claim,)) for _ in range(12)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert heirs.count(claim) == 1
    assert files(store.local) == []


def test_a_claim_that_was_taken_away_is_not_removed_by_its_old_holder(store):
    with claimed(store.claim(config())) as ours:
        store.claim(config()).unlink() # somebody tidied up
        with claimed(store.claim(config())) as theirs:
            assert ours and theirs
            other = store.claim(config()).stat().st_ino
            assert store.clean() == 0 and store.claim(config()).stat().st_ino == other
    assert files(store.local) == []


def test_without_locks_and_without_hard_links_a_run_is_claimed_and_stored(store, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr(os, "link", refused)
    for flock in (fcntl.flock, no_locks):
        monkeypatch.setattr(dals.lab.files.fcntl, "flock", flock)
        with ThreadPoolExecutor(1) as pool, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            swept = sweep([config(0), config(1)], store, progress=None, executor=pool)
        assert len(swept.finished) == 2 and files(store.local) == ["0.json", "1.json"] and len(store.runs()) == 2
        assert any("no file locks" in str(one.message) for one in caught) == (flock is no_locks)
        with pytest.raises(FileExistsError):
            dals.lab.store.write_new(store.path(config(0)), "another")
        shutil.rmtree(store.local)


class Lossy(Executor):
    "Does the work and loses the answer."
    def submit(self, work, *arguments):
        work(*arguments)
        future: Future = Future()
        future.set_exception(ConnectionError("the line is dead\nin two lines"))
        return future


def test_a_broken_executor_ends_in_a_sentence_and_never_costs_a_record(store, log):
    lines: list[str] = []
    swept = sweep([config(0), config(1)], store, progress=lines.append, executor=Lossy())
    assert [key.seed for key in swept.finished] == [0, 1] and not swept.failed and len(store.runs()) == 2
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    swept = sweep([config(0), config(2)], store, progress=lines.append, executor=closed)
    [(key, text)] = swept.failed.items()
    assert key.seed == 2 and "its worker, or all of them, were lost (RuntimeError: cannot schedule new futures after shutdown" in text
    assert any(line.startswith("[1/1] synthetic AdamW, seed 2: FAILED, RuntimeError: its worker") for line in lines)
    assert store.unfinished() == ({}, {}) and files(store.local) == ["0.json", "1.json"] # it has not begun, so it has not failed
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool: # not ours, so it is not built anew
        swept = sweep([config(3, variant="kills"), config(4)], store, progress=None, run=run_or_die, executor=pool)
    assert len(swept.failed) == 2 and all("BrokenProcessPool" in text for text in swept.failed.values())
    [(key, reason)] = store.unfinished()[1].items()
    assert (key.seed, key.variant) == (3, "kills") and reason.startswith("RuntimeError: its worker, or all of them, were lost")
    assert len(sweep([config(2), config(4)], store, jobs=1, progress=None).finished) == 2 # a new sweep buries the dead claim, too
    assert files(store.local) == ["0.json", "1.json", "2.json", "3-kills.failed", "4.json"]


def test_a_full_disk_fails_its_run_alone(store):
    configs = [config(0), config(1, variant="full"), config(2, variant="full for good"), config(3)]
    lines: list[str] = []
    swept = sweep(configs, store, jobs=1, progress=lines.append, run=run_until_full)
    assert [key.seed for key in swept.finished] == [0, 3] and [key.seed for key in swept.failed] == [1, 2]
    said = [line for line in lines if "FAILED" in line]
    assert all("StoreError: could not write" in line and "nothing of it was left behind (No space left on device)" in line
               for line in said) and len(said) == 2
    assert files(store.local) == ["0.json", "1-full.failed", "1-full.json.kept", "3.json"] # for the other one there was no room at all
    assert "the result is kept as 1-full.json.kept" in said[0] and "could not be kept beside it and follows" in said[1]
    assert '"variant": "full for good"' in lines[-1] # so it is printed
    kept = dals.lab.store.from_text(store.path(configs[1]).with_name("1-full.json.kept").read_text(encoding="utf-8"))
    assert len(sweep(configs, store, progress=None, run=run_one).finished) == 2
    assert store.get(*configs[1].key).history == kept.history
    assert files(store.local) == ["0.json", "1-full.json", "1-full.json.kept", "2-full for good.json", "3.json"]


def test_a_disk_that_is_full_from_the_start_is_said_before_anything_is_computed(store, log, monkeypatch):
    monkeypatch.setattr(os, "write", refusing(10**6))
    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreError, match="could not write .probe-.*No space left on device"):
        sweep([config(0), config(1)], store, progress=None, run=run, executor=pool)
    assert not starts(log) and files(store.local) == []


def test_a_loss_that_is_no_number_is_recorded_as_diverged(store):
    lines: list[str] = []
    sweep([config(strategy="Fixed SGD", overrides={"lr": 1e30})], store, jobs=1, progress=lines.append)
    [record] = store.runs()
    assert record.diverged and record.history == [] and record.best_accuracy is None
    assert lines[0].startswith("[1/1] synthetic Fixed SGD, seed 42: diverged") and files(store.local) == ["42.json"]


def test_ctrl_c_cancels_what_an_executor_has_not_begun(store, log, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; from concurrent.futures import ThreadPoolExecutor\n"
                      "from test_sweep import config, run; from dals.lab.store import Store\nfrom dals.lab.sweep import sweep\n"
                      "with ThreadPoolExecutor(1) as pool:\n"
                      "    sweep([config(seed) for seed in range(40)], Store(sys.argv[1], sys.argv[2]), run=run, executor=pool)",
                      encoding="utf-8")
    process = beside(script, store)
    until(lambda: len(starts(log)) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "stopped: " in out and err.strip().splitlines()[-1] == "KeyboardInterrupt"
    begun = [seed for seed, _ in starts(log)]
    assert len(begun) < 6 and files(store.local) == [f"{seed}.json" for seed in begun] # what was at work has ended and is stored


def test_a_terminal_has_one_bar_and_a_pipe_has_lines_alone(tmp_path):
    (tmp_path / "settings.ini").touch()
    words = [sys.executable, "-m", "dals.cli", "train", "--task", "synthetic", "--strategy", "AdamW", "--profile", "smoke"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0)) # lines, columns
    process = subprocess.Popen([*words, "--seeds", "0-5"], stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError: # the other end is closed
        pass
    assert process.wait() == 0
    text = shown.decode()
    assert " of 6 runs, " in text and "left" in text and "\r" in text and "[6/6] synthetic AdamW" in text
    assert text.count("of 6 runs to do") == 1
    piped = subprocess.run([*words, "--seeds", "6-7"], capture_output=True, text=True, cwd=tmp_path)
    assert piped.returncode == 0 and "\r" not in piped.stdout + piped.stderr and piped.stdout.count("\n") == 3
