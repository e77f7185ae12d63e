"The search for rates on a task of one's own: the same budget for all, on examples and seeds that the comparison does not use."
import contextlib
import io
import json
import math
import re

import pytest
import torch
from torch import nn

from records import retold

from dals import benchmark, own_task
from dals.cli import main
from dals.lab.compare import known_as_registered, load_task
from dals.lab.store import Conflict, Store
from dals.lab.tasks import get_task
from dals.lab.tuning import NEAR, TUNING_SEEDS, chosen, multiple, proposed, refined, tune, variant_of
from dals.recipes.strategies import PAPER, STRATEGIES

TRIO = ["Fixed SGD", "AdamW", "DALS"]
FILE = """
import torch
from torch import nn
from dals import own_task

x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

task = own_task("mine", model, (x[:160], y[:160]), (x[160:], y[160:]), epochs=4, batch_size=16)
"""
X = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def mine(**more):
    return own_task(**{"name": "mine", "model": net, "train": (X[:160], Y[:160]), "test": (X[160:], Y[160:]), "epochs": 4, "batch_size": 16,
                       **more})


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    "A folder with a task in a file, what its commands printed one after the other, and the store"
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_task.py").write_text(FILE, encoding="utf-8")
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in (("untuned", ["benchmark", "my_task.py:task", "--seeds", "3"]), ("tune", ["tune", "my_task.py:task"]),
                            ("again", ["tune", "my_task.py:task"]),
                            ("tuned", ["benchmark", "my_task.py:task", "--seeds", "3", "--protocol", "tuned"])):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main([*words, "--strategy", *TRIO, "--jobs", "1"]) == 0
            said[name] = out.getvalue()
        yield said, Store()


def printed(text):
    "The rates that `dals tune` found: strategy -> multiple, rate, held-out accuracy"
    lines = text.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("strategy")) + 1:]
    return {row[0]: (float(row[1]), float(row[2]), float(row[3])) for row in (re.split(r"  +", line) for line in table)}


def test_the_command_line_gives_every_strategy_the_same_budget_and_takes_the_best_on_held_out_examples(searched):
    said, store = searched
    assert said["tune"].count("runs to do") == 2 and "30 of 30 runs to do" in said["tune"] and "12 of 12 runs to do" in said["tune"]
    found = printed(said["tune"])
    assert list(found) == TRIO
    for name, (times, lr, held_out) in found.items():
        runs = store.runs("mine+validation", "paper", "tuned", name, "*")
        assert len(runs) == 2 * (len(NEAR) + 2) and {run.seed for run in runs} == {*TUNING_SEEDS}
        means = {}
        for run in runs:
            means.setdefault(run.variant, []).append(0.0 if run.diverged else run.final_accuracy)
        assert held_out == pytest.approx(max(sum(some) / 2 for some in means.values()), abs=0.006)
        assert f"x{times:.3g}" in means and lr == pytest.approx(PAPER.settings["scratch"][name]["lr"] * times, rel=0.05)
        steps = sorted(round(4 * math.log10(float(variant[1:]))) for variant in means)
        assert steps[-1] - steps[0] in (8, 9) and len(steps) == 7 # five over two decades, and two around the best


def test_a_search_that_is_in_the_store_is_not_done_again_and_says_the_same(searched):
    said, _ = searched
    assert "runs to do" not in said["again"] and printed(said["again"]) == printed(said["tune"])


def test_the_comparison_uses_neither_the_seeds_nor_the_examples_of_the_search(searched):
    said, store = searched
    runs = store.runs("mine", "paper", "tuned")
    assert {run.seed for run in runs} == {0, 1, 2} and {(run.data["train"], run.data["test"]) for run in runs} == {(160, 80)}
    assert {run.data["train"] for run in store.runs("mine+validation", variant="*")} == {120}
    task = load_task("my_task.py:task")
    with known_as_registered(task):
        twin = get_task("mine+validation").load()
    for held in twin.test.inputs[0]: # training examples, and not among those that the search trained on
        assert (task.load().train.inputs[0] == held).all(1).any() and not (twin.train.inputs[0] == held).all(1).any()
        assert not (task.load().test.inputs[0] == held).all(1).any()
    rates = {run.strategy: run.config["hyperparameters"]["lr"] for run in runs}
    assert rates == pytest.approx({name: lr for name, (_, lr, _) in printed(said["tune"]).items()}, rel=0.05)


