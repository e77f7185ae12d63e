"DALS: released trajectories where text and code agree, loop against lists, reloads, and the ways of losing a loss."

import copy
import io
import json
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

import dals.optim.blocks
import dals.optim.dals
import dals.optim.update
from dals.optim.joint import Grokfast, Lookahead
from dals.optim.dals import DALS, DALSAcc, DALSFast

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
ORDER = GOLDEN["problem"]["order"]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def one_behind(warmup, total):
    "The released schedule: counted from zero, a whole number of warmup steps."
    rise = int(warmup * total)

    def schedule(progress):
        t = round(progress * total) - 1
        return t / rise if t < rise else (1 + math.cos(math.pi * (t - rise) / (total - rise))) / 2

    return schedule


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("key", ["DALS_wd", "DALS_nowd", "DALS_flat"])
def test_released_trajectory_up_to_step_index_and_eps(key, foreach):
    "The released DALS and ours differ in where the count starts and in eps: with both undone, every parameter meets to 1e-10."
    run = GOLDEN["runs"][key]
    hyper, total = run["hyper"], run["hyper"]["T_max"]
    ps = [Parameter(double(GOLDEN["problem"]["params0"][name])) for name in ORDER]
    groups = [ps] if key == "DALS_flat" else [ps[0:2], ps[2:4], ps[4:6]]
    depths = [0.5] if key == "DALS_flat" else [0.0, 0.5, 1.0]
    optimizer = DALS([{"params": group, "depth": depth} for group, depth in zip(groups, depths, strict=True)], hyper["lr"],
                     total_steps=total, schedule=one_behind(hyper["warmup_frac"], total), foreach=foreach,
                     thresholds=(hyper["phase1_thresh"], hyper["phase2_thresh"]), momentum=hyper["momentum"],
                     weight_decay=hyper["weight_decay"], alpha=hyper["grokfast_alpha"], trust=hyper["trust_coef"], eps=0.0)
    for t, (gradients, loss) in enumerate(zip(GOLDEN["problem"]["grads"], GOLDEN["problem"]["losses"], strict=True)):
        for p, name in zip(ps, ORDER, strict=True):
            p.grad = double(gradients[name])
        optimizer.observe(loss)
        optimizer.step()
        assert optimizer.phase == run["phase"][t]
        assert optimizer.loss_ema == pytest.approx(run["loss_ema"][t], rel=1e-12)
        assert optimizer.get_last_lr() == pytest.approx(run["lr"][t], rel=1e-12, abs=1e-15)
        if str(t + 1) in run["params"]:
            for p, name in zip(ps, ORDER, strict=True):
                torch.testing.assert_close(p.detach(), double(run["params"][str(t + 1)][name]), rtol=1e-10, atol=1e-12)


MAKERS = {
    "DALS": lambda groups, **options: DALS(groups, 0.3, total_steps=30, **options),
    "DALSFast": lambda groups, **options: DALSFast(groups, 0.3, total_steps=30, **options),
    "DALSAcc": lambda groups, **options: DALSAcc(groups, 0.3, restart_steps=7, **options),
    "free": lambda groups, **options: DALS(groups, 0.3, total_steps=None, schedule=None, thresholds=None, **options),
}


