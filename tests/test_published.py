"The paper's tables as data: whole, in step with the registry, and consistent with the tasks."
import pytest

from dals.paper.published import CLAIMS, COLUMNS, GENERATION, TABLE2, TABLE3
from dals.recipes.strategies import STRATEGIES
from dals.lab.tasks import TASKS


def test_the_rows_are_the_registered_strategies_in_the_same_order():
    assert list(TABLE2) == [name for name in STRATEGIES if name in TABLE2] # a strategy that the paper lacks may stand between
    assert GENERATION == {name: STRATEGIES[name].generation for name in TABLE2}


def test_every_cell_is_an_accuracy():
    assert {len(row) for row in TABLE2.values()} == {5}
    assert all(0 < value <= 100 for row in TABLE2.values() for value in row.values())


def test_table_3_is_about_strategies_of_table_2_and_never_runs_backwards():
    assert set(TABLE3) < set(TABLE2)
    for row in TABLE3.values():
        epochs = [row[level] for level in ("60", "70", "80", "90")]
        assert epochs == sorted(epochs) and epochs[0] >= 1 and row["seconds"] > 0


@pytest.mark.parametrize("name", [name for name in COLUMNS if name in TASKS])
def test_a_column_agrees_with_its_task(name):
    column = COLUMNS[name]
    assert column.published in TABLE2["DALS"]
    assert TASKS[name].profiles["paper"].test_examples == column.test_size
    assert TASKS[name].regime == column.regime


def test_nine_claims():
    assert [claim.id for claim in CLAIMS.values()] == list(CLAIMS) == [f"C{i}" for i in range(1, 10)]
