"The loop: against a plain torch script, repeated, interrupted, and with numbers that stop being finite."
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dals
from dals.recipes.strategies import STRATEGIES
from dals.lab.tasks import Budget, Data, Split, Task, available, get_task
from dals.lab.training import Run, accuracy, commit, faster, find_device, fit

STAND_IN = "trec6+minilm-l6"


def plain_script(released: bool, seed: int) -> list[tuple[float, float]]:
    "What somebody would write who has never seen this package, all of it drawn from the global generator"
    torch.manual_seed(42)
    if released:
        x1, test = torch.randn(10000, 20), torch.randn(2000, 20)
        torch.manual_seed(43)
        x2 = torch.randn(10000, 20) * 0.5
        y1, y2, test_y = x1[:, :5].sum(1) > 0, x2[:, 0] * x2[:, 1] + x2[:, 2] * x2[:, 3] > 0, (test[:, :5].sum(1) > 0).long()
        x, y, batch, widths = torch.cat([x1, x2]), torch.cat([y1, y2]).long(), 128, (20, 256, 256, 256)
    else:
        x = torch.randn(8000, 64)
        y = (3 * x[:, :10]).argmax(1)
        x = x + 0.1 * torch.randn(8000, 64)
        x, y, test, test_y, batch, widths = x[:6400], y[:6400], x[6400:], y[6400:], 64, (64, 128, 128, 128)
    if seed != 42:
        torch.manual_seed(seed)
    a, b, c, d = widths
    model = nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d), nn.ReLU(), nn.Linear(d, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    loader, history = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True), []
    for _ in range(2):
        total, order = 0.0, None if released else torch.randperm(len(x))
        for xs, ys in loader if released else ((x[i], y[i]) for i in order.split(batch)):
            loss = F.cross_entropy(model(xs), ys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(xs)
        with torch.no_grad():
            history.append((total / len(x), 100 * (model(test).argmax(1) == test_y).float().mean().item()))
    return history


@pytest.mark.parametrize("name, seed", [("synthetic", 42), ("synthetic", 7), ("synthetic-released", 42), ("synthetic-released", 7)])
def test_the_streams_are_those_of_a_plain_script(name, seed):
    task = get_task(name)
    short = replace(task, profiles={"paper": replace(task.budget("paper"), epochs=2)})
    run = fit(short, "Fixed SGD", seed=seed)
    with torch.random.fork_rng(devices=[]):
        expected = plain_script(name == "synthetic-released", seed)
    for row, (loss, score) in zip(run.history, expected, strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-5) and row["test_accuracy"] == pytest.approx(score, abs=0.051)


def test_seed_42_meets_the_published_code():
    run = fit("synthetic", "Fixed SGD") # where both protocols agree: best 85.88, final 85.06
    assert run.best_accuracy == pytest.approx(85.88, abs=0.5) and run.final_accuracy == pytest.approx(85.06, abs=1.0)
    assert run.best_accuracy == max(row["test_accuracy"] for row in run.history) and len(run.history) == 80
    for threshold, epoch in run.epochs_to.items():
        reached = [row["epoch"] for row in run.history if row["test_accuracy"] >= float(threshold)]
        assert epoch == (reached[0] if reached else None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_through_the_loop_and_repeats_to_the_bit(name):
    first, again = (fit("synthetic-released", name, profile="smoke", seed=3) for _ in range(2))
    assert first.history == again.history and len(first.history) == 2 and not first.diverged
    assert Run.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False))) == first
    assert first.config["hyperparameters"] and first.config["steps_per_epoch"] == 4


@pytest.mark.parametrize("name", ["Fixed SGD", "AdamW", "DALS"])
def test_another_number_of_threads_agrees_in_the_first_epoch(name):
    threads, losses = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            run = fit("synthetic-released", name, profile="smoke")
            assert run.threads == n
            losses.append(run.history[0]["train_loss"])
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_callers_random_state_survives_even_an_error():
    class Stop(Exception):
        pass

    def stop(row):
        raise Stop
    state = torch.get_rng_state()
    with pytest.raises(Stop):
        fit("synthetic", "DALS", profile="smoke", on_epoch=stop)
    assert torch.equal(torch.get_rng_state(), state)


