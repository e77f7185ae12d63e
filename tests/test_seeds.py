"Seeds at once: each is the run that `fit` gives, nothing leaks from one to another, also where a step couples all weights of a run."
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim import SGD

from dals.optim.layers import layer_groups
from dals.recipes.released import DEVIATIONS
from dals.optim.joint import SAM, Lookahead
from dals.optim.schedule import constant
from dals.lab.records import Config
from dals.lab.store import claimed, Store
from dals.lab.sweep import missing, sweep
from dals.lab.seeds import accuracy_seeds, coupling, fit_seeds, fit_stack, members_of, seeds_logits, stacked, stacks
from dals.recipes.strategies import PAPER, STRATEGIES
from dals.lab.pictures import convnet
from dals.lab.tasks import available, Budget, Data, get_task, mlp, Split, Task
from dals.lab.training import accuracy, fit, Run

COUPLED = ("LARS", "SAM", "SAM+Discriminative", "DALS", "DALS-Fast", "DALS-Acc")


def agree(at_once, alone):
    "The same run up to rounding; of 512 test examples two may lie on the border"
    assert [row["lr"] for row in at_once.history] == [row["lr"] for row in alone.history]
    assert (at_once.config, at_once.data, at_once.seed, at_once.task) == (alone.config, alone.data, alone.seed, alone.task)
    assert at_once.history[0]["train_loss"] == pytest.approx(alone.history[0]["train_loss"], rel=1e-5)
    assert abs(at_once.final_accuracy - alone.final_accuracy) <= 100 * 2 / alone.data["test"]


@pytest.mark.parametrize("task, protocol", [("synthetic", "paper"), ("synthetic-released", "released")])
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_seed_is_the_run_of_fit(name, task, protocol):
    for run in fit_seeds(task, name, [42, 0, 7], protocol=protocol, profile="smoke"):
        agree(run, fit(task, name, seed=run.seed, protocol=protocol, profile="smoke"))
        assert Run.from_dict(run.to_dict()) == run and not run.diverged and run.together == 3


@pytest.mark.parametrize("name", ["Fixed SGD", "Lookahead+AdamW", "SAM+Discriminative", "DALS"])
def test_each_run_has_its_own_settings(name):
    asked = [{"lr": 0.001}, {"lr": 0.001}, {"lr": 0.02}, {}]
    for run, own in zip(fit_seeds("synthetic", name, [0, 1, 1, 0], profile="smoke", overrides=asked), asked, strict=True):
        agree(run, fit("synthetic", name, seed=run.seed, profile="smoke", overrides=own))
        assert run.config["overrides"] == own


def test_settings_and_seeds_must_be_as_many():
    with pytest.raises(ValueError, match="2 seeds and overrides for 1 runs: give one set for all, or one for each"):
        fit_seeds("synthetic", "AdamW", [0, 1], profile="smoke", overrides=[{"lr": 0.1}])


def test_an_optimizer_that_asks_for_more_gradients_than_the_stack_can_give_is_refused(monkeypatch):
    def wrapped(model, plan, **settings):
        return Lookahead(SAM(SGD(model.parameters(), 0.1))), constant
    monkeypatch.setitem(PAPER.compositions, "SAM", wrapped)
    with pytest.raises(RuntimeError, match="asks for more gradients than are computed for a stack"):
        fit_seeds("synthetic", "SAM", [0, 1], profile="smoke")


@pytest.mark.parametrize("name, together", [("Fixed SGD", [(0, 1), (2,)]), ("LARS", [(0,), (1,), (2,)])])
def test_neighbours_with_equal_settings_share_an_optimizer_where_they_may(name, together):
    def build(part, **own):
        return STRATEGIES[name].build(part, total_steps=4, steps_per_epoch=2, regime="scratch", **own)
    members = members_of(stacked([mlp(4, 3, 2) for _ in range(3)]), [{}, {}, {"lr": 0.1}], build)
    assert [tuple(each.runs) for each in members] == together