class Trial:
    "Tensors of random shapes, sizes and dtypes, in groups with options of their own, with gradients that come and go."

    def __init__(self, seed, dtypes=(torch.float64,), steps=30):
        self.rng = torch.Generator().manual_seed(seed)
        self.steps = steps
        shapes = [(), (1,), (5,), (4, 3), (2, 3, 2), (0,), (7, 1)]
        self.start = [self.draw(*shapes[self.pick(len(shapes))]) * 10.0 ** (self.pick(5) - 3) for _ in range(6)]
        self.start = [(x * (self.pick(6) > 0)).to(dtypes[self.pick(len(dtypes))]) for x in self.start]
        size = [10.0 ** (self.pick(5) - 3) for _ in self.start]
        self.gradients = [[self.gradient(s, x) for s, x in zip(size, self.start, strict=True)] for _ in range(steps)]
        self.losses = [0.99**t * (1 + 0.2 * self.draw().item()) for t in range(steps)]
        self.options = [{"depth": 0.0}, {"depth": 0.7, "momentum": 0.5, "weight_decay": 0.1, "alpha": 0.8},
                        {"lr": 0.1, "trust": 0.1, "trust_clip": (0.5, 2.0), "filter_in_exploration": False}]

    def draw(self, *shape):
        return torch.randn(shape, generator=self.rng, dtype=torch.float64)

    def gradient(self, size, x):
        return None if self.pick(5) == 0 else (size * self.draw(*x.shape)).to(x.dtype)

    def pick(self, n):
        return int(torch.randint(n, (), generator=self.rng))

    def params(self):
        return [Parameter(x.clone()) for x in self.start]

    def groups(self, ps):
        return [{"params": ps[i:i + 2], **options} for i, options in zip((0, 2, 4), self.options, strict=True)]

    def go(self, optimizer, ps, first=0, last=None):
        for gradients, loss in zip(self.gradients[first:last], self.losses[first:last], strict=True):
            for p, g in zip(ps, gradients, strict=True):
                p.grad = None if g is None else g.clone()
            optimizer.observe(loss)
            optimizer.step()
        return optimizer


def same(a, b, **tolerance):
    "Assert that two optimizers over equal parameters have the same parameters, buffers and run state."
    for ours, theirs in zip(a.param_groups, b.param_groups, strict=True):
        assert [ours[k] for k in ("step", "loss_ema", "phase")] == [theirs[k] for k in ("step", "loss_ema", "phase")]
        for p, q in zip(ours["params"], theirs["params"], strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), **tolerance)
            assert (p in a.state) == (q in b.state)
            for key in a.state[p] if p in a.state else ():
                torch.testing.assert_close(a.state[p][key], b.state[q][key], **tolerance)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), maker=st.sampled_from(sorted(MAKERS)))
def test_loop_and_lists_agree(seed, maker):
    trial = Trial(seed)
    (ps, a), (qs, b) = ((ps, MAKERS[maker](trial.groups(ps), foreach=fe)) for ps, fe in ((trial.params(), False), (trial.params(), True)))
    same(trial.go(a, ps), trial.go(b, qs), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_loop_and_lists_agree_in_mixed_precision(maker):
    trial = Trial(3, dtypes=(torch.float32, torch.float64))
    assert {x.dtype for x in trial.start} == {torch.float32, torch.float64}
    (ps, a), (qs, b) = ((ps, MAKERS[maker](trial.groups(ps), foreach=fe)) for ps, fe in ((trial.params(), False), (trial.params(), True)))
    same(trial.go(a, ps), trial.go(b, qs), rtol=1e-3, atol=1e-5)


def test_dtypes_may_alternate_within_a_group():
    def go(foreach):
        ps = [Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32, torch.float64)]
        optimizer = DALS(ps, 0.3, total_steps=None, schedule=None, thresholds=None, foreach=foreach)
        for p in ps:
            p.grad = torch.arange(3).to(p.dtype)
        optimizer.step()
        return torch.stack([p.detach().double() for p in ps])
    torch.testing.assert_close(go(None), go(False), rtol=1e-6, atol=1e-7)
    assert torch.equal(go(None)[0], go(None)[2]) and torch.equal(go(None)[1], go(None)[3])