def small(logits, epochs: int = 4) -> Task:
    generator = torch.Generator().manual_seed(0)
    split = Split((torch.randn(12, 3, generator=generator),), torch.randint(2, (12,), generator=generator))

    def model():
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    return Task("small", "scratch", 2, lambda budget: Data(split, split, "drawn", "0"), model, {"paper": Budget(epochs, 5, 12, 12)},
                chance=50.0, logits=logits)


def test_dropout_is_on_in_training_and_off_in_the_evaluation():
    modes = []

    def logits(model, x):
        modes.append((model.training, len(x)))
        return model(x)
    fit(small(logits, epochs=2), "AdamW")
    assert modes == 2 * [(True, 5), (True, 5), (True, 2), (False, 12)]


@pytest.mark.parametrize("call", [9, 12])  # a training batch of the third epoch, the evaluation of the third epoch
def test_what_was_measured_before_a_run_diverged_is_kept(call):
    calls = []

    def logits(model, x):
        calls.append(len(x))
        return model(x) * (math.nan if len(calls) == call else 1.0)
    run = fit(small(logits), "Fixed SGD")
    assert run.diverged and [row["epoch"] for row in run.history] == [1, 2]
    assert run.best_accuracy == max(row["test_accuracy"] for row in run.history) and run.final_accuracy == run.history[-1]["test_accuracy"]
    assert Run.from_dict(run.to_dict()) == run


def test_overrides_replace_settings_and_nothing_else():
    run = fit("synthetic", "Lion", profile="smoke", overrides={"lr": 2e-4})
    assert run.config["hyperparameters"] == {"lr": 2e-4, "betas": [0.9, 0.99], "weight_decay": 0.01}
    assert run.config["overrides"] == {"lr": 2e-4}
    with pytest.raises(TypeError, match="regime"):
        fit("synthetic", "Lion", profile="smoke", overrides={"regime": "finetune"})


def test_a_multiplier_scales_the_rate_of_its_family_alone():
    task = replace(get_task("synthetic"), multipliers={"SGD": 3.0, "Adam": 1.0})
    for name, factor in (("Fixed SGD", 3.0), ("AdamW", 1.0)):
        run, usual = fit(task, name, profile="smoke"), fit("synthetic", name, profile="smoke")
        assert run.config["multiplier"] == factor
        assert run.config["hyperparameters"]["lr"] == pytest.approx(factor * usual.config["hyperparameters"]["lr"])
        assert (run.history == usual.history) == (factor == 1.0)


def test_the_commit_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True).stdout.strip()
    package = tmp_path / "dals"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(dals, "__file__", str(package / "__init__.py"))
    assert commit() == "unknown"
    git("init", "-q")
    assert commit() == "unknown" # nothing committed yet
    git("add", "dals")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}", encoding="utf-8") # a new file is no change
    assert commit() == head
    (package / "__init__.py").write_text("changed = True", encoding="utf-8")
    assert commit() == head + "+dirty"
    inner = tmp_path / "venv" / "dals" # installed inside somebody's checkout
    inner.mkdir(parents=True)
    monkeypatch.setattr(dals, "__file__", str(inner / "__init__.py"))
    assert commit() == "unknown"


