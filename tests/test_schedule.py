"""What every schedule promises, whatever its numbers: properties, restarts on exact borders, and the adapter's life with torch."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dals.lesson.fixed import tst_param
from dals import DALS
from dals.optim.joint import stlr
from dals.optim.schedule import constant, cosine, floored, is_count, per_step, restarts, step_decay, warmup

calm = settings(deadline=None, max_examples=50)  # a busy machine is not a failure
progresses = st.floats(0, 1, exclude_min=True)
fractions = st.floats(0, 0.99)
bases = st.one_of(
    st.just(constant),
    st.just(cosine),
    st.builds(step_decay, st.floats(0.01, 2), st.floats(0, 1)),
    st.builds(restarts, st.floats(0.01, 3), st.floats(1, 4)),
)
schedules = st.recursive(
    bases, lambda inner: st.one_of(st.builds(warmup, inner, fractions), st.builds(floored, inner, st.floats(0, 1))), max_leaves=4
)


@calm
@given(schedules, progresses)
def test_every_composition_stays_between_zero_and_one(schedule, progress):
    assert 0 <= schedule(progress) <= 1 + 1e-12


@calm
@given(schedules, progresses)
def test_a_schedule_has_no_memory(schedule, progress):
    first = schedule(progress)
    schedule(1.0), schedule(0.5)
    assert schedule(progress) == first


@calm
@given(progresses, progresses)
def test_cosine_never_rises(a, b):
    assume(a < b)
    assert cosine(a) >= cosine(b)


@calm
@given(st.floats(0.01, 2), st.floats(0.01, 0.99), progresses, progresses)
def test_stairs_never_rise(every, factor, a, b):
    assume(a < b)
    assert step_decay(every, factor)(a) >= step_decay(every, factor)(b)


@calm
@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 6))
def test_a_restart_falls_on_its_update_in_spite_of_rounding(first, mult, cycles):
    borders = [first * sum(mult**j for j in range(i + 1)) for i in range(cycles)]
    total = borders[-1] + first
    schedule = restarts(first / total, mult)
    for border, length in zip(borders, [first * mult**i for i in range(cycles)], strict=True):
        assert schedule(border / total) == pytest.approx(1, abs=1e-12)
        assert schedule((border - 1) / total) == pytest.approx(cosine((length - 1) / length), abs=1e-9)


@calm
@given(st.integers(1, 200), st.integers(1, 20))
def test_a_stair_begins_on_its_update_in_spite_of_rounding(every, stairs):
    total = every * stairs
    schedule = step_decay(every / total, 0.5)
    assert [schedule(k / total) for k in range(1, total + 1)] == [0.5 ** (k // every) for k in range(1, total + 1)]


@calm
@given(schedules, fractions, progresses)
def test_warmup_is_a_line_and_then_the_schedule(schedule, fraction, progress):
    warmed = warmup(schedule, fraction)
    if progress < fraction:
        assert warmed(progress) == progress / fraction
    else:
        assert warmed(progress) == schedule((progress - fraction) / (1 - fraction))
    assert warmed(1.0) == schedule(1.0)


@calm
@given(schedules, st.floats(0, 1), progresses)
def test_a_floor_keeps_order_and_ends(schedule, ratio, progress):
    lifted = floored(schedule, ratio)(progress)
    assert lifted >= ratio - 1e-12
    assert lifted >= schedule(progress) - 1e-12
    assert floored(constant, ratio)(progress) == pytest.approx(1)
    assert floored(schedule, 0)(progress) == schedule(progress)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: step_decay(0),
        lambda: step_decay(-0.1),
        lambda: step_decay(math.nan),
        lambda: restarts(0),
        lambda: restarts(math.nan),
        lambda: restarts(0.1, mult=0.9),
        lambda: warmup(cosine, -0.1),
        lambda: warmup(cosine, 1.0),
        lambda: warmup(cosine, math.nan),
        lambda: floored(cosine, -0.1),
        lambda: floored(cosine, 1.1),
        lambda: step_decay(math.inf),
        lambda: restarts(math.inf),
        lambda: restarts(1e-12),  # shorter than what counts as reached: it would never end
        lambda: restarts(0.1, mult=math.inf),
        *(lambda wrong=wrong: per_step(torch.optim.SGD([tst_param(0.0, 0.0)], lr=1), cosine, wrong)
          for wrong in (0, -3, 2.5, math.inf, math.nan, None, "10", True)),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_when_it_is_made(wrong):
    with pytest.raises(ValueError, match="got"):
        wrong()


def run(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def pair(*lrs, total=20):
    optimizer = torch.optim.SGD([{"params": [tst_param(1.0, 1.0)], "lr": lr} for lr in lrs], momentum=0.9)
    return optimizer, per_step(optimizer, warmup(cosine, 0.25), total)


@calm
@given(st.integers(1, 50))
def test_update_k_of_total_has_progress_k_over_total(total):
    seen = []

    def spy(progress):
        seen.append(progress)
        return 1.0

    optimizer = torch.optim.SGD([tst_param(0.0, 0.0)], lr=1.0)
    run(optimizer, per_step(optimizer, spy, total), total + 2)
    assert seen[:total] == [k / total for k in range(1, total + 1)]
    assert set(seen[total:]) == {1.0}


def test_a_run_that_was_saved_goes_on_with_the_same_rates():
    whole = run(*pair(0.1, 1.0), 20)
    optimizer, scheduler = pair(0.1, 1.0)
    first = run(optimizer, scheduler, 7)
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), scheduler.state_dict())))
    optimizer, scheduler = pair(0.1, 1.0)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert first + run(optimizer, scheduler, 13) == whole


def test_base_rates_keep_their_proportions():
    for low, high in run(*pair(0.01, 0.5), 25):
        assert high == pytest.approx(50 * low)


def test_two_schedulers_share_a_schedule_without_sharing_anything_else():
    schedule = restarts(0.2)
    optimizers = [torch.optim.SGD([tst_param(1.0, 1.0)], lr=1.0) for _ in range(2)]
    first, second = (per_step(optimizer, schedule, 10) for optimizer in optimizers)
    ahead = run(optimizers[0], first, 10)
    assert run(optimizers[1], second, 10) == ahead
    assert copy.deepcopy(schedule)(0.3) == schedule(0.3)


@calm
@given(st.one_of(schedules, st.builds(stlr, st.floats(0.01, 0.99), st.floats(1, 100))), st.lists(progresses, min_size=1, max_size=5))
def test_a_schedule_goes_through_a_file_alone_and_in_an_optimizer(schedule, places):
    twin = pickle.loads(pickle.dumps(schedule))
    assert [twin(p) for p in places] == [schedule(p) for p in places]
    optimizer = DALS([tst_param(1.0, 1.0)], total_steps=7, schedule=schedule)
    twin = pickle.loads(pickle.dumps(optimizer))
    assert [twin.factor(t) for t in range(1, 8)] == [optimizer.factor(t) for t in range(1, 8)]


@given(st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3)))
def test_a_count_is_a_whole_number_of_at_least_one(x):
    whole = type(x) is int or type(x) is float and x.is_integer()
    assert is_count(x) == bool(whole and x >= 1)


@pytest.mark.parametrize("join", [0, 3, 19])
@pytest.mark.parametrize("tensor", [False, True])
def test_a_group_that_joins_follows_the_schedule_from_there(join, tensor):
    optimizer, scheduler = pair(0.1)
    whole, seen = run(*pair(0.1, 1.0), 20), []
    optimizer.register_step_post_hook(lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups]))
    for step in range(20):
        if step == join:
            optimizer.add_param_group({"params": [tst_param(1.0, 1.0)], "lr": torch.tensor(1.0, dtype=torch.float64) if tensor else 1.0})
        optimizer.step()
        scheduler.step()
    assert seen == [rates[:1] for rates in whole[:join]] + whole[join:]


def test_a_run_with_a_late_group_resumes():
    def late():
        optimizer, scheduler = pair(0.1)
        first = run(optimizer, scheduler, 5)
        optimizer.add_param_group({"params": [tst_param(1.0, 1.0)], "lr": 1.0})
        return optimizer, scheduler, first

    optimizer, scheduler, _ = late()
    run(optimizer, scheduler, 3)
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), scheduler.state_dict())))
    rest = run(optimizer, scheduler, 12)
    for again, plan in (pair(0.1), pair(0.1, 1.0)):  # the group joins anew, or is there from the start
        if len(again.param_groups) == 1:
            again.add_param_group({"params": [tst_param(1.0, 1.0)], "lr": 1.0})
        again.load_state_dict(saved[0])
        plan.load_state_dict(saved[1])
        assert run(again, plan, 12) == rest


def test_groups_with_schedules_of_their_own_are_joined_by_one_with_the_last():
    optimizer = torch.optim.SGD([{"params": [tst_param(1.0, 1.0)], "lr": 1.0} for _ in range(2)])
    scheduler = per_step(optimizer, [constant, cosine], 4)
    optimizer.add_param_group({"params": [tst_param(1.0, 1.0)], "lr": 2.0})
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, cosine(0.5), 2 * cosine(0.5)]