def test_the_cut_into_batches_changes_nothing(monkeypatch):
    trial = Trial(5)
    ps, qs = trial.params(), trial.params()
    whole = trial.go(MAKERS["DALS"](trial.groups(ps), foreach=True), ps)
    cut, seen = dals.optim.blocks.cache_sized, []
    monkeypatch.setattr(dals.optim.blocks, "CACHE", 2)
    monkeypatch.setattr(dals.optim.blocks, "PIECE", 2)
    monkeypatch.setattr(dals.optim.dals, "PIECE", 2)
    monkeypatch.setattr(dals.optim.blocks, "cache_sized", lambda *asked: seen.append(cut(*asked)) or seen[-1])
    same(whole, trial.go(MAKERS["DALS"](trial.groups(qs), foreach=True), qs), rtol=1e-12, atol=1e-14)
    assert any(b - a == 2 and a for batches in seen for batch in batches for _, a, b in batch) # tensors were cut


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), stop=st.integers(0, 30), maker=st.sampled_from(sorted(MAKERS)), foreach=st.booleans())
def test_saving_and_loading_anywhere_changes_nothing(seed, stop, maker, foreach):
    trial = Trial(seed)
    ps, qs = trial.params(), trial.params()
    whole = trial.go(MAKERS[maker](trial.groups(ps), foreach=foreach), ps)
    first = trial.go(MAKERS[maker](trial.groups(qs), foreach=foreach), qs, last=stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = MAKERS[maker](trial.groups(qs), foreach=foreach)
    second.load_state_dict(torch.load(file, weights_only=True))
    same(whole, trial.go(second, qs, first=stop), rtol=0, atol=0)


@pytest.mark.parametrize("maker", sorted(MAKERS))
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_clone_goes_on_like_the_original(maker, clone):
    trial = Trial(8)
    ps = trial.params()
    optimizer = trial.go(MAKERS[maker](trial.groups(ps)), ps, last=12)
    optimizer.observe(0.5)
    twin = clone(optimizer)
    qs = [p for group in twin.param_groups for p in group["params"]]
    assert twin._losses == [0.5] and all(p is not q for p, q in zip(ps, qs, strict=True))
    same(trial.go(optimizer, ps, first=12), trial.go(twin, qs, first=12), rtol=0, atol=0)


def test_state_holds_tensors_and_plain_values_only():
    trial = Trial(1)
    ps = trial.params()
    state = trial.go(MAKERS["DALS"](trial.groups(ps)), ps).state_dict()
    plain = (int, float, bool, str, type(None), tuple, list)
    assert all(isinstance(x, torch.Tensor) for buffers in state["state"].values() for x in buffers.values())
    assert all(isinstance(x, plain) for group in state["param_groups"] for x in group.values())


def test_a_missing_loss_stops_the_step_before_anything_moves():
    trial = Trial(2)
    ps = trial.params()
    optimizer = trial.go(MAKERS["DALS"](trial.groups(ps)), ps, last=3)
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in ps]
    for closure in (None, lambda: None):
        with pytest.raises(RuntimeError, match=r"step\(closure\).*observe\(loss\)"):
            optimizer.step(closure)
    assert str(optimizer.state_dict()) == str(before[0])
    assert all(torch.equal(p, q) for p, q in zip(ps, before[1], strict=True))


def test_a_failing_closure_loses_nothing():
    p = Parameter(double([3.0, 4.0]))
    p.grad = double([1.0, 1.0])
    optimizer = DALS([p], total_steps=10)

    def broken():
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(broken)
    assert optimizer.param_groups[0]["step"] == 0 and torch.equal(p.detach(), double([3.0, 4.0]))
    optimizer.step(lambda: 1.0)
    assert optimizer.loss_ema == 1.0


def test_sparse_gradients_are_refused_before_the_phase_moves():
    rows = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = DALS(rows.parameters(), total_steps=3)
    rows(torch.tensor([1])).sum().backward()
    optimizer.observe(1.0)
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    assert optimizer.loss_ema is None and optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_a_loss_that_is_not_finite_leaves_the_phase(loss):
    p = Parameter(double([1.0]))
    p.grad = double([0.1])
    optimizer = DALS([p], total_steps=9)
    optimizer.step(lambda: loss)
    assert optimizer.loss_ema is None and optimizer.phase == 0
    for good in (1.0, 0.9):
        optimizer.step(lambda good=good: good)
    before = optimizer.loss_ema, optimizer.phase
    optimizer.observe(1.0)
    optimizer.step(lambda: loss)  # one bad micro-batch spoils the mean, and the mean says nothing
    assert (optimizer.loss_ema, optimizer.phase) == before == (0.995, 1)


def test_zero_rates_allocate_state_without_a_loss_and_without_counting():
    "What torch.distributed.checkpoint does to an optimizer before it loads into it."
    p = Parameter(double([1.0, 2.0]))
    optimizer = DALS([p], total_steps=9)
    optimizer.param_groups[0]["lr"], p.grad = 0.0, torch.zeros_like(p)
    optimizer.step(closure=None)
    assert set(optimizer.state[p]) == {"filtered", "momentum_buffer"} and not any(x.any() for x in optimizer.state[p].values())
    assert optimizer.param_groups[0]["step"] == 0 and torch.equal(p.detach(), double([1.0, 2.0]))


