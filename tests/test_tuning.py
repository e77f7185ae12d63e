"The search for rates: one budget for all, chosen by the rule that is written down, on examples that nothing else uses."
import csv
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as some
from scipy import stats

from records import retold

from dals.cli import main
from dals.recipes.strategies import PAPER_SEED
from dals.lab.records import Config
from dals.lab.store import Store
from dals.lab.sweep import missing
from dals.recipes.strategies import PAPER, TUNED, RATES, STRATEGIES
from dals.lab.tasks import get_task, validation
from dals.lab.training import fit
from dals.lab.tuning import (
    COARSE, TUNING_SEEDS, best_step, choice, gradients_to, multiple, performance_profile, rates, refined, reported, scores_of, step_of,
    trials, tune, tuned_configs, variant_of,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def template():
    return fit("synthetic+validation", "Fixed SGD", seed=1000, protocol="tuned", profile="smoke", overrides={"lr": 0.01})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "published", tmp_path / "local")


def searched(store, template, top, strategy="Fixed SGD", but=()):
    "A search whose scores fall from step `top`, as records; runs of `but` are left out"
    steps = [*COARSE, *refined({step: [-abs(step - top)] for step in COARSE})]
    for config in trials("synthetic", strategy, steps, "smoke"):
        step = step_of(config.variant)
        if (step, config.seed) not in but:
            store.put(retold(template, [1.0, 80.0 - abs(step - top)], strategy=strategy, seed=config.seed, variant=config.variant,
                             config={**template.config, "overrides": config.overrides}))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("task", ["synthetic", "synthetic-released", "cifar10+jpeg", "trec6+minilm-l6"])
def test_a_step_moves_every_rate_of_a_strategy_and_nothing_else(name, task):
    chosen, strategy = get_task(task), STRATEGIES[name]
    text = strategy.settings(chosen.regime, multiplier=chosen.multipliers[strategy.family])
    at = {step: rates(task, name, step) for step in (0, 4, -8)}
    assert at[0] == {key: text[key] for key in RATES if key in text} and "lr" in at[0]
    for step, own in at.items():
        assert own == pytest.approx({key: value * 10 ** (step / 4) for key, value in at[0].items()})
        full = strategy.settings(chosen.regime, protocol="tuned", **own)
        assert {**full, **at[0]} == text


def test_the_budget_is_the_same_for_all_and_as_it_is_written_down():
    assert [multiple(step) for step in COARSE] == pytest.approx([10 ** (k / 2) for k in range(-4, 5)])
    for name in STRATEGIES:
        configs = trials("synthetic", name, COARSE)
        assert len(configs) == 18 and {config.seed for config in configs} == set(TUNING_SEEDS)
        assert {config.task for config in configs} == {"synthetic+validation"}


def test_the_paper_settings_are_the_tuned_settings():
    assert TUNED.settings is PAPER.settings and TUNED.compositions is PAPER.compositions
    with pytest.raises(ValueError, match="'tuned' has no rates of its own: give lr"):
        fit("synthetic", "AdamW", protocol="tuned", profile="smoke")


def test_examples_for_choosing_are_training_examples_and_nothing_of_the_test():
    for name, held in (("synthetic", 640), ("synthetic-released", 2000)):
        whole, twin = get_task(name).load(), get_task(f"{name}+validation").load()
        assert len(twin.test) == held and len(twin.train) + held == len(whole.train)
        rows = {tuple(row) for row in whole.train.inputs[0].tolist()}
        assert {tuple(row) for row in twin.test.inputs[0].tolist()} <= rows
        assert not rows & {tuple(row) for row in whole.test.inputs[0].tolist()}
        assert torch.equal(twin.test.labels, validation(get_task(name), held).load().test.labels)


@hypothesis_settings(deadline=None, max_examples=60)
@given(some.lists(some.integers(0, 200), min_size=18, max_size=18))
def test_the_best_is_the_best_and_ties_go_to_the_texts_rate(values):
    scores = {step: [values[2 * i] / 2, values[2 * i + 1] / 2] for i, step in enumerate(COARSE)}
    best = best_step(scores)
    for step, pair in scores.items():
        assert sum(pair) < sum(scores[best]) or (sum(pair) == sum(scores[best]) and (abs(step), step) >= (abs(best), best))
    assert refined(scores) == (best - 1, best + 1)
    shuffled = list(scores.items())
    random.Random(0).shuffle(shuffled)
    assert best_step(dict(shuffled)) == best


@pytest.mark.parametrize("top, edge", [(0, False), (3, False), (-8, True), (9, True)])
def test_a_choice_is_read_from_records(store, template, top, edge):
    searched(store, template, top)
    found = choice("synthetic", "Fixed SGD", store, "smoke")
    assert (found.step, found.edge, len(found.scores)) == (top, edge, 11)
    run, = tuned_configs("synthetic", ["Fixed SGD"], [4], store, "smoke")
    assert run.overrides == {"lr": pytest.approx(0.01 * 10 ** (top / 4))} and (run.task, run.seed) == ("synthetic", 4)
    assert len(missing([run], store)) == 1 # a record of the search is no record of the report