def walk(name, start, grads, protocol, overrides):
    "Where one tensor goes under given gradients"
    layer = nn.Linear(3, 4, bias=False)
    layer.weight.data = start.clone()
    optimizer, scheduler = STRATEGIES[name].build(
        nn.Sequential(layer), total_steps=len(grads), steps_per_epoch=2, regime="scratch", protocol=protocol, **overrides)
    for grad in grads:
        def closure(grad=grad):
            layer.weight.grad = grad * (1 + layer.weight.detach())
            return grad.square().mean()
        optimizer.step(closure)
        scheduler.step()
    return layer.weight.detach(), coupling(optimizer)


VARIED = [(name, "paper", {}) for name in STRATEGIES] + [(name, "released", {}) for name in STRATEGIES]
VARIED += [(name, "released", deviation.undo) for deviation in DEVIATIONS.values() for name in deviation.strategies]


@pytest.mark.parametrize("name, protocol, overrides", VARIED)
def test_the_list_of_elementwise_steps_is_right(name, protocol, overrides):
    generator = torch.Generator().manual_seed(0)
    starts, grads = torch.randn(3, 4, 3, generator=generator), torch.randn(7, 3, 4, 3, generator=generator)
    together, coupled = walk(name, starts, grads, protocol, overrides)
    apart = torch.stack([walk(name, starts[i], grads[:, i], protocol, overrides)[0] for i in range(3)])
    distance = float((together - apart).norm() / (apart - starts).norm())
    assert distance > 1e-3 if coupled else distance < 1e-6
    assert bool(coupled) == (name in COUPLED)


def small(model, lengths=None, **changes) -> Task:
    "Twelve images of 2 x 3 and three classes, in batches of 5, 5 and 2"
    generator = torch.Generator().manual_seed(0)
    split = Split((torch.randn(12, 1, 2, 3, generator=generator),), torch.randint(3, (12,), generator=generator), lengths)
    return Task("small", "scratch", 3, lambda budget: Data(split, split, "drawn", "0"), model, {"paper": Budget(3, 5, 12, 12)},
                chance=50.0, **changes)


def convolution(*more):
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), *more, nn.Linear(8, 3))


def noisy(x):
    return x + torch.randn(x.shape)


@pytest.mark.parametrize("augment", [None, noisy])
@pytest.mark.parametrize("name", ["Fixed SGD", "AdamW", "STLR+Discriminative", "SAM", "DALS"])
def test_any_other_model_and_an_incomplete_last_batch(name, augment):
    task = small(convolution, augment=augment)
    for run in fit_seeds(task, name, [3, 1], overrides={"lr": 0.02}):
        alone = fit(task, name, seed=run.seed, overrides={"lr": 0.02})
        assert [row["train_loss"] for row in run.history] == pytest.approx([row["train_loss"] for row in alone.history], rel=1e-4)
        assert run.config == alone.config and run.config["steps_per_epoch"] == 3


class Idle(nn.Sequential):
    "With a layer that the loss does not reach"
    def __init__(self):
        super().__init__(*convolution())
        self.idle = nn.Linear(3, 3)

    def forward(self, x):
        return nn.Sequential(*list(self)[:-1])(x)


@pytest.mark.parametrize("name", ["Fixed SGD", "SAM", "DALS"])
def test_a_parameter_that_the_loss_does_not_reach_stays_where_it_is(name):
    task = small(Idle)
    for run in fit_seeds(task, name, [3, 1]):
        alone = fit(task, name, seed=run.seed)
        assert [row["train_loss"] for row in run.history] == pytest.approx([row["train_loss"] for row in alone.history], rel=1e-4)


@pytest.mark.parametrize("task, reason", [
    (small(lambda: convolution(nn.Dropout(0.1))), "draws random numbers in training"),
    (small(lambda: convolution(nn.BatchNorm1d(8))), "keeps statistics"),
    (small(lambda: convolution(nn.LayerNorm(8))), "layers of vectors alone"),
    (small(convolution, lengths=torch.full((12,), 2)), "differ in length"),
])
def test_tasks_that_cannot_be_stacked_say_why(task, reason):
    with pytest.raises(ValueError, match=f"{reason}.*train them in turn with fit"):
        fit_seeds(task, "AdamW", [0, 1])