def test_torch_checkpoint_helpers_carry_the_run_state():
    dcp = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = DALS(model.parameters(), total_steps=9)
    for loss in (2.0, 1.9):
        model.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step(lambda loss=loss: loss)
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(model, optimizer))
    model.zero_grad()
    other = DALS(model.parameters(), total_steps=9)
    dcp.set_optimizer_state_dict(model, other, saved)
    same(optimizer, other, rtol=0, atol=0)
    assert other.phase == 1 and other.param_groups[0]["step"] == 2 and other.param_groups[0]["lr"] == 0.03


def test_the_end_of_the_schedule_is_announced_once():
    p = Parameter(double([1.0]))
    p.grad = double([0.1])
    optimizer = DALS([p], total_steps=2)
    for _ in range(2):
        optimizer.step(lambda: 1.0)
    with pytest.warns(UserWarning, match="total_steps=2"):
        optimizer.step(lambda: 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(lambda: 1.0)


def test_restarts_have_no_end_and_need_no_total():
    p = Parameter(double([1.0]))
    p.grad = double([0.1])
    optimizer = DALSAcc([p], restart_steps=2, total_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            optimizer.step(lambda: 1.0)
    assert optimizer.get_last_lr() == pytest.approx([0.03 * (1 + math.cos(math.pi * 2 / 8)) / 2])


def test_tensor_subclasses_take_the_loop():
    class Tagged(Parameter):
        pass

    calls = []
    p = Tagged(double([3.0, 4.0]))
    p.grad = double([0.1, 0.1])
    optimizer = DALS([p], total_steps=3)
    original = dals.optim.dals.foreach_step
    dals.optim.dals.foreach_step = lambda *args, **kwargs: calls.append(args)
    try:
        optimizer.step(lambda: 1.0)
    finally:
        dals.optim.dals.foreach_step = original
    assert not calls and not torch.equal(p.detach(), double([3.0, 4.0]))


EVENTS = {
    "nothing": lambda optimizer, ps, pick: None,
    "rate": lambda optimizer, ps, pick: optimizer.param_groups[pick(3)].update(lr=(0.1, 0.3)[pick(2)]),
    "tensor rate": lambda optimizer, ps, pick: optimizer.param_groups[0].update(lr=double(0.1 + 0.1 * pick(3))),
    "options": lambda optimizer, ps, pick: optimizer.param_groups[pick(3)].update(
        [("momentum", 0.5), ("weight_decay", 0.0), ("alpha", 0.4), ("trust", 0.1), ("eps", 1e-3), ("foreach", None), ("foreach", False),
         ("depth", 0.2), ("filter_in_exploration", False), ("trust_clip", [0.5, 2.0])][pick(10):][:1]),
    "alike": lambda optimizer, ps, pick: [group.update(optimizer.defaults) for group in optimizer.param_groups],
    "clip in place": lambda optimizer, ps, pick: [group["trust_clip"].__setitem__(0, 0.1 * pick(4)) for group in optimizer.param_groups
                                                  if isinstance(group["trust_clip"], list)],
    "state loaded": lambda optimizer, ps, pick: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "state replaced": lambda optimizer, ps, pick: [buffers.update({name: 2 * x for name, x in buffers.items()})
                                                   for buffers in optimizer.state.values()],
    "parameter moved": lambda optimizer, ps, pick: setattr(ps[0], "data", ps[0].data.clone()),
    "parameter replaced": lambda optimizer, ps, pick: optimizer.param_groups[2]["params"].reverse(),
    "group": lambda optimizer, ps, pick: ps.append(Parameter(double([1.0, 2.0]))) or optimizer.add_param_group(
        {"params": [ps[-1]], "depth": 0.1 * pick(9)}),
    "rate in place": lambda optimizer, ps, pick: [group["lr"].mul_(0.9) for group in optimizer.param_groups
                                                  if isinstance(group["lr"], torch.Tensor)],
    "frozen or thawed": lambda optimizer, ps, pick: [p.requires_grad_(not p.requires_grad) for p in ps[pick(6):][:1]],
    "precision": lambda optimizer, ps, pick: [setattr(ps[1], "grad", None), setattr(ps[1], "data", ps[1].data.float()),
                                              optimizer.state[ps[1]].update({k: x.float() for k, x in optimizer.state[ps[1]].items()})],
}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), maker=st.sampled_from(sorted(MAKERS)), events=st.lists(st.sampled_from(sorted(EVENTS)), max_size=20))
@example(seed=3, maker="DALS", events=["nothing", "tensor rate", "nothing", "rate in place", "nothing"])
@example(seed=3, maker="DALS", events=["nothing", "nothing", "precision", "nothing", "precision", "nothing"])
def test_batches_kept_from_step_to_step_are_those_that_would_be_sorted_anew(seed, maker, events):
    "Whatever happens between two steps: options, state, groups, precision, what has a gradient."
    trial, ends = Trial(seed), []
    for anew in (False, True):
        ps, trial.rng = trial.params(), torch.Generator().manual_seed(seed)
        optimizer = MAKERS[maker](trial.groups(ps))
        for event, gradients, loss in zip(events, trial.gradients, trial.losses, strict=False):
            EVENTS[event](optimizer, ps, trial.pick)
            for p, g in zip(ps, [*gradients, *[double([0.1, 0.2])] * (len(ps) - 6)], strict=True):
                p.grad = (torch.ones_like(p) if g is None else g.to(p.dtype)) if p.requires_grad else None
            if anew:
                optimizer._batches = None
            optimizer.observe(loss)
            optimizer.step()
        ends.append(optimizer)
    same(*ends, rtol=0, atol=0)


