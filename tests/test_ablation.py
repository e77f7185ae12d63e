"The ablation: what the switches do to a step, by an optimizer of its own; designs whose effects are known; records as their names say."
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from records import retold

from dals.paper.ablation import (
    ALL, CELLS, EFFECTS, NO_PHASES, NOTHING, RATES, RIVAL, answers, asked, best_rate, best_rates, cell_name, contrast, effect_by_seed,
    effects, kappa, measured, phase_comparisons, phase_shares, plan_of, primary, runs_of, said_of_phases, train_part, trend,
    without_progress,
)
from dals.recipes.ablation import DETECTORS, FACTORS, averaging, by_epoch
from dals.lab.records import Config
from dals.lab.store import Store
from dals.lab.statistics import paired
from dals.recipes.strategies import STRATEGIES
from dals.lab.training import fit
from dals.lab.training import settings as settings_of
from dals.lab.tuning import TUNING_SEEDS


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
    assert len({str(settings_of(Config.of(config))) for config in configs}) == (20 + len(DETECTORS)) * len(RATES)


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
    monkeypatch.setattr("dals.paper.ablation.CELLS", (RIVAL, NOTHING))
    store = Store(tmp_path / "published", tmp_path / "local")
    with pytest.raises(ValueError, match="train the part 'rates' first"):
        plan_of("best", store)
    def smoke(cells, lr):
        return asked("synthetic+validation", cells, (1000, 1001), lr, profile="smoke")
    configs = [config for lr in RATES for config in smoke((RIVAL, NOTHING), lr)]
    monkeypatch.setattr("dals.paper.ablation.plan_of", lambda part, store: configs)
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


def brute_force(values, rates, factor):
    "Mean difference of the pairs of settings that differ in one switch and have one rate, setting by setting of the thirty-two"
    def alias(on):
        return tuple(f for f in FACTORS if f in on and ("filter" in on or f not in ("depth", "phases")))
    others = [f for f in FACTORS if f != factor]
    found = []
    for k in range(5):
        for on in itertools.combinations(others, k):
            if factor in ("depth", "phases") and "filter" not in on:
                continue
            high, low = alias({*on, factor}), alias(on)
            if rates[high] == rates[low]:
                found.append(values[high][0] - values[low][0])
    return np.mean(found) if found else None


@given(st.lists(st.floats(-10, 10), min_size=20, max_size=20), st.lists(st.sampled_from(RATES[:3]), min_size=20, max_size=20))
@settings(max_examples=40, deadline=None)
def test_effects_at_equal_rates_are_the_mean_of_the_pairs_that_differ_in_nothing_else(values, rates):
    values, rates = {cell: {0: x} for cell, x in zip(CELLS, values, strict=True)}, dict(zip(CELLS, rates, strict=True))
    for factor in FACTORS:
        expected = brute_force(values, rates, factor)
        assert effect_by_seed(values, (factor,), rates) == ({} if expected is None else pytest.approx({0: expected}, abs=1e-9))
        assert effect_by_seed(values, (factor,), dict.fromkeys(CELLS, 0.1)) == pytest.approx(effect_by_seed(values, (factor,)), abs=1e-9)


def test_the_tested_question_is_what_pandas_and_scipy_make_of_the_json_files():
    "Own rates, effects at own and at equal rates, intervals, p values and their correction, by nothing of the library but `primary`"
    def frame(task):
        rows = []
        for path in (Path(Store().published) / task / "paper/ablation/DALS").glob("*.json"):
            record = json.loads(path.read_text(encoding="utf-8"))
            h = record["config"]["hyperparameters"]
            rows.append({f: h[f] for f in FACTORS} | {"coin": h["phases"] == "coin", "lr": h["lr"], "seed": record["seed"],
                        "y": 0.0 if record["diverged"] else record["final_accuracy"]} | {"phases": h["phases"] is True})
            if isinstance(h["phases"], str) and h["phases"] != "coin":
                rows.pop()
        return pd.DataFrame(rows)
    search, runs, switches = frame("synthetic+validation"), frame("synthetic"), [*FACTORS, "coin"]
    search = search[search.seed.isin((1000, 1001))].groupby([*switches, "lr"]).y.mean().reset_index()
    own = search.sort_values(["y", "lr"], ascending=[False, True]).groupby(switches).head(1)[[*switches, "lr"]]
    runs = runs[runs.seed < 10].merge(own, on=[*switches, "lr"])
    assert len(own) == 21 and (runs.groupby(switches).size() == 10).all()
    rate = {tuple(row[s] for s in switches): row.lr for _, row in own.iterrows()}
    y = {key: part.sort_values("seed").y.to_numpy() for key, part in runs.groupby(switches)}

    def cell(on, coin=False):
        return (*(f in on and ("filter" in on or f not in ("depth", "phases")) for f in FACTORS), coin)
    every = [set(on) for k in range(6) for on in itertools.combinations(FACTORS, k)]
    expected = {}
    for one in FACTORS:
        pairs = [(cell(on | {one}), cell(on)) for on in every if one not in on and (one not in ("depth", "phases") or "filter" in on)]
        expected[one] = np.mean([y[a] - y[b] for a, b in pairs], axis=0)
        equal = [(a, b) for a, b in pairs if rate[a] == rate[b]]
        expected[f"{one} at equal rates"] = np.mean([y[a] - y[b] for a, b in equal], axis=0)
        for two in FACTORS[FACTORS.index(one) + 1:]:
            if (one, two) not in (("filter", "depth"), ("filter", "phases")):
                inside = {one, two} & {"depth", "phases"}
                wired = [on for on in every if not {one, two} & on and ("filter" in {*on, one, two} or not inside)]
                expected[f"{one} × {two}"] = np.mean([y[cell({*on, one, two})] - y[cell({*on, two})] - y[cell({*on, one})] + y[cell(on)]
                                                      for on in wired], axis=0)
    everything = set(FACTORS)
    coin, full, plain = y[cell(everything - {"phases"}, True)], y[cell(everything)], y[cell(everything - {"phases"})]
    expected |= {"DALS minus the rival": full - y[cell({"schedule"})], "coin minus detector": coin - full,
                 "coin minus no phases": coin - plain, "detector minus no phases": full - plain}
    found = primary(Store(local="_none"))
    assert {name.replace("_", " ") for name in expected} == set(found)
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    p = {name: np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9) for name, d in expected.items()}
    ordered = sorted(p, key=p.get)
    steps = np.maximum.accumulate([(len(p) - k) * p[name] for k, name in enumerate(ordered)])
    adjusted = dict(zip(ordered, np.minimum(1, steps), strict=True))
    for name, d in expected.items():
        answer, interval = found[name.replace("_", " ")], stats.ttest_1samp(d, 0).confidence_interval(0.95)
        assert (answer.paired.n, answer.paired.mean) == (10, pytest.approx(d.mean(), abs=1e-9)), name
        assert (answer.paired.low, answer.paired.high) == pytest.approx((interval.low, interval.high), abs=1e-6), name
        assert (answer.paired.p, answer.adjusted) == pytest.approx((p[name], adjusted[name])), name