def test_pictures_shifted_and_mirrored_by_each_seed_itself():
    if sentence := available("cifar10+jpeg"):
        pytest.skip(sentence)
    task = get_task("cifar10+jpeg")
    task = replace(task, profiles={"smoke": replace(task.budget("smoke"), train_examples=256, test_examples=64)})
    for run in fit_seeds(task, "AdamW", [0, 1], profile="smoke"):
        agree(run, fit(task, "AdamW", seed=run.seed, profile="smoke"))


def test_dropout_that_drops_nothing_is_no_obstacle():
    assert len(fit_seeds(small(lambda: convolution(nn.Dropout(0.0))), "AdamW", [0, 1])) == 2


def test_a_seed_that_diverges_leaves_the_others_alone():
    draws = []

    def model():
        draws.append(mlp(64, 8, 10))
        if len(draws) == 2:
            nn.init.constant_(draws[-1][0].weight, math.nan)
        return draws[-1]
    task = replace(get_task("synthetic"), model=model)
    first, broken, last = fit_seeds(task, "AdamW", [0, 1, 2], profile="smoke")
    assert broken.diverged and broken.history == [] and broken.best_accuracy is None
    fine = replace(task, model=lambda: mlp(64, 8, 10))
    for run in (first, last):
        assert not run.diverged
        agree(run, fit(fine, "AdamW", seed=run.seed, profile="smoke"))


def test_a_run_that_diverges_later_keeps_what_was_measured():
    runs = fit_seeds("synthetic", "Fixed SGD", [0, 1], profile="smoke", overrides={"lr": 1e12})
    assert all(run.diverged and len(run.history) < 2 for run in runs)
    broken, fine = fit_seeds("synthetic", "DALS", [0, 0], profile="smoke", overrides=[{"lr": 1e30}, {}])
    assert broken.diverged and len(broken.history) < 2
    agree(fine, fit("synthetic", "DALS", seed=0, profile="smoke"))


def test_a_seed_does_not_depend_on_its_company():
    (alone,), (_, with_others, _) = (fit_seeds("synthetic", "Lion", seeds, profile="smoke") for seeds in ([5], [1, 5, 9]))
    agree(with_others, alone)


def test_the_callers_random_state_survives_even_an_error():
    state = torch.get_rng_state()
    fit_seeds("synthetic", "AdamW", [0, 1], profile="smoke")
    with pytest.raises(ValueError):
        fit_seeds("synthetic", "DALS", [0, 1], profile="smoke", overrides={"lr": -1.0})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", [lambda: mlp(5, 4, 4, 3), convolution, convnet])
def test_layers_of_a_stack_are_the_layers_of_one(model):
    def names(model):
        of = {id(p): name for name, p in model.named_parameters()}
        return [[of[id(p)] for p in group["params"]] for group in layer_groups(model)]
    assert names(stacked([model(), model()])) == names(model())