def test_batches_are_sorted_once_while_nothing_changes(monkeypatch):
    "And again after each change of one thing: options by name, a list or a tensor in place, a weight frozen, its dtype, a new group."
    calls, together = [], dals.optim.dals.group_tensors
    monkeypatch.setattr(dals.optim.dals, "group_tensors", lambda *args: calls.append(args) or together(*args))
    ps = [Parameter(double([3.0, 4.0])), Parameter(double([1.0]))]
    optimizer = DALS([{"params": ps[:1], "depth": 0.0}, {"params": ps[1:], "depth": 1.0}], total_steps=None, schedule=None, thresholds=None,
                     trust_clip=[0.2, 5.0])
    low, high = optimizer.param_groups
    rate = double(0.1)

    def step():
        for p in [p for group in optimizer.param_groups for p in group["params"]]:
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()

    def single():
        ps[1].grad, ps[1].data = None, ps[1].data.float()
        optimizer.state[ps[1]].update({name: x.float() for name, x in optimizer.state[ps[1]].items()})

    names = ("lr", "momentum", "weight_decay", "alpha", "trust", "eps", "depth")
    changes = [*[lambda name=name: high.update({name: 0.3}) for name in names],
               lambda: high.update(foreach=True),
               lambda: low["trust_clip"].append(low["trust_clip"].pop() + 1), lambda: high.update(lr=rate), lambda: rate.mul_(2),
               lambda: ps[0].requires_grad_(False), lambda: ps[0].requires_grad_(True), single,
               lambda: optimizer.add_param_group({"params": [Parameter(double([2.0]))]})]
    for number, change in enumerate([lambda: None, *changes], 1):
        change()
        step()
        step()
        assert len(calls) == number


def test_batches_by_hand():
    kind, other = ("class", "dtype", "device", 7), ("class", "double", "device", 8)
    optimizer = DALS([{"params": [Parameter(double([1.0]))], "depth": depth, "lr": lr, "filter_in_exploration": depth < 1}
                      for depth, lr in ((0.0, 0.1), (0.5, 0.2), (1.0, 0.1))], total_steps=10, weight_decay=0.0)
    low, middle, top = (optimizer._options(group, (0, 1)) for group in optimizer.param_groups)
    assert low == (0.1, None, 0.9, 0.0, 0.02, (0.2, 5.0), 1e-8, (pytest.approx(0.3), 0.6), (0.3, 0.3), False)
    assert (middle.lr, middle.shares, top.shares) == (0.2, (0.5, 0.5), (1.0, pytest.approx(0.7)))
    found = dals.optim.dals.group_tensors([(low, 2), (middle, 1), (top, 2)], [kind, other, kind, kind, kind])
    assert found == [("class", "device", low, [0, 3, 4], [low.shares, top.shares, top.shares], 7), # equal but for their shares
                     ("class", "device", low, [1], [low.shares], 8), ("class", "device", middle, [2], [middle.shares], 7)]