@pytest.mark.parametrize("lacking", [(-8, 1000), (0, 1001), (1, 1000), (-1, 1001)])
def test_a_budget_that_was_not_spent_is_no_choice(store, template, lacking):
    searched(store, template, 0, but=[lacking])
    with pytest.raises(ValueError, match="Fixed SGD has not been tuned on synthetic .smoke.: run `dals tune"):
        choice("synthetic", "Fixed SGD", store, "smoke")


def test_rates_outside_the_budget_do_not_count(store, template):
    searched(store, template, 0)
    for config in trials("synthetic", "Fixed SGD", [5], "smoke"):
        store.put(retold(template, [1.0, 99.0], seed=config.seed, variant=config.variant,
                         config={**template.config, "overrides": config.overrides}))
    assert choice("synthetic", "Fixed SGD", store, "smoke").step == 0


def test_a_diverged_run_scores_nothing(template):
    runs = [retold(template, [1.0, 90.0], seed == 1001, seed=seed, variant="x10") for seed in TUNING_SEEDS]
    assert scores_of(runs) == {4: [90.0, 0.0]}
    assert scores_of([retold(template, [], True, variant="x10")]) == {}


def test_a_seed_of_the_search_cannot_report(store, template):
    searched(store, template, 0)
    with pytest.raises(ValueError, match="Seed 1001 was used to choose the rates"):
        tuned_configs("synthetic", ["Fixed SGD"], [0, 1001], store, "smoke")


def test_a_search_that_was_stopped_goes_on(store):
    said = []
    for config in trials("synthetic", "Lion", COARSE[:3], "smoke"):
        store.put(replace(fit("synthetic+validation", "Lion", seed=config.seed, protocol="tuned", profile="smoke",
                              overrides=config.overrides), variant=config.variant))
    one, = tune("synthetic", ["Lion"], store, profile="smoke", progress=said.append)
    assert said[-1].startswith("[4/4]") and any(line.startswith("[12/12]") for line in said) and len(one.scores) == 11
    assert tune("synthetic", ["Lion"], store, profile="smoke", progress=said.append) == [one]


def test_every_run_of_a_search_is_run_where_and_how_it_was_asked(store, template, monkeypatch):
    searched(store, template, 0)
    asked = []
    monkeypatch.setattr("dals.lab.tuning.run_missing", lambda configs, *rest: asked.extend(configs))
    tune("synthetic", ["Fixed SGD"], store, profile="smoke", device="cuda:1", fast=True)
    assert len(asked) == 22 and {(config.device, config.fast) for config in asked} == {("cuda:1", True)}