def test_a_stack_answers_as_its_members_do():
    task, members = get_task("synthetic"), [mlp(64, 8, 10) for _ in range(3)]
    split, model = task.load("smoke").test, stacked(members)
    assert accuracy_seeds(task, model, split, 3).tolist() == pytest.approx([accuracy(task, each, split) for each in members], abs=0.2)
    x = torch.randn(3, 5, 64)
    by_vmap = seeds_logits(replace(task, logits=lambda model, x: model(x)), model, x)
    torch.testing.assert_close(seeds_logits(task, model, x), by_vmap, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_seeds_on_a_gpu_agree_with_the_cpu_at_first():
    here, there = (fit_seeds("synthetic", "AdamW", [0, 1], profile="smoke", device=device) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert other.device.startswith("cuda (")
        assert other.history[0]["train_loss"] == pytest.approx(one.history[0]["train_loss"], rel=1e-3)


def test_a_sweep_in_stacks_stores_every_run_as_fit_would_and_goes_on(tmp_path):
    store = Store(tmp_path / "published", tmp_path / "local")
    asked = [Config("synthetic", name, seed, profile="smoke", overrides=own, variant=variant)
             for name in ("Fixed SGD", "DALS") for own, variant in (({}, None), ({"lr": 0.002}, "slow")) for seed in (0, 1)]
    store.put(fit("synthetic", "DALS", seed=0, profile="smoke"))
    lines = []
    swept = sweep(asked, store, jobs=2, at_once=3, progress=lines.append)
    assert (len(swept.finished), len(swept.skipped), swept.failed) == (7, 1, {}) and missing(asked, store) == []
    assert sum(line.startswith("[") for line in lines) == 7
    for config in asked:
        run = store.get(*config.key)
        agree(run, fit("synthetic", run.strategy, seed=run.seed, profile="smoke", overrides=run.config["overrides"]))
        assert run.variant == config.variant and run.config["overrides"] == config.overrides
    assert sorted(run.together for run in store.runs(variant="*")) == [1, 1, 3, 3, 3, 3, 3, 3] # four and three, in stacks of three
    assert sweep(asked, store, at_once=3, progress=None).finished == []


def test_a_run_of_a_stack_that_cannot_be_stored_costs_none_of_the_others(tmp_path):
    store = Store(tmp_path / "published", tmp_path / "local")
    asked = [Config("synthetic", "Fixed SGD", seed, profile="smoke") for seed in range(4)]
    store.path(asked[0]).mkdir(parents=True) # cannot be read as a record, and is found out before anything is computed
    with ThreadPoolExecutor(1) as pool:
        def late(unit):
            other = fit("synthetic", "Fixed SGD", seed=2, profile="smoke", overrides={"lr": 0.5})
            store.put(other) # somebody was faster, with another rate
            return fit_stack(unit)
        with mock.patch("dals.lab.sweep.fit_stack", late), mock.patch("dals.lab.sweep.missing", lambda configs, *rest: list(configs)):
            swept = sweep(asked, store, at_once=4, progress=None, executor=pool)
    assert [key.seed for key in swept.finished] == [1, 3] and [key.seed for key in swept.failed] == [0, 2]
    assert "no regular file" in swept.failed[asked[0].key] and "with other settings" in swept.failed[asked[2].key]
    assert [run.together for run in store.runs()] == [3, 1, 3] # the stack held the three whose place was free
    assert [path.name for path in store.path(asked[0]).parent.glob("*.kept")] == ["2.json.kept"]
    assert store.path(asked[2]).with_suffix(".failed").exists()


def test_runs_of_a_stack_that_fails_are_run_each_by_itself(tmp_path):
    store = Store(tmp_path / "published", tmp_path / "local")
    asked = [Config("synthetic", "Fixed SGD", seed, profile="smoke") for seed in range(3)]

    def broken(unit):
        raise MemoryError
    with ThreadPoolExecutor(1) as pool, mock.patch("dals.lab.sweep.fit_stack", broken):
        swept = sweep(asked, store, at_once=3, progress=None, executor=pool)
    assert len(swept.finished) == 3 and [run.together for run in store.runs()] == [1, 1, 1]


def test_a_run_of_a_stack_that_somebody_else_has_claimed_is_left_to_them(tmp_path, monkeypatch):
    monkeypatch.setattr("dals.lab.sweep.PATIENCE", 0.3)
    store = Store(tmp_path / "published", tmp_path / "local")
    asked = [Config("synthetic", "Fixed SGD", seed, profile="smoke") for seed in range(3)]
    with ThreadPoolExecutor(1) as pool, claimed(store.claim(asked[1])):
        swept = sweep(asked, store, at_once=3, progress=None, executor=pool)
    assert [key.seed for key in swept.elsewhere] == [1] and [run.together for run in store.runs()] == [2, 2]


def test_a_stack_holds_only_what_can_be_trained_together():
    asked = [Config(task, name, seed, profile="smoke", overrides={"lr": lr}, variant=str(lr))
             for seed in (0, 1) for lr in (0.1, 0.2) for name in ("Lion", "SAM") for task in ("synthetic", "synthetic-released")]
    found = stacks(asked, 3)
    assert sorted(map(len, found)) == [1] * 4 + [3] * 4 and sum(found, []) != asked
    for stack in found:
        assert len({(config.task, config.strategy) for config in stack}) == 1
    assert sorted(config.key for config in sum(found, [])) == sorted(config.key for config in asked)
    assert [len(stack) for stack in stacks([Config("cifar10+jpeg", "Lion", seed) for seed in range(3)], 3)] == [1, 1, 1] # no small chain