@pytest.mark.parametrize("size", [4, 2**20])
def test_a_backward_pass_through_weights_that_moved_is_an_error(size):
    p = Parameter(torch.ones(size))
    optimizer = DALS([p], total_steps=None, schedule=None, thresholds=None)
    loss = (p**2).sum()
    p.grad = torch.ones(size)
    optimizer.step()
    assert not any(x.is_inference() for x in optimizer.state[p].values()) and not p.is_inference()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("foreach", [True, False])
def test_gradients_that_have_a_graph_leave_none_in_the_state(foreach):
    p = Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    optimizer = DALS([p], total_steps=None, schedule=None, thresholds=None, foreach=foreach)
    for _ in range(2):
        optimizer.zero_grad()
        (p**3).sum().backward(create_graph=True)
        assert p.grad.requires_grad
        optimizer.step()
    assert p.is_leaf and not any(x.requires_grad for x in optimizer.state[p].values())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_subclass_may_remember_and_listen_as_it_likes(foreach):
    class Own(DALS):
        now = 0.5

        def memory(self, group, phase):
            return self.now

        def observe(self, loss):
            self.now = float(loss)
            super().observe(loss)

    p = Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Own([p], 0.0, total_steps=None, schedule=None, thresholds=None, foreach=foreach)

    def closure(memory):
        optimizer.zero_grad()
        loss = (p * 0).sum() + memory
        (2 * p).sum().backward()
        return loss

    for memory, filtered in ((0.5, 1.0), (0.75, 1.25), (0.9, 1.325)): # f = memory * f + (1 - memory) * 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(lambda: closure(memory)) # noqa: B023
        assert optimizer.state[p]["filtered"].item() == pytest.approx(filtered, abs=1e-7)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, 0, -1, 2.5, "10", True])
@pytest.mark.parametrize("make", [lambda p, n: DALS([p], total_steps=n), lambda p, n: DALS([p], total_steps=n, schedule=None),
                                  lambda p, n: DALSFast([p], total_steps=n), lambda p, n: DALSAcc([p], restart_steps=n),
                                  lambda p, n: DALSAcc([p], restart_steps=9, total_steps=n)])
def test_a_number_that_counts_no_updates_is_refused(make, wrong):
    with pytest.raises(ValueError, match="(total_steps|restart_steps), the updates in .* whole number"):
        make(Parameter(torch.ones(2)), wrong)


@pytest.mark.parametrize("option, value", [("total_steps", 20), ("warmup", 0.1), ("schedule", None), ("restart_steps", 3),
                                           ("restart_mult", 3)])
def test_an_option_of_the_run_belongs_to_no_group_unless_it_is_the_runs_own(option, value):
    p, q = (Parameter(torch.ones(2)) for _ in range(2))
    optimizer = DALSAcc([p], restart_steps=9, total_steps=40, warmup=0.2)
    own = 9 if option == "restart_steps" else 2 if option == "restart_mult" else getattr(optimizer, option)
    if option != "schedule": # None is its own
        with pytest.raises(ValueError, match=f"{option} belongs to the whole run"):
            optimizer.add_param_group({"params": [q], option: value})
    optimizer.add_param_group({"params": [q], option: own}) # as ZeroRedundancyOptimizer does
    assert option not in optimizer.param_groups[1]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["gradient", "weight", "filtered", "momentum_buffer"])
@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_loop_and_lists_agree_on_what_is_not_finite(maker, where, value):
    ends = []
    for foreach in (False, True):
        ps = [Parameter(double([[3.0, 4.0], [1.0, 2.0]])), Parameter(double([1.0, 2.0, 3.0]))]
        groups = [{"params": ps[:1], "depth": 0.0}, {"params": ps[1:], "depth": 1.0, "weight_decay": 0.0}]
        optimizer = MAKERS[maker](groups, foreach=foreach)
        for step in range(5):
            for p in ps:
                p.grad = torch.full_like(p, 0.1 * (step - 1))
            if step == 2:
                for p in ps:
                    place = {"gradient": p.grad, "weight": p.detach()}.get(where)
                    (optimizer.state[p][where] if place is None else place).view(-1)[1] = value
            optimizer.observe(1.0 - 0.01 * step)
            optimizer.step()
        ends.append([x for p in ps for x in (p.detach(), *optimizer.state[p].values())])
        assert not all(x.isfinite().all() for x in ends[-1])
    for loop, lists in zip(*ends, strict=True):
        torch.testing.assert_close(loop, lists, rtol=1e-12, atol=1e-14, equal_nan=True)