def test_the_command_line_tunes_then_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--task", "synthetic", "--strategy", "DALS", "--protocol", "tuned", "--profile", "smoke", "--seeds", "3"]) == 2
    assert "DALS has not been tuned on synthetic (smoke): run `dals tune --task synthetic --profile smoke`" in capsys.readouterr().err
    assert main(["tune", "--task", "synthetic", "--strategy", "DALS", "--profile", "smoke"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    step = choice("synthetic", "DALS", Store(), "smoke").step
    assert line.startswith("DALS") and f"{multiple(step):.3g}" in line
    assert main(["train", "--task", "synthetic", "--strategy", "DALS", "--protocol", "tuned", "--profile", "smoke", "--seeds", "3"]) == 0
    run = Store().get("synthetic", "smoke", "tuned", "DALS", 3)
    assert run.config["hyperparameters"]["lr"] == pytest.approx(0.03 * multiple(step))
    assert main(["status", "--protocol", "tuned", "--profile", "smoke", "--task", "synthetic"]) == 0
    assert "its rates are not all tuned: dals tune --task synthetic --profile smoke\n" in capsys.readouterr().out
    for words, said in ((["synthetc"], "Did you mean 'synthetic'?"), (["synthetic", "--strategy", "Lyon"], "Did you mean 'Lion'?"),
                        (["synthetic", "--profile", "smok"], "Did you mean 'smoke'?"),
                        (["synthetic", "--device", "cuda:99"], "There is no device 'cuda:99'")):
        assert main(["tune", "--task", *words]) == 2
        assert said in capsys.readouterr().err


def test_the_seeds_that_chose_and_the_papers_own_count_nowhere(template):
    runs = [retold(template, [1.0, float(seed)], seed == 7, seed=seed, protocol="tuned")
            for seed in (3, 7, PAPER_SEED, *TUNING_SEEDS)]
    found = reported([*runs, replace(template, seed=4, variant="x1")])
    assert found == {name: {} for name in STRATEGIES} | {"Fixed SGD": {3: 3.0, 7: 0.0}}


def test_gradients_are_counted_and_the_first_epoch_at_the_target_ends_the_count(template):
    history = [{**template.history[0], "epoch": epoch, "test_accuracy": score} for epoch, score in enumerate((40.0, 60.0, 55.0, 60.0), 1)]
    run = replace(template, history=history)
    steps = run.config["steps_per_epoch"]
    assert [gradients_to(run, target) for target in (30, 60, 61)] == [steps, 2 * steps, math.inf]
    assert gradients_to(replace(run, strategy="SAM+Discriminative"), 60) == 4 * steps
    assert gradients_to(replace(run, history=[]), 60) == math.inf


@hypothesis_settings(deadline=None, max_examples=60)
@given(some.lists(some.lists(some.one_of(some.floats(1, 100), some.just(math.inf)), min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_profile_rises_to_the_share_of_problems_solved(rows):
    rows = [row if min(row) < math.inf else [1.0, *row[1:]] for row in rows]
    profile = performance_profile({i: dict(zip("abc", row, strict=True)) for i, row in enumerate(rows)})
    for k, name in enumerate("abc"):
        shares = [share for _, share in profile[name]]
        assert shares == sorted(shares) and len({*shares}) == len(shares)
        assert (shares[-1] if shares else 0) == pytest.approx(sum(row[k] < math.inf for row in rows) / len(rows))
        for ratio, share in profile[name]:
            assert share == pytest.approx(sum(row[k] <= ratio * min(row) * (1 + 1e-12) for row in rows) / len(rows))
    assert sum(profile[name][0][1] for name in "abc" if profile[name] and profile[name][0][0] == 1) >= 1 - 1e-9


def test_a_name_in_the_store_is_a_step():
    assert all(step_of(variant_of(step)) == step for step in range(-20, 21))
    with pytest.raises(ValueError, match="'x2' is no multiple"):
        step_of("x2")


@pytest.fixture(scope="module")
def played(tmp_path_factory, template):
    "A search and a report of all strategies, made up: some at the edge, some diverged, some that never reach the target"
    store = Store(tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("local"))
    draw = random.Random(0)

    def run(config, final, diverged=False):
        scores = [draw.uniform(5, 60), final]
        return retold(template, scores[:1] if diverged else scores, diverged, task=config.task, strategy=config.strategy,
                      seed=config.seed, protocol=config.protocol, variant=config.variant,
                      config={**template.config, "overrides": dict(config.overrides)})
    for place, name in enumerate(STRATEGIES):
        top = (place - 9) if place % 3 else 0
        for steps in (lambda name: COARSE,
                      lambda name: refined(scores_of(store.runs("synthetic+validation", "smoke", "tuned", name, "*")))):
            for config in trials("synthetic", name, steps(name), "smoke"):
                step = step_of(config.variant)
                store.put(run(config, 70.0 - 3 * abs(step - top) + draw.random() / 9, diverged=step == 8 and top < 6))
        assert choice("synthetic", name, store, "smoke").strategy == name # the search is complete
        for seed in range(3):
            for protocol in ("paper", "tuned"):
                config = Config("synthetic", name, seed, protocol)
                final = 50.0 + place + draw.random() + 5 * (protocol == "tuned")
                store.put(run(config, final, diverged=(place, seed, protocol) == (4, 1, "paper")))
    return store


def test_of_a_test_accuracy_only_the_last_epoch_is_read_and_seed_42_counts_nowhere(played, tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    other, tables = Store(tmp_path / "published", tmp_path / "local"), []
    for run in played.runs(variant="*"):
        if run.variant is None:
            run = retold(run, [*(99.0 for _ in run.history[:-1]), *(row["test_accuracy"] for row in run.history[-1:])], run.diverged)
            if run.seed == 0:
                other.put(retold(run, [*(99.0 for _ in run.history[:-1]), 1.0], run.diverged, seed=42))
        other.put(run)
    for store in (played, other):
        store.publish(protocol="paper") # a store that is named holds a record
        out = tmp_path / f"out{len(tables)}"
        parameters = {"profile": "smoke", "published": str(store.published), "local": str(store.local), "out": str(out)}
        papermill.execute_notebook(ROOT / "nbs/experiments/tuned.ipynb", tmp_path / "tuned.ipynb", parameters,
                                   cwd=str(ROOT / "nbs/experiments"), progress_bar=False, kernel_name="python3")
        tables.append({path.name: path.read_text(encoding="utf-8") for path in sorted(out.glob("*.csv"))})
        assert {path.name for path in out.glob("*.png")} == {f"tuned_{name}.png" for name in ("sensitivity", "ranks", "profile")}
    assert tables[0] == tables[1] and set(tables[0]) == {"tuned_table2.csv", "tuned_time.csv", "tuned_duel.csv"}
    assert len(tables[0]["tuned_table2.csv"].splitlines()) == 19
    one, other = ([run.final_accuracy for run in played.runs("synthetic", "smoke", "tuned", name)] for name in ("DALS", "Cosine Decay SGD"))
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    duel, = csv.DictReader(tables[0]["tuned_duel.csv"].splitlines())
    assert [float(duel[key]) for key in ("n", "mean", "low", "high")] == pytest.approx(
        [3, sum(one) / 3 - sum(other) / 3, interval.low, interval.high], abs=1e-6)
    assert duel["p"] == duel["p_holm"] == "0.25" # three seeds that agree: two of eight patterns of signs; one task, nothing to correct
