"What a set of seeds can decide: hand-worked numbers are in the chapter, here are other implementations and properties."
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dals.statistics import bootstrap_mean, holm, improvement, indistinguishable, paired, ranks

points = st.integers(-300, 300).map(lambda hundredths: hundredths / 100)
differences = st.lists(points, min_size=2, max_size=8)
probabilities = st.lists(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=6)
few = settings(deadline=None, max_examples=40)


def against_zero(values, base=0.0):
    "Two strategies whose differences are these; a base near 97 brings the rounding that accuracies have."
    return paired({seed: base + value for seed, value in enumerate(values)}, {seed: base for seed in range(len(values))})


@few
@given(differences)
def test_the_sign_flip_test_counts_as_a_plain_loop_does(values):
    observed = abs(sum(round(100 * value) for value in values))  # whole hundredths: no rounding in the reference
    sums = [abs(sum(sign * round(100 * value) for sign, value in zip(signs, values, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(values))]
    expected = sum(total >= observed for total in sums) / 2 ** len(values)
    assert against_zero(values).p == expected == against_zero(values, 97.3).p


@few
@given(st.lists(st.integers(-300, 300), min_size=2, max_size=8).filter(sum))
def test_the_sign_flip_test_equals_scipys_permutation_test(values):
    p = stats.permutation_test((np.array(values),), np.sum, permutation_type="samples", n_resamples=2**8).pvalue
    assert against_zero([value / 100 for value in values]).p == pytest.approx(p, abs=1e-12)  # whole numbers: no rounding there


@few
@given(differences, st.randoms())
def test_a_comparison_mirrors_and_does_not_depend_on_the_order_of_seeds(values, random):
    one, other = against_zero(values), against_zero([-value for value in values])
    assert (one.n, one.p) == (other.n, other.p) and one.mean == pytest.approx(-other.mean) and one.wins == pytest.approx(1 - other.wins)
    shuffled = random.sample(values, len(values))
    assert against_zero(shuffled) == one
    assert one.p >= 2 / 2**one.n and one.low <= one.high


def test_only_seeds_that_both_have_run_count():
    a, b = {0: 98.0, 1: 98.5, 2: 98.0, 42: 99.9}, {2: 97.0, 1: 97.5, 0: 97.0, 7: 12.0}
    assert paired(a, b) == (3, 1.0, 1.0, 1.0, 0.25, 1.0)


def test_beyond_twelve_seeds_the_patterns_are_drawn_and_p_is_never_zero():
    clear = against_zero([1.0 + seed / 100 for seed in range(20)])
    assert clear.p == 1 / 10000
    thirteen = [0.3, -0.1, 0.2, 0.4, -0.3, 0.1, 0.5, 0.2, -0.2, 0.3, 0.1, 0.2, 0.1]
    exact = stats.permutation_test((np.array(thirteen),), np.sum, permutation_type="samples", n_resamples=2**13).pvalue
    assert against_zero(thirteen).p == pytest.approx(exact, abs=0.006)  # two standard errors of 10000 draws are 0.004


def test_the_exact_test_keeps_its_level_where_nothing_differs():
    rng = np.random.default_rng(0)
    ps = np.array([against_zero(rng.normal(size=6)).p for _ in range(400)])
    assert abs((ps <= 0.0625).mean() - 0.0625) < 0.04 and abs((ps <= 0.5).mean() - 0.5) < 0.08  # three standard errors


@few
@given(st.lists(points, min_size=3, max_size=10))
def test_a_bootstrap_interval_lies_within_the_values_and_does_not_depend_on_their_order(values):
    one, other = bootstrap_mean(values), bootstrap_mean(values[::-1])
    assert one[3:] == other[3:] and min(values) - 1e-9 <= one.low <= one.high <= max(values) + 1e-9
    wide = bootstrap_mean(values, level=0.99)
    assert wide.low <= one.low + 1e-9 and one.high <= wide.high + 1e-9


def by_closure(ps, i):
    "Holm is the closure of Bonferroni's test: the worst of all sets of hypotheses that hold this one."
    return max(min(1.0, len(chosen) * min(ps[j] for j in chosen)) for size in range(1, len(ps) + 1)
               for chosen in itertools.combinations(range(len(ps)), size) if i in chosen)


@few
@given(probabilities)
def test_holm_equals_the_closed_test(ps):
    assert holm(ps) == pytest.approx([by_closure(ps, i) for i in range(len(ps))])


@few
@given(probabilities, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps, level):
    rejected = set()
    for step, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if (len(ps) - step) * ps[i] > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected


runs = st.lists(st.integers(90, 99), min_size=2, max_size=7)


@few
@given(runs, runs)
def test_improvement_is_mann_and_whitneys_statistic(a, b):
    probability, low, high = improvement(a, dict(enumerate(b)))
    assert probability == pytest.approx(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    assert 0 <= low <= high <= 1 and probability + improvement(b, a)[0] == pytest.approx(1)


@few
@given(st.lists(st.lists(st.integers(90, 99), min_size=3, max_size=3), min_size=2, max_size=5))
def test_ranks_share_out_the_places(table):
    values = {f"strategy {i}": dict(enumerate(row)) for i, row in enumerate(table)}
    found = ranks(values)
    assert sum(rank for rank, low, high in found.values()) == pytest.approx(len(table) * (len(table) + 1) / 2)
    for i, (rank, low, high) in enumerate(found.values()):
        counted = [sum(other[seed] > table[i][seed] for other in table) + (1 + sum(other[seed] == table[i][seed] for other in table)) / 2
                   for seed in range(3)]
        assert rank == pytest.approx(sum(counted) / 3) and min(counted) - 1e-9 <= low <= high <= max(counted) + 1e-9


def test_far_behind_is_told_apart_with_enough_seeds_only():
    def race(seeds):
        return {"behind": {s: 90 + s / 10 for s in range(seeds)}, "ahead": {s: 98 - s / 10 for s in range(seeds)},
                "level": {s: 98 - (s * 7 % 10) / 10 for s in range(seeds)}}
    assert set(indistinguishable(race(10))) == {"ahead", "level"} and set(indistinguishable(race(5))) == {"ahead", "level", "behind"}
    crowd = {**{f"behind {i}": {s: 90 + (s + i) / 10 for s in range(9)} for i in range(17)}, "ahead": dict.fromkeys(range(9), 98.0)}
    assert len(indistinguishable(crowd)) == 18  # seventeen comparisons need ten seeds


def test_nothing_is_decided_by_nothing():
    assert paired({}, {})[:1] == (0,) and paired({}, {}).p == paired({1: 2.0}, {1: 1.0}).p == 1
    assert paired({1: 2.0}, {1: 1.0})[2:4] == (-math.inf, math.inf)
    assert ranks({}) == {} and ranks({"x": {}, "y": {0: 1.0}}) == {} and indistinguishable({"x": {}, "y": {0: 1.0}}) == ["x", "y"]
    with pytest.raises(ValueError, match="at least one run"):
        improvement({}, {0: 1.0})
    with pytest.raises(ValueError, match="finite"):
        paired({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0})