WRAPS = {"DALS": lambda base: base, "Lookahead": lambda base: Lookahead(base, 3), "Grokfast": Grokfast,
         "nested": lambda base: Lookahead(Grokfast(base))}


@pytest.mark.parametrize("order", ["zero, backward, observe, step", "backward, observe, step, zero", "observe, zero, backward, step"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_step_that_a_scaler_skips_takes_its_loss_along(wrap, order):
    "Whatever the order of the loop: the average is that of the steps that were taken, micro-batches included"
    p = Parameter(double([3.0, 4.0]))
    base = DALS([p], total_steps=20)
    optimizer, scaler = WRAPS[wrap](base), torch.amp.GradScaler("cpu", init_scale=8.0)
    assert hasattr(optimizer, "observe") and not hasattr(Lookahead(torch.optim.SGD([p], 0.1)), "observe")
    kept = []
    for step, loss in enumerate([2.0, 1.9, 7.0, 8.0, 1.7, 9.0, 1.6]):
        bad = loss > 2

        def do(word, loss=loss, bad=bad):
            if word == "zero":
                optimizer.zero_grad()
            elif word == "backward":
                scaler.scale((p * (math.inf if bad else 1.0)).sum()).backward()
            elif word == "observe":
                optimizer.observe(loss)
                if order.startswith("zero"): # two micro-batches
                    optimizer.observe(loss)
            else:
                scaler.step(optimizer)
                scaler.update()

        for word in order.split(", "):
            do(word)
        kept += [] if bad else [loss]
        average, phase = None, 0
        for x in kept:
            average, phase = dals.optim.update.detect(x, average, phase)
        assert base.loss_ema == pytest.approx(average) and base.phase == phase and base.param_groups[0]["step"] == len(kept), step
    assert scaler.get_scale() == 1.0


def test_a_step_without_gradient_and_loss_is_none_also_without_phases():
    for thresholds in (None, (0.01, 0.002)):
        p = Parameter(double([3.0, 4.0]))
        optimizer = DALS([p], total_steps=9, thresholds=thresholds)
        assert optimizer.step() is None and optimizer.step(lambda: None) is None
        assert optimizer.param_groups[0]["step"] == 0 and not optimizer.state
        optimizer.step(lambda: 1.0) # a loss alone counts: another process may have the gradient
        assert optimizer.param_groups[0]["step"] == 1


@pytest.mark.parametrize("cls, says", [(DALS, "schedule=None switches its own off"),
                                       (DALSAcc, "DALS with schedule=None has none of its own")])
def test_a_second_schedule_is_announced_once(cls, says):
    def optimizer(**options):
        p = Parameter(double([3.0, 4.0]))
        p.grad = double([0.1, 0.1])
        return cls([p], **({"restart_steps": 4} if cls is DALSAcc else {"total_steps": 9}), **options)

    first = optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(first, 2, 0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            first.step(lambda: 1.0)
            assert len(caught) == (step >= 2)
            scheduler.step()
            if step == 3:
                first = pickle.loads(pickle.dumps(first)) # a twin does not say it again
                scheduler = torch.optim.lr_scheduler.LambdaLR(first, lambda k: 1.0)
    assert "moved lr from 0.03 to 0.015" in str(caught[0].message) and says in str(caught[0].message)
    second = optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(second, lambda k: 1.0) # such as `build` makes for DALS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            second.step(lambda: 1.0)
            scheduler.step()


def test_a_rate_that_is_a_tensor_is_no_part_of_a_captured_graph():
    with pytest.raises(ValueError, match="lr as a Tensor is not supported for capturable=True"):
        DALS([Parameter(torch.ones(2))], torch.tensor(0.1), total_steps=9, capturable=True)
