"""AdaBound: the released trajectories, and what a torch optimizer must survive."""

import copy
import io
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dals.optim.adaptive import AdaBound, bounds

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


def weights(values=(1.0, -2.0, 3.0), dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def walk(optimizer, params, steps, start=0):
    rng = torch.Generator().manual_seed(start)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def test_follows_the_released_trajectory():
    problem, run = GOLDEN["problem"], GOLDEN["runs"]["AdaBound"]
    params = {name: weights(problem["params0"][name]) for name in problem["order"]}
    optimizer = AdaBound(params.values(), **run["hyper"])
    for step, grads in enumerate(problem["grads"], start=1):
        for name, p in params.items():
            p.grad = torch.tensor(grads[name], dtype=torch.float64)
        optimizer.step()
        for name, expected in run["params"].get(str(step), {}).items():
            torch.testing.assert_close(params[name].detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert step == 25


@settings(deadline=None, max_examples=60)
@given(
    grads=st.lists(st.floats(-1e3, 1e3).filter(lambda g: abs(g) > 1e-6), min_size=1, max_size=8),
    factors=st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    final_lr=st.floats(1e-3, 1), gamma=st.floats(1e-3, 1),
)
def test_every_step_stays_between_the_scaled_bounds(grads, factors, final_lr, gamma):
    p = weights([0.0])
    optimizer = AdaBound([p], lr=0.1, final_lr=final_lr, gamma=gamma)
    for t, (grad, factor) in enumerate(zip(grads, factors, strict=False), start=1):
        before, p.grad = p.item(), torch.tensor([grad], dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        optimizer.step()
        mean = optimizer.state[p]["mean"].item()
        low, high = bounds(t, final_lr * factor, gamma)
        moved, slack = abs(p.item() - before), 1e-9 * (1 + abs(before) + abs(p.item()))  # rounding
        assert low * abs(mean) - slack <= moved <= high * abs(mean) + slack


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_cut_run_goes_on_bit_by_bit_under_a_scheduler(cut):
    def make():
        params = [weights(), weights([0.5, 0.25])]
        optimizer = AdaBound([dict(params=params[:1]), dict(params=params[1:], lr=0.3, gamma=0.7, final_lr=0.02)], lr=0.05, gamma=0.2)
        return params, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    def run(steps, params, optimizer, scheduler, first=0):
        for k in range(first, steps):
            walk(optimizer, params, 1, start=k)
            scheduler.step()
        return [p.detach().clone() for p in params]

    uncut = run(12, *make())
    params, optimizer, scheduler = make()
    run(cut, params, optimizer, scheduler)
    file = io.BytesIO()
    torch.save({"weights": params, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params, optimizer, scheduler = make()
    with torch.no_grad():
        for p, value in zip(params, saved["weights"], strict=True):
            p.copy_(value)
    scheduler.load_state_dict(saved["scheduler"])
    optimizer.load_state_dict(saved["optimizer"])
    for a, b in zip(run(12, params, optimizer, scheduler, first=cut), uncut, strict=True):
        assert torch.equal(a, b)


def test_base_rate_is_the_rate_it_was_built_with():
    first, second = weights(), weights()
    optimizer = AdaBound([first], lr=0.02)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)  # overwrites lr and initial_lr
    optimizer.add_param_group(dict(params=[second], lr=0.3))
    assert [g["base_lr"] for g in optimizer.param_groups] == [0.02, 0.3]
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["base_lr"]
    optimizer.load_state_dict(state)
    assert [g["base_lr"] for g in optimizer.param_groups] == [0.02, 0.3]


@pytest.mark.parametrize("lr", [0.0, 0.05])
def test_rate_zero_allocates_and_moves_nothing(lr):
    p = weights()
    optimizer = AdaBound([p], lr=lr)
    optimizer.param_groups[0]["lr"] = 0.0
    assert torch.equal(walk(optimizer, [p], 3)[0], weights().detach())
    assert set(optimizer.state[p]) == {"step", "mean", "square"}
    optimizer.param_groups[0]["lr"] = 0.05  # and from there on it trains
    assert not torch.equal(walk(optimizer, [p], 1)[0], weights().detach())
    assert optimizer.param_groups[0]["base_lr"] == 0.05


def test_tensor_rate_and_float_rate_walk_alike():
    a, b = weights(), weights()
    assert torch.equal(walk(AdaBound([a], lr=torch.tensor(0.5)), [a], 5)[0], walk(AdaBound([b], lr=0.5), [b], 5)[0])


def test_low_precision_weights_stay_what_they_are():
    p = weights(dtype=torch.bfloat16)
    optimizer = AdaBound([p], lr=0.1)
    assert walk(optimizer, [p], 3)[0].dtype == torch.bfloat16 and p.isfinite().all()
    assert optimizer.state[p]["mean"].dtype == torch.bfloat16


def test_copies_and_pickles_go_on_alike():
    p = weights()
    optimizer = AdaBound([p], lr=0.1, gamma=0.5)
    walk(optimizer, [p], 4)
    twins = [copy.deepcopy((p, optimizer)), pickle.loads(pickle.dumps((p, optimizer)))]
    expected = walk(optimizer, [p], 4, start=9)[0]
    for twin_p, twin in twins:
        assert torch.equal(walk(twin, [twin_p], 4, start=9)[0], expected)


def test_closure_runs_with_gradients_and_its_value_comes_back():
    p, seen = weights(), []
    optimizer = AdaBound([p], lr=0.1)
    hook = optimizer.register_step_post_hook(lambda *args: seen.append("hook"))
    with torch.no_grad():
        assert torch.is_tensor(optimizer.step(lambda: seen.append(torch.is_grad_enabled()) or torch.ones(1)))
    assert seen == [True, "hook"]
    hook.remove()
    assert optimizer.step(lambda: None) is None and optimizer.step(lambda: 1) == 1 and optimizer.step() is None
    assert torch.equal(p.detach(), weights().detach()) and not optimizer.state  # nothing had a gradient


def test_complex_parameters_and_bad_rates_are_refused():
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="AdaBound does not support complex: train torch.view_as_real"):
        AdaBound([p])
    with pytest.raises(ValueError, match="lr must be at least 0, not nan"):
        AdaBound([p], lr=math.nan)