@pytest.fixture(scope="module")
def template():
    return fit("synthetic", "DALS", profile="smoke", protocol="ablation")


EQUAL, BETTER, WORSE = ("A phase drawn by a coin does as well as the text's detector, as far as 10 seeds can tell",
                        "A phase drawn by a coin is better than the text's detector",
                        "The text's detector is better than a phase drawn by a coin")


@pytest.mark.parametrize(("coin", "none", "said", "unsaid"), [
    (85.0, 80.0, [EQUAL, "what matters is a memory that varies, not a detector"], [BETTER, WORSE]),
    (88.0, 80.0, [BETTER, "what matters is a memory that varies, not a detector"], [EQUAL, WORSE]),
    (82.0, 80.0, [WORSE, "a memory that varies is worth something, and the detector more"], [EQUAL, "not a detector"]),
    (80.0, 80.0, [WORSE, "do not show that a memory which varies at random is worth anything, but the detector is"], ["what matters"]),
    (85.0, 85.0, [EQUAL, "do not show that a memory which varies at random is worth anything ("], ["what matters"]),
    (80.0, 85.0, [WORSE, "a memory that varies at random does harm"], ["what matters"]),
])
def test_the_sentence_on_phases_follows_from_the_records(tmp_path, template, coin, none, said, unsaid):
    "Ten seeds around each mean; the coin finds its own rate, the others another"
    store, draw = Store(tmp_path / "published", tmp_path / "local"), random.Random(1)
    def put(configs, mean):
        for config in configs:
            value = mean + draw.uniform(-0.2, 0.2)
            store.put(retold(template, [*(1.0 for _ in template.history[1:]), value], task=config["task"], seed=config["seed"],
                             variant=config["variant"], profile="paper", config={**template.config, "overrides": config["overrides"]}))
    for cell, detector, best, mean in ((ALL, "coin", 0.3, coin), (ALL, None, 0.003, 85.0), (NO_PHASES, None, 0.003, none)):
        for lr in RATES:
            put(asked("synthetic+validation", [cell], TUNING_SEEDS, lr, detector), 70 + 10 * (lr == best))
        assert best_rate(store, cell, detector=detector) == best
        put(asked("synthetic", [cell], range(10), best, detector), mean)
        put(asked("synthetic", [cell], range(10), 0.0095, detector), 10.0) # at another rate: must not count
    for found in (phase_comparisons(store), primary(store)):
        sentence = said_of_phases(found)
        # the family has 22 questions, and 22 times the smallest p of ten seeds is below 5 % still
        assert all(part in sentence for part in said) and not any(part in sentence for part in unsaid), sentence
    assert len(primary(store)) == 22 and primary(store)["depth"].adjusted == 1


def test_few_seeds_make_no_sentence_surer_than_they_are():
    "Five seeds that all agree: the interval is far from 0, the sign-flip test cannot be below 2/32"
    up = paired({seed: 5 + seed / 10 for seed in range(5)}, dict.fromkeys(range(5), 0.0))
    assert up.low > 4 and up.p == pytest.approx(2 / 32)
    sentence = said_of_phases(answers(dict.fromkeys(("coin minus detector", "coin minus no phases", "detector minus no phases"), up)))
    assert "better than" not in sentence and "what matters" not in sentence


def test_the_coin_has_searched_and_run_on_the_text_s_task():
    store = Store(local="_none")
    lr = best_rate(store, ALL, detector="coin")
    assert lr is not None and set(measured(store, asked("synthetic", [ALL], range(10), lr, "coin"))) == set(range(10))