def test_the_first_line_says_whose_rates_these_are(searched):
    said, _ = searched
    for name, begins in (("untuned", "Untuned: "), ("tuned", "Tuned: ")):
        table = said[name][said[name].index("\n\n"):].strip().splitlines()
        assert table[0].startswith(begins) and table[2].startswith("strategy")
    assert "which nobody tuned for this task, so the order is mostly one of rates; tuned=True, or --protocol tuned," in said["untuned"]
    assert "nobody tuned" not in said["tuned"]
    for name, (times, lr, _) in printed(said["tune"]).items():
        assert f"{name} {lr:.2g} (×{times:.3g})" in said["tuned"]
    assert "by 2 runs each with other seeds, on 40 examples held out of the training part" in said["tuned"]


def test_a_strategy_at_a_rate_that_did_not_suit_it_is_another_one_after_the_search(searched):
    "At the text's rate AdamW has learned next to nothing after four epochs; at its own it has"
    _, store = searched
    before, after = ([run.final_accuracy for run in store.runs("mine", "paper", protocol, "AdamW")] for protocol in ("paper", "tuned"))
    assert max(before) < 60 and min(after) > 80


def test_what_the_range_test_saw_is_kept_and_read_again_unless_the_data_changed(searched, tmp_path, monkeypatch):
    _, store = searched
    kept = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in store.local.rglob("*.range.json")}
    assert {*kept} == {"Fixed SGD", "Adam"}
    for found in kept.values():
        rates = [rate for rate, _ in found["found"]]
        assert rates == sorted(rates) and rates[-1] / rates[0] > 100
    climbed = []

    def climb(task, strategy, lr, *rest):
        climbed.append(strategy)
        return [(lr, 1.0)]
    monkeypatch.setattr("dals.lab.tuning._climbed", climb)
    own, other = Store(tmp_path / "published", tmp_path / "local"), mine(train=(X[:159], Y[:159]))
    for _ in range(2):
        tune(mine(), ["Fixed SGD"], own, jobs=1, progress=None)
    assert climbed == ["Fixed SGD"]
    with pytest.raises(Conflict, match="the store has runs of mine on other data"):
        tune(other, ["Fixed SGD"], own, jobs=1, progress=None)
    (own.local / "mine+validation").rename(tmp_path / "away")
    (own.local / "mine+validation/paper/tuned").mkdir(parents=True)
    (tmp_path / "away/paper/tuned/Fixed SGD").rename(own.local / "mine+validation/paper/tuned/Fixed SGD")
    for path in own.local.rglob("100?-*.json"):
        path.unlink()
    tune(other, ["Fixed SGD"], own, jobs=1, progress=None)
    assert climbed == ["Fixed SGD"] * 2


def test_a_search_that_was_stopped_goes_on(tmp_path, searched):
    _, done = searched
    store, said = Store(tmp_path / "published", tmp_path / "local"), []
    runs = done.runs("mine+validation", "paper", "tuned", "Fixed SGD", "*")
    for run in runs[:5]:
        store.put(run)
    first = tune(mine(), ["Fixed SGD"], store, jobs=1, progress=said.append)
    assert re.fullmatch(r"\d of 10 runs to do", said[0]) and said[0] != "10 of 10 runs to do"
    assert {(run.seed, run.variant): run.final_accuracy for run in store.runs(variant="*")} == {
        (run.seed, run.variant): run.final_accuracy for run in runs}
    assert first == tune(mine(), ["Fixed SGD"], done, jobs=1, progress=None)


def test_the_lowest_loss_proposes_and_nothing_beyond_two_decades_is_believed():
    assert proposed([(0.01, 2.0), (0.1, 1.0), (1.0, 3.0)], 0.01) == 2 and proposed([(0.1, 1.0)], 0.1) == -2
    assert proposed([(1e3, 0.0)], 0.01) == 8 and proposed([(1e-6, 0.0)], 0.01) == proposed([], 0.01) == -8


