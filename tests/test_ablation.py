"The ablation: what the switches do to a step, by an optimizer of its own; designs whose effects are known; records as their names say."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dals.ablation import (ALL, CELLS, DETECTORS, EFFECTS, FACTORS, NOTHING, RATES, RIVAL, asked, averaging, best_rates, by_epoch,
                           cell_name, contrast, effect_by_seed, effects, kappa, phase_shares, plan_of, runs_of, train_part, trend,
                           without_progress)
from dals.results import Store, complete
from dals.results import settings as settings_of
from dals.strategies import STRATEGIES


def problem():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(48, 5, dtype=torch.float64)
    return model, x, (x[:, 0] * 2).round().long().clamp(0, 2)


def gradients(model, x, y, t):
    part = slice(12 * (t % 4), 12 * (t % 4) + 12)
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(x[part]), y[part])
    loss.backward()
    return loss


def by_hand(on, steps, lr=0.03, mu=0.9, decay=1e-4, warmup=0.05, alpha0=0.6, gamma=0.02):
    "DALS with switches, written again from the text of the paper, tensor by tensor"
    model, x, y = problem()
    ps = list(model.parameters())
    depths = [k // 2 / 2 for k in range(len(ps))]
    fs, ms = ([torch.zeros_like(p) for p in ps] for _ in range(2))
    ema, phase = None, 0
    for t in range(1, steps + 1):
        loss = gradients(model, x, y, t - 1).item()
        if ema is None:
            ema = loss
        else:
            drop, ema = 0.05 * (1 - loss / ema), ema + 0.05 * (loss - ema)
            phase = 0 if drop > 0.01 else 1 if drop > 0.002 else 2
        alpha = {0: 0.3, 1: 0.6, 2: 0.7}[phase] if "phases" in on else alpha0
        rise = warmup * steps
        s = (t / rise if t < rise else 0.5 * (1 + math.cos(math.pi * (t - rise) / (steps - rise)))) if "schedule" in on else 1.0
        for k, p in enumerate(ps):
            if "filter" in on:
                fs[k] = alpha * fs[k] + (1 - alpha) * p.grad
                share = 0.3 + 0.4 * (depths[k] if "depth" in on else 0.5)
                update = share * p.grad + (1 - share) * fs[k] + decay * p.detach()
            else:
                update = p.grad + decay * p.detach()
            ratio = min(max(gamma * p.detach().norm().item() / (update.norm().item() + 1e-8), 0.2), 5.0) if "trust_ratio" in on else 1.0
            ms[k] = mu * ms[k] + update
            p.data -= lr * s * ratio * ms[k]
    return torch.cat([p.detach().flatten() for p in ps])


def trained(steps, **overrides):
    model, x, y = problem()
    optimizer, scheduler = STRATEGIES["DALS"].build(model, total_steps=steps, steps_per_epoch=10, regime="scratch", protocol="ablation",
                                                    **overrides)
    for t in range(steps):
        optimizer.step(lambda t=t: gradients(model, x, y, t))
        scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_every_cell_is_the_text_with_the_parts_left_out(cell):
    assert torch.allclose(trained(40, **{f: f in cell for f in FACTORS}), by_hand(cell, 40), rtol=1e-6, atol=1e-9)


def test_thirty_two_settings_are_twenty_algorithms():
    every = [on for k in range(6) for on in itertools.combinations(FACTORS, k)]
    ends = {on: trained(40, **{f: f in on for f in FACTORS}).numpy().tobytes() for on in every}
    assert len(ends) == 32 and len(set(ends.values())) == len(CELLS) == 20
    assert set(CELLS) <= set(ends) and {ALL, RIVAL, NOTHING} <= set(CELLS)


@given(st.lists(st.floats(-10, 10), min_size=20, max_size=20))
@settings(max_examples=30, deadline=None)
def test_effects_are_the_coefficients_of_a_regression(values):
    "Least squares on the 32 settings, coded -1 and 1, with the factors that are crossed; within the filter on its 16 cells"
    table = {cell: {0: value} for cell, value in zip(CELLS, values, strict=True)}

    def alias(on):
        return tuple(f for f in on if "filter" in on or f not in ("depth", "phases"))
    settings_ = [on for k in range(6) for on in itertools.combinations(FACTORS, k)]
    for effect in EFFECTS:
        rows = [on for on in settings_ if "filter" in on or not {"depth", "phases"} & set(effect)]
        free = [f for f in FACTORS if len({f in on for on in rows}) == 2]
        terms = [term for k in range(len(free) + 1) for term in itertools.combinations(free, k)]
        design = np.array([[math.prod(1 if f in on else -1 for f in term) for term in terms] for on in rows], float)
        coefficients = np.linalg.lstsq(design, np.array([table[alias(on)][0] for on in rows]), rcond=None)[0]
        assert effect_by_seed(table, effect)[0] == pytest.approx(2 ** len(effect) * coefficients[terms.index(effect)], abs=1e-9)


def test_a_seed_that_one_cell_lacks_is_left_out_where_that_cell_counts():
    table = {cell: {0: 1.0, 1: 2.0} for cell in CELLS}
    del table[NOTHING][1]
    assert list(effect_by_seed(table, ("schedule",))) == [0] and list(effect_by_seed(table, ("phases",))) == [0, 1]
    assert contrast(("phases",)).keys() == {cell for cell in CELLS if "filter" in cell}
    assert [e.factors for e in effects(table)] == list(EFFECTS) and effects({}) == []


def test_effects_that_do_not_exist_are_found_about_as_often_as_chance_allows():
    draw = np.random.default_rng(0)
    found = [e.adjusted < 0.05 for _ in range(20) for e in effects({cell: dict(enumerate(draw.normal(size=8))) for cell in CELLS})]
    assert sum(found) <= 4


def test_names_and_overrides_of_all_cells_and_rates_are_distinct():
    configs = [config for lr in RATES for config in asked("synthetic", CELLS, [0], lr)]
    configs += [config for lr in RATES for name in DETECTORS for config in asked("synthetic", [ALL], [0], lr, name)]
    assert len({config["variant"] for config in configs}) == (20 + len(DETECTORS)) * len(RATES)
    assert len({str(settings_of(complete(config))) for config in configs}) == (20 + len(DETECTORS)) * len(RATES)


@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=60), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_the_phase_depends_on_the_scale_of_the_losses_in_no_detector(losses, scale):
    for make in (averaging, lambda: averaging(smoothing=0.98), lambda: by_epoch(4)):
        one, other = make(), make()
        differ = sum(one(loss) != other(scale * loss) for loss in losses)
        assert differ <= 2 # at a border rounding decides


