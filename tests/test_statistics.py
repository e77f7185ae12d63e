"What a set of seeds can decide: hand-worked numbers are in the chapter, here are other implementations and properties."
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dals.lab.intervals import summary
from dals.lab.statistics import holm, improvement, indistinguishable, paired, rank_correlation, ranks

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
@given(st.lists(st.integers(-300, 300), min_size=2, max_size=10).filter(lambda values: len(set(values)) > 1))
def test_the_interval_of_a_comparison_is_students(values):
    found = against_zero([value / 100 for value in values], 97.3)
    assert found[2:4] == pytest.approx(stats.ttest_1samp([value / 100 for value in values], 0).confidence_interval(), abs=1e-9)
    wide = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0), level=0.99)
    assert wide[2:4] == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.99), abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_of_a_comparison_keeps_its_promise_with_few_seeds(n):
    rng = np.random.default_rng(n)
    held = [(found := against_zero(rng.normal(0.1, 1, n))).low <= 0.1 <= found.high for _ in range(600)]
    assert abs(np.mean(held) - 0.95) < 0.027  # three standard errors; a percentile bootstrap holds 0.77 at three seeds


def test_even_chances_are_not_enough_for_the_sign_flip_test_and_symmetry_is():
    rng = np.random.default_rng(0)
    coin, size = rng.random((400, 10)) < 0.5, rng.random((400, 10))
    lopsided = [against_zero(row).p <= 0.05 for row in np.where(coin, 0.2 * size, -2 * size)]
    level = [against_zero(row).p <= 0.05 for row in np.where(coin, size, -size) * np.geomspace(0.1, 3, 10)]
    assert np.mean(lopsided) > 0.2 and abs(np.mean(level) - 0.05) < 0.033  # three standard errors


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
    assert 0 <= low <= probability <= high <= 1 and high - low > 0.2
    assert improvement(b, a) == pytest.approx((1 - probability, 1 - high, 1 - low), abs=1e-6)


def newcombe(seen, n, m, z=1.959964):
    "The same interval, by trying a million candidates instead of solving."
    theta = np.linspace(0, 1, 1_000_001)
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)  # Hanley and McNeil's two, with the group sizes averaged
    size = (n + m) / 2
    variance = (theta * (1 - theta) + (size - 1) * (q1 - theta**2) + (size - 1) * (q2 - theta**2)) / (n * m)
    usual = theta[(seen - theta)**2 <= z**2 * variance + 1e-15]
    return usual.min(), usual.max()


@pytest.mark.parametrize("a, b", [([3, 1], [2, 1]), ([5, 6, 7], [1, 2, 3]), ([1, 2, 3], [5, 6, 7]), ([5], [4]), (range(10), range(3, 13))])
def test_the_interval_of_improvement_is_newcombes(a, b):
    a, b = list(a), list(b)
    assert improvement(a, b)[1:] == pytest.approx(newcombe(improvement(a, b)[0], len(a), len(b)), abs=1e-5)


@pytest.mark.parametrize("n", [3, 6])
def test_complete_separation_is_no_certainty(n):
    probability, low, high = improvement([9 + i for i in range(n)], list(range(n)))
    assert (probability, high) == (1, 1) and 0.4 < low < 0.8
    field = {name: {seed: value + seed / 10 for seed in range(n)} for name, value in (("a", 3.0), ("b", 2.0), ("c", 1.0))}
    found = ranks(field)
    assert [rank for rank, low, high in found.values()] == [1, 2, 3] and all(high - low > 0.7 for rank, low, high in found.values())
    assert found["a"][1:] == pytest.approx((1, 1 + 2 * (1 - 0.05 ** (1 / n)))) and found["c"][2] == 3


def test_mean_ranks_keep_their_promise_where_one_strategy_nearly_always_leads():
    rng, leads, held = np.random.default_rng(0), np.array([1.5, 0, 0, 0]), []
    def draw(n):
        return leads + rng.normal(size=(n, 4))
    true = stats.rankdata(-draw(200_000), axis=1).mean(0)[0]
    for _ in range(300):
        values = draw(3)
        _, low, high = ranks({str(i): dict(enumerate(column)) for i, column in enumerate(values.T)})["0"]
        held.append(low <= true <= high)
    assert np.mean(held) > 0.91


@few
@given(st.lists(st.lists(st.integers(90, 99), min_size=3, max_size=3), min_size=2, max_size=5))
def test_ranks_share_out_the_places(table):
    values = {f"strategy {i}": dict(enumerate(row)) for i, row in enumerate(table)}
    found = ranks(values)
    assert sum(rank for rank, low, high in found.values()) == pytest.approx(len(table) * (len(table) + 1) / 2)
    for i, (rank, low, high) in enumerate(found.values()):
        counted = [sum(other[seed] > table[i][seed] for other in table) + (1 + sum(other[seed] == table[i][seed] for other in table)) / 2
                   for seed in range(3)]
        assert rank == pytest.approx(sum(counted) / 3) and 1 <= low <= rank <= high <= len(table) and (high > low)
        if len(set(counted)) > 1:
            t = summary(counted)
            assert (low, high) == pytest.approx((max(1, t.low), min(len(table), t.high)))


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


@few
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=20))
def test_rank_correlation_is_scipys_with_bonett_and_wrights_interval(pairs):
    x, y = ([pair[i] for pair in pairs] for i in (0, 1))
    r, low, high = rank_correlation(x, y)
    if len(pairs) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(r) and (low, high) == (-1, 1)
        return
    assert r == pytest.approx(stats.spearmanr(x, y).statistic) and -1 <= low <= r <= high <= 1 and high > low
    assert rank_correlation(y, x) == pytest.approx((r, low, high))
    if len(pairs) > 3 and abs(r) < 0.99:
        half = 1.959964 * math.sqrt((1 + r**2 / 2) / (len(pairs) - 3))
        assert (math.atanh(low), math.atanh(high)) == pytest.approx((math.atanh(r) - half, math.atanh(r) + half), abs=1e-4)


@pytest.mark.parametrize("n", [4, 6, 18])
def test_equal_orders_are_no_certainty(n):
    order = list(range(n))
    swapped = [1, 0, *order[2:]]
    r, low, high = rank_correlation(order, order)
    assert (r, high) == (1, 1) and low < rank_correlation(order, swapped)[0] and rank_correlation(order, order[::-1])[1] == -1
    assert low == pytest.approx(-rank_correlation(order, order[::-1])[2])