def test_the_choice_is_the_best_mean_around_any_middle_and_says_when_it_lies_at_the_end(searched):
    run = searched[1].runs("mine+validation", "paper", "tuned", "Fixed SGD", "*")[0]

    def told(top, coarse):
        steps = {*coarse, *refined({step: [-abs(step - top)] for step in coarse}, coarse)}
        return [retold(run, [1.0, 90.0 - abs(step - top)], seed=seed, variant=variant_of(step))
                for step in steps for seed in TUNING_SEEDS]
    coarse = tuple(6 + step for step in NEAR)
    for top, edge in ((6, False), (7, False), (3, False), (10, True), (11, True), (2, True)):
        found = chosen("Fixed SGD", told(top, coarse), coarse)
        assert (found.step, found.edge, len(found.scores)) == (top, edge, 7)
    with pytest.raises(ValueError, match="not complete"):
        chosen("Fixed SGD", [one for one in told(6, coarse) if one.variant != variant_of(8)], coarse)


@pytest.mark.parametrize("more, says", [
    (dict(seeds=[0, 1001]), "Seed 1001 was used to choose the rates"),
    (dict(protocol="released"), "tuned rates are multiples of the paper's, not of those of protocol released"),
])
def test_what_would_not_be_fair_is_refused_before_anything_trains(tmp_path, more, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        benchmark(mine(), ["Fixed SGD"], **{"seeds": 2, **more}, store=Store(tmp_path / "p", tmp_path / "l"), progress=None, tuned=True)
    assert not (tmp_path / "l").exists()


def test_a_model_that_cannot_do_with_what_is_left_is_told_so(tmp_path):
    "160 training examples end in a batch of 1 once a quarter is held out, which batch normalisation cannot take; all of them in one of 6"
    def normal(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    task = mine(model=normal, batch_size=7)
    assert len(benchmark(task, ["Fixed SGD"], 1, store=Store(tmp_path / "p", tmp_path / "u"), progress=None).runs) == 1
    with pytest.raises(ValueError, match="without the 40 examples that are held out to choose the rates: the model fails on a batch of 1 "):
        tune(task, ["Fixed SGD"], Store(tmp_path / "p", tmp_path / "l"), jobs=1, progress=None)


@pytest.mark.parametrize("words, says", [
    ([], "tune takes one task: --task NAME for one of the paper's, or FILE.py:NAME for one of your own"),
    (["synthetic"], "tune takes one task"),
    (["my_task.py:task", "--task", "synthetic"], "tune takes one task"),
    (["my_task.py"], "names no task in a file"),
    (["none.py:task"], "there is no file none.py"),
    (["my_task.py:task", "--strategy", "Lyon"], "Did you mean 'Lion'?"),
    (["my_task.py:task", "--profile", "smok"], "Did you mean 'smoke'?"),
    (["my_task.py:task", "--device", "cuda:99"], "There is no device 'cuda:99'"),
])
def test_on_the_command_line_a_fault_is_one_sentence(searched, capsys, words, says):
    assert main(["tune", *words]) == 2
    assert says in capsys.readouterr().err


def test_strategies_that_the_file_registers_are_tuned_too(tmp_path, monkeypatch, capsys):
    for names in (STRATEGIES, PAPER.compositions, *PAPER.settings.values()):
        monkeypatch.setitem(names, "Plain", None) # so that it is taken out again
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.py").write_text(FILE + """
from dals.optim.schedule import constant
from dals.recipes.strategies import strategy

@strategy("Plain", "home-made", "SGD", "nobody's", scratch={"lr": 0.1}, finetune={"lr": 0.1})
def plain(model, plan, *, lr):
    return torch.optim.SGD(model.parameters(), lr), constant
""", encoding="utf-8")
    assert main(["tune", "more.py:task", "--strategy", "Plain", "--jobs", "1"]) == 0
    assert [*printed(capsys.readouterr().out)] == ["Plain"]


def test_a_multiple_has_a_name_as_far_as_a_search_goes():
    assert [variant_of(step) for step in (13, -13)] == ["x1.78e+03", "x0.000562"] and multiple(-4) == pytest.approx(0.1)