def test_questions_on_the_stand_in():
    if sentence := available(STAND_IN):
        pytest.skip(sentence)
    one, two = (fit(STAND_IN, "AdamW", profile="smoke") for _ in range(2))
    assert one.history == two.history and one.backbone == "all-MiniLM-L6-v2" and "transformers" in one.versions
    assert one.data["copy"] and one.data["train"] == 64 and 0 < one.history[0]["train_loss"] < 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_run_agrees_with_the_cpu_at_first():
    state = torch.cuda.get_rng_state()
    here, there = fit("synthetic", "DALS", profile="smoke"), fit("synthetic", "DALS", profile="smoke", device="cuda")
    assert there.device.startswith("cuda (") and there.history[0]["train_loss"] == pytest.approx(here.history[0]["train_loss"], rel=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_accuracy_leaves_the_model_training():
    task = get_task("synthetic")
    model, split = task.model(), task.load("smoke").test
    assert accuracy(task, model, split) == accuracy(task, model, split, batch_size=7) and model.training


def test_the_compiled_path_agrees_with_the_plain_one():
    plain, fast = (fit("synthetic-released", "DALS", profile="smoke", fast=fast) for fast in (False, True))
    assert (plain.compiled, plain.precision, fast.compiled, fast.precision) == (False, "float32", True, "float32")
    for one, other in zip(plain.history, fast.history, strict=True):
        assert abs(one["train_loss"] - other["train_loss"]) < 1e-4 * one["train_loss"]
        assert abs(one["test_accuracy"] - other["test_accuracy"]) < 0.5
    assert (fast.config, fast.data) == (plain.config, plain.data)


def test_bfloat16_agrees_with_float32_as_far_as_its_eight_bits_go(monkeypatch):
    if sentence := available(STAND_IN):
        pytest.skip(sentence)
    monkeypatch.setattr("dals.lab.training.has_bfloat16", lambda place: True) # where the processor has not, in software
    plain, fast = (fit("trec6+minilm-l6", "AdamW", profile="smoke", fast=fast) for fast in (False, True))
    assert (plain.compiled, plain.precision, fast.compiled, fast.precision) == (False, "float32", False, "bfloat16")
    assert 0 < abs(plain.history[0]["train_loss"] - fast.history[0]["train_loss"]) < 2**-7 * plain.history[0]["train_loss"]
    monkeypatch.setattr("dals.lab.training.has_bfloat16", lambda place: False)
    slower = fit("trec6+minilm-l6", "AdamW", profile="smoke", fast=True)
    assert (slower.compiled, slower.precision, slower.history) == (False, "float32", plain.history)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the operating system does not tell the peak of memory")
def test_the_peak_of_memory_is_that_of_the_run():
    "In a process of its own: what other tests have left to the allocator would count"
    program = """
import torch
from dataclasses import replace
from dals import fit
from dals.lab.tasks import get_task
task = get_task("synthetic")
fit(task, "AdamW", profile="smoke")
ballast = torch.zeros(100 << 18)
first = fit(task, "AdamW", profile="smoke").peak_memory
del ballast
def hungry(x): return x + torch.zeros(200 << 18)[:1] # 200 MiB for a moment
second, third = (fit(one, "AdamW", profile="smoke").peak_memory for one in (replace(task, augment=hungry), task))
print(first - 100, second, third)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, hungry, again = map(int, done.stdout.split())
    assert 150 < hungry - usual < 250
    assert abs(again - usual) < 60 # the peak of an earlier run is forgotten


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("strategy", ["AdamW", "DALS", "SAM"])
def test_replayed_graphs_agree_with_plain_passes(strategy):
    plain, fast = (fit("synthetic-released", strategy, profile="smoke", device="cuda", fast=fast) for fast in (False, True))
    assert (plain.compiled, fast.compiled, fast.precision) == (False, True, "float32")
    for one, other in zip(plain.history, fast.history, strict=True):
        assert abs(one["train_loss"] - other["train_loss"]) < 1e-4 * one["train_loss"]
        assert abs(one["test_accuracy"] - other["test_accuracy"]) < 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_replayed_graphs_of_texts_agree_up_to_dropout():
    "Each replay draws fresh dropout; without dropout loss and gradients are those of the plain passes, as far as bfloat16 goes."
    if sentence := available(STAND_IN):
        pytest.skip(sentence)
    task = get_task(STAND_IN)
    torch.manual_seed(0)
    model, split = task.model().cuda().train(), task.load("smoke").train.to(torch.device("cuda"))
    quick = faster(task, model, texts=True)
    (inputs, labels), *_ = split.batches(32)
    first = quick.logits(model, *inputs).clone() # a graph answers in the same place every time
    assert not torch.equal(first, quick.logits(model, *inputs))
    quick = faster(task, model, texts=True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain, replayed = ([], [])
    for logits, found in ((task.logits, plain), (quick.logits, replayed), (quick.logits, replayed)):
        model.zero_grad()
        loss = F.cross_entropy(logits(model, *inputs), labels)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()))
    assert replayed[0] == pytest.approx(plain[0], rel=2**-6) and replayed[1] == pytest.approx(replayed[0], rel=1e-3)


@pytest.mark.parametrize("name", [[], {}, 3.5, 99, -1, "", "cpu\n", "cpu:" + "9" * 20, "meta", "xla", "lazy", "cuda:"])
def test_a_device_that_is_none_is_one_sentence(name):
    with pytest.raises(ValueError, match="There is no device .* on this machine. Known: cpu"):
        find_device(name)
