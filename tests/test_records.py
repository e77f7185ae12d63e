"The published store: every record is whole, is what today's settings would ask for, and holds up what the README says of it."
import pytest

from dals.published import TABLE2
from dals.results import Store, settings, summary
from dals.strategies import STRATEGIES
from dals.tasks import get_task

RUNS = Store(local="_none").runs()
NEAR = ["Fixed SGD", "Cosine Decay SGD", "SGDR", "AdamW", "AdaBound", "Discriminative LR", "RAdam", "Lion", "DALS", "DALS-Fast"]


def best(task, profile, strategy):
    return [run.best_accuracy for run in RUNS if (run.task, run.profile, run.protocol, run.strategy) == (task, profile, "paper", strategy)]


def test_every_record_has_the_settings_that_the_code_has_today():
    assert RUNS
    for run in RUNS:
        asked = settings({part: getattr(run, part) for part in ("task", "strategy", "seed", "protocol", "profile")})
        assert {**run.config, **asked} == run.config, (run.task, run.strategy, run.seed)


def test_every_record_of_a_table_is_a_whole_run_of_a_clean_commit():
    for run in RUNS:
        assert run.diverged or len(run.history) == run.config["epochs"]
        assert run.best_accuracy == max(row["test_accuracy"] for row in run.history)
        assert len(run.commit) == 40, (run.task, run.strategy, run.seed, run.commit)


@pytest.mark.parametrize("task", ["synthetic-released", "synthetic"])
def test_both_synthetic_columns_are_full_with_three_seeds(task):
    assert [name for name in STRATEGIES if len(best(task, "paper", name)) < 3] == []


@pytest.mark.parametrize("strategy", NEAR)
def test_the_synthetic_column_is_near_the_paper(strategy):
    assert abs(summary(best("synthetic-released", "paper", strategy)).mean - TABLE2[strategy]["synthetic"]) <= 1.2


@pytest.mark.parametrize("strategy", ["Fixed SGD", "AdamW"])
def test_the_cut_of_trec_is_enough_to_learn(strategy):
    "The stand-in beats the majority class by 40 points on the test split that the tables show"
    assert min(best("trec6+minilm-l6", "cpu", strategy)) > get_task("trec6+minilm-l6").chance + 40