def test_a_loss_that_is_not_finite_changes_no_phase():
    for make in (averaging, lambda: averaging(0.005), lambda: averaging(smoothing=0.98)):
        told, spared = make(), make()
        losses = [2.0, 1.0, 1.5, 1.2, 1.7]
        assert [told(x) for loss in losses for x in (loss, math.nan, math.inf)][::3] == [spared(loss) for loss in losses]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=300), st.sampled_from([1, 3, 101]))
@settings(max_examples=50, deadline=None)
def test_trend_is_the_mean_of_a_window_and_noise_keeps_what_is_left(losses, window):
    h = window // 2
    assert trend(losses, window) == pytest.approx([np.mean(losses[max(0, t - h):t + h + 1]) for t in range(len(losses))])
    ratios = [loss / mean for loss, mean in zip(losses, trend(losses), strict=True)]
    assert sorted(without_progress(losses, 50)[:50]) == sorted(ratios[:50]) and len(without_progress(losses)) == len(losses)
    phases = [int(x) % 3 for x in losses]
    assert sum(phase_shares([*phases, 0])[:3]) == pytest.approx(1) and kappa(phases, phases) == 1


def test_the_experiment_trains_chooses_and_reads(tmp_path, monkeypatch):
    "The smallest case: two cells at smoke size, all rates"
    monkeypatch.setattr("dals.ablation.CELLS", (RIVAL, NOTHING))
    store = Store(tmp_path / "published", tmp_path / "local")
    with pytest.raises(ValueError, match="train the part 'rates' first"):
        plan_of("best", store)
    def smoke(cells, lr):
        return asked("synthetic+validation", cells, (1000, 1001), lr, profile="smoke")
    configs = [config for lr in RATES for config in smoke((RIVAL, NOTHING), lr)]
    monkeypatch.setattr("dals.ablation.plan_of", lambda part, store: configs)
    assert train_part("rates", store, jobs=1, most=8) == 4 * len(RATES) - 8
    assert best_rates(store, profile="smoke") == {}
    assert train_part("rates", store, jobs=1) == 0
    best = best_rates(store, profile="smoke")
    assert set(best) == {RIVAL, NOTHING}
    for cell, chosen in best.items():
        scores = {lr: sum(run.final_accuracy or 0 for run in runs_of(store, smoke([cell], lr)).values()) for lr in RATES}
        assert scores[chosen] == max(scores.values()) and all(lr >= chosen for lr in RATES if scores[lr] == scores[chosen])


def test_stored_records_are_what_their_names_say():
    runs = Store(local="_none").runs(protocol="ablation", variant="*")
    known = {config["variant"]: config["overrides"] for lr in RATES for config in asked("", CELLS, [0], lr)}
    known |= {config["variant"]: config["overrides"] for lr in RATES for name in DETECTORS for config in asked("", [ALL], [0], lr, name)}
    for run in runs:
        assert run.strategy == "DALS" and run.config["overrides"] == known[run.variant], (run.task, run.variant, run.seed)
