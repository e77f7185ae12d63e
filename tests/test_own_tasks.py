"Own tasks of every kind: what is measured, which epoch counts, whose rates; what is refused; what a table of them says."
import csv
import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dals import benchmark, fit, own_task
from dals.cli import main
from dals.lab.compare import check, Comparison, default_target, known_as_registered, load_task, table
from dals.lab.records import Config
from dals.lab.seeds import fit_seeds, stacks
from dals.lab.store import Conflict, from_text, Store, to_text
from dals.lab.tasks import METRICS
from dals.recipes.strategies import PROTOCOLS, STRATEGIES

FILES = sorted(Path(__file__).with_name("own_tasks").glob("*.py"))
X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 3
HEADS = {"counting": "last epoch, perplexity  best epoch, perplexity", "marks": "last epoch, f1  best epoch, f1",
         "bars": "last epoch, iou  best epoch, iou", "sick": "test, %  epoch", "price": "test, rmse  epoch"}


def net(outputs=1):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs), nn.Flatten(0 if outputs == 1 else 1))


def amounts(**more):
    return own_task(**{"name": "amounts", "model": net, "train": (X[:48], Y[:48]), "test": (X[72:], Y[72:]), "epochs": 3, "batch_size": 8,
                       "loss": F.mse_loss, "metric": "rmse", **more})


def chosen(**more):
    return amounts(valid=(X[48:72], Y[48:72]), **more)


def compared(task, names=("Fixed SGD", "AdamW"), seeds=2, store=None, path=None, **more):
    return benchmark(task, names, seeds, store=store or Store(local=path), progress=None, **more)


def test_there_is_a_file_of_every_kind_and_none_is_long():
    assert [file.stem for file in FILES] == ["multi_label", "next_token", "one_logit", "regression", "segmentation"]
    assert all(len(file.read_text(encoding="utf-8").splitlines()) <= 30 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_every_kind_goes_through_all_strategies(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path)
    assert main(["benchmark", f"{file.name}:task", "--seeds", "2", "--jobs", "1"]) == 0
    out, task = capsys.readouterr().out, load_task(f"{file.name}:task")
    runs = Store().runs(task.name)
    assert len(runs) == 36 and {run.strategy for run in runs} == {*STRATEGIES} and HEADS[task.name] in out
    assert " ± " not in out.split("Task")[0]
    for run in runs: # what is stored is what was measured, and can be read again
        assert run.measure.metric == (task.metric.name if task.metric else "accuracy") and math.isfinite(run.score)
        assert from_text(to_text(run)) == run and run.best_accuracy is run.final_accuracy is None and run.epochs_to == {}
    scores = [row.final.mean for row in table(runs)]
    assert scores == sorted(scores, reverse=task.metric.higher)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_every_kind_is_tuned_by_its_own_metric_on_examples_that_are_no_tests(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path)
    assert main(["tune", f"{file.name}:task", "--strategy", "Fixed SGD", "AdamW", "DALS", "--jobs", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[-4:]
    task = load_task(f"{file.name}:task")
    metric = task.metric or METRICS["accuracy"]
    assert head.endswith("held out, %" if metric.name == "accuracy" else f"held out, {metric.name}")
    data, better = task.load(), max if metric.higher else min
    for name, row in zip(["Fixed SGD", "AdamW", "DALS"], rows, strict=True):
        runs = Store().runs(f"{task.name}+validation", "paper", "tuned", name, "*")
        tried = {}
        for run in runs:
            tried.setdefault(run.variant, []).append(run.score)
        assert len(tried) == 7 and {len(scores) for scores in tried.values()} == {2}
        best = better(statistics.fmean(scores) for scores in tried.values() if None not in scores)
        assert float(row.removeprefix(name).split()[2]) == pytest.approx(best, rel=1e-3)
        assert {run.data["test"] for run in runs} == {len(data.valid) if data.valid else len(data.train) // 4}


def test_a_tuned_table_says_on_which_examples_the_rates_were_chosen(tmp_path):
    found = str(benchmark(chosen(), ["Adam"], 2, store=Store(local=tmp_path), progress=None, tuned=True))
    assert "one budget for all, on validation examples." in found and "with other seeds, on 24 validation examples: Adam" in found
    assert "held out of the training part" not in found


def test_an_optimizer_of_ones_own_has_no_rate_to_search_for(tmp_path):
    def mine(params): return torch.optim.SGD(params, lr=0.1)
    with pytest.raises(ValueError, match="mine makes an optimizer whose rates are in its own lines"):
        benchmark(amounts(), ["Adam", mine], 2, store=Store(local=tmp_path), progress=None, tuned=True)


def test_the_root_of_the_mean_square_is_that_of_all_examples_and_lower_is_better(tmp_path):
    found, task = compared(amounts(), path=tmp_path), amounts()
    run = found.runs[0]
    models = []
    again = fit(replace(task, model=lambda: models.append(net()) or models[-1]), run.strategy, seed=run.seed)
    expected = (models[0](X[72:]) - Y[72:]).square().mean().sqrt().item()
    assert again.history == run.history and run.score == pytest.approx(expected, rel=1e-6)
    assert [row.strategy for row in found.rows] == ["Fixed SGD", "AdamW"] and found.rows[0].final.mean < found.rows[1].final.mean
    assert found.target >= max(run.score for run in found.runs if run.strategy == "Fixed SGD") == pytest.approx(found.target, rel=0.1)
    assert found.rows[0].best.mean <= found.rows[0].final.mean and "rmse, lower is better; the loss is mse_loss" in str(found)
    assert "points" not in str(found) and "%" not in str(found).split("rmse")[0] and "lower on average" in str(found)


def told(run, strategy, seed, scores, name="rmse"):
    history = [{"epoch": epoch, "train_loss": 1.0, f"test_{name}": float(score), "lr": 0.1} for epoch, score in enumerate(scores, 1)]
    return replace(run, strategy=strategy, seed=seed, history=history)


@pytest.mark.parametrize("metric, order", [("rmse", ["Adam", "Fixed SGD", "Lion"]), ("r2", ["Fixed SGD", "Adam", "Lion"])])
def test_rows_targets_and_tests_follow_the_direction(metric, order, tmp_path):
    run = compared(amounts(metric=metric), ["Adam"], 1, path=tmp_path).runs[0]
    runs = [told(run, name, seed, scores, metric)
            for name, scores in (("Adam", [9, 0.1, 0.2]), ("Fixed SGD", [3, 0.5, 0.512])) for seed in range(7)]
    runs.append(told(run, "Lion", 0, [], metric))
    rows = {row.strategy: row for row in table(runs)}
    assert list(rows) == order and default_target(runs) == (0.52 if metric == "rmse" else 0.51)
    assert rows["Adam"].best.mean == pytest.approx(0.1 if metric == "rmse" else 9)
    assert rows["Fixed SGD"].epochs == (2 if metric == "rmse" else 1)
    said = str(Comparison("amounts", runs[:14], 0.5))
    assert "over 7 seeds, with Holm's correction, tells the first from all others" in said and said.splitlines()[3].startswith(order[0])


def test_the_epoch_is_chosen_on_validation_and_the_test_is_touched_once(tmp_path):
    seen = []

    def distance(outputs, targets):
        seen.append(len(targets))
        return (outputs - targets).abs().max()
    task = amounts(valid=(X[48:70], Y[48:70]), metric=distance, better="lower", epochs=6)
    run = fit(task, "SGDR", overrides={"lr": 0.3})
    validated = [row["valid_distance"] for row in run.history]
    assert seen == [22] * 6 + [24] and run.epoch == validated.index(min(validated)) + 1
    assert [(row["epoch"], row["test_distance"]) for row in run.history if "test_distance" in row] == [(run.epoch, run.score)]
    assert run.data["valid"] == 22 and from_text(to_text(run)) == run
    text = to_text(run).replace(f'"valid_distance": {min(validated)}', '"valid_distance": 1e9', 1)
    with pytest.raises(ValueError, match="history"): # the test stands beside an epoch that was not the best
        from_text(text)


def test_weights_of_the_chosen_epoch_are_those_that_are_tested():
    models = []
    task = chosen(model=lambda: models.append(net()) or models[-1], epochs=8)
    run = fit(task, "Fixed SGD", overrides={"lr": 0.4})
    assert run.epoch < 8, "the last epoch is the best, and this shows nothing"
    assert run.score == pytest.approx((models[0](X[72:]) - Y[72:]).square().mean().sqrt().item(), rel=1e-6)


def test_patience_ends_a_run_and_its_record_says_so(tmp_path):
    found = compared(chosen(patience=2, epochs=30), ["Fixed SGD"], 1, path=tmp_path)
    run = found.runs[0]
    assert len(run.history) == run.epoch + 2 < 30 and not run.diverged and run.config["own"]["patience"] == 2
    assert from_text(to_text(run)) == run and "stops after 2 epochs without a better one" in str(found)
    with pytest.raises(ValueError, match="as long as the 30 of its config"):
        from_text(to_text(run).replace('"patience": 2', '"patience": 3'))


def test_a_rate_of_ones_own_is_used_recorded_and_said(tmp_path):
    store = Store(local=tmp_path)
    found = compared(amounts(lr={"AdamW": 3e-2, "AdaBound": 3e-3}), ["AdamW", "AdaBound", "Adam"], 1, store)
    used = {run.strategy: run.config["hyperparameters"] for run in found.runs}
    text = {name: STRATEGIES[name].settings("scratch") for name in used}
    assert used["AdamW"]["lr"] == 3e-2 and found.runs[0].history[0]["lr"] == pytest.approx(3e-2) and used["Adam"] == text["Adam"]
    assert used["AdaBound"]["final_lr"] == pytest.approx(10 * text["AdaBound"]["final_lr"]) and used["AdaBound"]["lr"] == 3e-3
    assert "but lr is 0.03 for AdamW and 0.003 for AdaBound, as the task says" in str(found)
    assert fit(amounts(lr={"AdamW": 3e-2}), "AdamW", overrides={"lr": 0.5}).config["hyperparameters"]["lr"] == 0.5
    with pytest.raises(Conflict, match="other settings"):
        compared(amounts(), ["AdamW"], 1, store)
    for wrong in ({"AdamW": "fast"}, {"AdamW": -1.0}, 3e-5):
        with pytest.raises(ValueError, match="lr is a mapping from strategies to positive rates"):
            amounts(lr=wrong)
    with pytest.raises(ValueError, match="Did you mean 'AdamW'"):
        amounts(lr={"AdmW": 1e-3})


@pytest.mark.parametrize("other", [dict(loss=F.l1_loss), dict(metric="mae"), dict(valid=(X[48:72], Y[48:72]))])
def test_another_loss_metric_or_rule_under_the_same_name_is_refused(other, tmp_path):
    store = Store(local=tmp_path)
    compared(amounts(), ["Adam"], 1, store)
    with pytest.raises(Conflict, match="another name"):
        compared(amounts(**other), ["Adam"], 1, store)
    compared(amounts(name="second", **other), ["Adam"], 1, store)


class Named(nn.Module):
    def __init__(self, wrap=False):
        super().__init__()
        self.net, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, points, *, shift):
        logits = self.net(points + shift[:, None])
        return type("Output", (), {"logits": logits}) if self.wrap else logits


def test_dictionaries_reach_the_model_by_name_however_they_come():
    shift, labels = torch.arange(96.0), X[:, :3].argmax(1)

    def data(part, key="labels"):
        return {"points": X[part], "shift": shift[part], key: labels[part]}
    first, rest = slice(48), slice(48, None)
    beside = {"points": X[first], "shift": shift[first]}, labels[first]
    ways = [data(first), [data(slice(30)), data(slice(30, 48))], beside, data(first, "label")]
    runs = [fit(own_task("named", Named, way, data(rest), epochs=1, batch_size=8), "Adam") for way in ways]
    assert all(run.history == runs[0].history and run.data == runs[0].data for run in runs) and runs[0].best_accuracy is not None
    wrapped = own_task("named", lambda: Named(wrap=True), data(first), data(rest), epochs=1, batch_size=8)
    check(wrapped)
    assert fit(wrapped, "Adam").history == runs[0].history


def test_a_pair_of_inputs_and_class_numbers_has_the_record_that_it_always_had():
    labels = X[:, :3].argmax(1)
    run = fit(own_task("plain", lambda: net(3), (X[:48], labels[:48]), (X[48:], labels[48:]), epochs=2, batch_size=8), "Adam")
    assert "own" not in run.config and "valid" not in run.data and set(run.history[0]) == {"epoch", "train_loss", "test_accuracy", "lr"}
    assert run.score == run.final_accuracy and max(run.scores) == run.best_accuracy and run.measure == ("accuracy", True, False)
    named = own_task("plain", lambda: net(3), (X[:48], labels[:48]), (X[48:], labels[48:]), epochs=2, batch_size=8, metric="accuracy",
                     loss=F.cross_entropy)
    assert fit(named, "Adam").history == run.history and fit(named, "Adam").config == run.config


def test_soft_labels_and_smoothed_ones(tmp_path):
    shares = F.one_hot(X[:, :3].argmax(1), 3) * 0.8 + 0.2 / 3
    soft = own_task("soft", lambda: net(3), (X[:48], shares[:48]), (X[48:], shares[48:]), epochs=1, batch_size=8, loss=F.cross_entropy,
                    metric="accuracy")
    hard = own_task("hard", lambda: net(3), (X[:48], shares[:48].argmax(1)), (X[48:], shares[48:].argmax(1)), epochs=1, batch_size=8,
                    loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    one, other = compared(soft, ["Adam"], 1, path=tmp_path / "a").runs[0], compared(hard, ["Adam"], 1, path=tmp_path / "b").runs[0]
    assert one.score == other.score == other.final_accuracy
    assert one.history[0]["train_loss"] == pytest.approx(other.history[0]["train_loss"])


class Streamed:
    "What torchmetrics has, without torchmetrics"
    higher_is_better = False

    def reset(self):
        self.worst = torch.tensor(0.0)

    def update(self, outputs, targets):
        self.worst = torch.maximum(self.worst, (outputs - targets).abs().max())

    def compute(self):
        return self.worst


def worst(outputs, targets):
    return (outputs - targets).abs().max()


def test_a_metric_may_be_an_object_a_function_or_the_loss(tmp_path):
    ways = dict(metric=Streamed()), dict(metric=worst, better="lower"), dict(metric="loss")
    runs = [fit(amounts(**more), "Adam", seed=1) for more in ways]
    assert [run.measure.metric for run in runs] == ["Streamed", "worst", "loss"] and not any(run.measure.higher for run in runs)
    assert runs[0].scores == runs[1].scores and runs[2].score == pytest.approx(fit(amounts(), "Adam", seed=1).score ** 2)


LIES = {
    "nothing said": (dict(loss=None, metric=None), "the labels of train are real numbers (torch.float32), and somebody has to say"),
    "no metric": (dict(metric=None), "metric='rmse' for amounts"),
    "an unknown metric": (dict(metric="rmsd"), "Did you mean 'rmse'?"),
    "a metric that is no metric": (dict(metric=7), "a metric is one of accuracy, f1"),
    "a metric without a direction": (dict(metric=worst), "say better='higher' or better='lower'"),
    "a direction for what has one": (dict(better="lower"), "metric 'rmse' knows what is better"),
    "a word for a direction": (dict(metric=worst, better="smaller"), "say better='higher' or better='lower'"),
    "a metric of many numbers": (dict(metric=lambda o, t: (o - t).abs(), better="lower"), "lambda returns a tensor of shape [24]"),
    "a metric that is a word": (dict(metric=lambda o, t: "good", better="lower"), "the metric lambda returns a str"),
    "a metric that is nan": (dict(metric=lambda o, t: math.nan, better="lower"), "the metric lambda of the fresh model is nan on the test"),
    "a metric that fails": (dict(metric=lambda o, t: 1 / 0, better="lower"), "lambda fails on the outputs of the fresh model: ZeroDiv"),
    "a metric of another kind": (dict(metric="perplexity"), "perplexity fails on the outputs of the fresh model: ValueError"),
    "a loss for each example": (dict(loss=lambda o, t: (o - t) ** 2), "loss of a batch has shape [8]: it has to be one number"),
    "a sum": (dict(loss=nn.MSELoss(reduction="sum")), "it is a sum over the examples"),
    "a loss that is nan": (dict(loss=lambda o, t: (o - t).mean().sub(1e9).sqrt()), "the loss of the fresh model is not a finite number"),
    "a loss without gradients": (dict(loss=lambda o, t: F.mse_loss(o.detach(), t)), "does not depend on the model's parameters"),
    "a loss that is no tensor": (dict(loss=lambda o, t: 1.0), "the loss is a float, not a tensor"),
    "a loss that fails": (dict(loss=F.nll_loss, metric="loss"), "the loss fails on outputs of shape [8] and"),
    "every output with every label": (dict(model=lambda: nn.Linear(4, 1)), "the loss would compare every output with every label"),
    "the same by hand": (dict(model=lambda: nn.Linear(4, 1), loss=lambda o, t: ((o - t) ** 2).mean()), "loss would compare every output"),
    "the same in the metric": (dict(model=lambda: nn.Linear(4, 1), loss=lambda o, t: F.mse_loss(o.squeeze(1), t), better="lower",
                                    metric=lambda o, t: (o - t).abs().mean()), "the metric lambda compares every output with every label"),
    "whole numbers for a loss of reals": (dict(train=(X, (Y > 0).long()), test=(X, (Y > 0).long()), metric="accuracy",
                                               loss=F.binary_cross_entropy_with_logits), "a loss of real numbers needs labels.float()"),
    "labels in rows of one 1": (dict(train=(X, F.one_hot((Y > 0).long())), test=(X, F.one_hot((Y > 0).long())), model=lambda: net(2),
                                     loss=None, metric=None), "class numbers are labels.argmax(1)"),
    "labels of two shapes": (dict(test=(X[72:], Y[72:, None])), "the labels of test have shape [24, 1] and are torch.float32, those"),
    "labels of two kinds": (dict(test=(X[72:], Y[72:].long())), "are torch.int64, those of train have shape [48] and are torch.float32"),
    "a label that is nan": (dict(train=(X[:48], Y[:48] / torch.arange(48.0).sub(7))), "train has labels that are not finite: example 7"),
    "patience alone": (dict(patience=2), "pass valid= as well"),
    "no patience at all": (dict(patience=0, valid=(X[48:72], Y[48:72])), "patience is a number of epochs from 1 up"),
    "an empty validation": (dict(valid=[]), "valid is empty"),
    "validation of another kind": (dict(valid={"x": X, "labels": Y}), "valid has the inputs ('x',), train has them without names"),
    "a dictionary without labels": (dict(train={"x": X}), "it needs 'labels'"),
    "two dictionaries": (dict(train=[{"x": X, "labels": Y}, {"y": X, "labels": Y}]), "batch 2 of train has the inputs ('y',), batch 1"),
    "a model that takes no such name": (dict(train={"x": X, "labels": Y}, test={"x": X, "labels": Y}), "unexpected keyword argument 'x'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_fit_is_one_sentence_before_anything_trains(lie, tmp_path):
    more, says = LIES[lie]
    with pytest.raises(ValueError) as refused:
        compared(amounts(**more), path=tmp_path)
    assert says in str(refused.value) and "\n" not in str(refused.value) and not list(tmp_path.iterdir())


TOKENS = torch.randint(7, (32, 6), generator=torch.Generator().manual_seed(0))


class Speaker(nn.Sequential):
    def __init__(self, words=7, outputs=7):
        super().__init__(nn.Embedding(words, 8), nn.Linear(8, outputs))


@pytest.mark.parametrize("model, labels, says", [
    (Speaker, TOKENS, "the labels are the inputs themselves"),
    (lambda: Speaker(outputs=6), TOKENS.flip(1), "can be read in two ways: which dimension are the classes?"),
    (lambda: Speaker(outputs=5), TOKENS.flip(1), "the labels of train go from 0 to 6, but 5 outputs are numbered 0 to 4; -100 asks for no"),
    (lambda: nn.Sequential(Speaker(), nn.Flatten()), TOKENS.flip(1), "the loss fails on outputs of shape [8, 42] and labels of shape")])
def test_a_language_model_is_held_to_its_word(model, labels, says):
    task = own_task("speaker", model, (TOKENS, labels), (TOKENS, labels), epochs=1, batch_size=8)
    with pytest.raises(ValueError) as refused:
        check(task)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def adagrad(params):
    return torch.optim.Adagrad(params, lr=0.2)


def test_an_optimizer_of_ones_own_is_one_more_row(tmp_path):
    store, before = Store(local=tmp_path), list(STRATEGIES)
    found = compared(amounts(), ["Adam", adagrad], 2, store, jobs=2)
    mine = next(run for run in found.runs if run.strategy == "adagrad")
    assert list(STRATEGIES) == before and "adagrad" not in PROTOCOLS["paper"].compositions and len(found.runs) == 4
    assert mine.config["hyperparameters"]["lr"] == mine.history[0]["lr"] == 0.2
    assert {row.strategy: row.generation for row in found.rows} == {"Adam": "3", "adagrad": "own"}
    assert [ax.get_title(loc="left") for ax in found.curves().axes][:2] == ["generation 3", "your own"]
    here = compared(amounts(), adagrad, 2, Store(local=tmp_path / "alone"))
    assert [run.history for run in here.runs] == [run.history for run in found.runs if run.strategy == "adagrad"]

    def adagrad_slower(params):
        return torch.optim.Adagrad(params, lr=0.1)
    adagrad_slower.__name__ = "adagrad"
    with pytest.raises(Conflict, match="lr"): # the settings of an optimizer are in its record
        compared(amounts(), [adagrad_slower], 2, store)


def test_an_optimizer_in_the_file_of_a_task_is_known_on_the_command_line(tmp_path, monkeypatch, capsys):
    for names in (STRATEGIES, PROTOCOLS["paper"].compositions, *PROTOCOLS["paper"].settings.values()):
        monkeypatch.setitem(names, "adagrad", STRATEGIES["Adam"]) # so that it is taken out again
        names.pop("adagrad")
    monkeypatch.chdir(tmp_path)
    text = next(file for file in FILES if file.stem == "regression").read_text(encoding="utf-8")
    more = ["from dals.recipes.strategies import own_strategy", "def adagrad(params): return torch.optim.Adagrad(params, 0.1)"]
    (tmp_path / "price.py").write_text("\n".join([text, *more, "own_strategy(adagrad)"]), encoding="utf-8")
    assert main(["benchmark", "price.py:task", "--strategy", "adagrad", "Adam", "--seeds", "1", "--jobs", "1", "--out", "page"]) == 0
    assert "adagrad    own" in capsys.readouterr().out and len(list((tmp_path / "page").iterdir())) == 9
    assert main(["status"]) == 0 # whose estimates are about the paper's tasks


@pytest.mark.parametrize("make, says", [
    (lambda params: None, "a function with a name"), (len, "returns a int, not a torch.optim"), (nn.Linear, "missing 1 required")])
def test_what_makes_no_optimizer_is_refused(make, says, tmp_path):
    with pytest.raises((ValueError, TypeError), match=says):
        compared(amounts(), [make], 1, path=tmp_path)
    assert not {"Linear", "len"} & {*STRATEGIES}


def test_a_table_is_saved_as_numbers_too(tmp_path):
    found = compared(chosen(), seeds=3, path=tmp_path / "store")
    saved = {path.suffix: path for path in found.save(tmp_path)}
    rows = list(csv.DictReader(saved[".csv"].open(encoding="utf-8")))
    told = json.loads(saved[".json"].read_text(encoding="utf-8"))
    assert [row["strategy"] for row in rows] == [row.strategy for row in found.rows] == [row["strategy"] for row in told["strategies"]]
    assert float(rows[0]["mean"]) == found.rows[0].final.mean and rows[0]["metric"] == "rmse" and rows[0]["higher_is_better"] == "False"
    assert [(run["strategy"], run["seed"], run["score"]) for run in told["runs"]] == [(r.strategy, r.seed, r.score) for r in found.runs]
    assert told["notes"] == found.notes() and told["own"] == {"loss": "mse_loss", "metric": "rmse", "higher": False, "epoch": "validation"}


def test_a_loss_may_be_below_0_and_a_lambda(tmp_path):
    task = amounts(model=lambda: nn.Linear(4, 2), metric="loss", loss=lambda o, t: F.gaussian_nll_loss(o[:, 0], t, o[:, 1].exp()) - 99)
    found = compared(task, ["Fixed SGD", torch.optim.Adagrad], path=tmp_path)
    assert max(run.history[0]["train_loss"] for run in found.runs) < 0 and "the loss is lambda." in str(found) and found.target < 0
    assert {row.generation for row in found.rows} == {"1", "own"} and len(found.save(tmp_path)) == 5


def test_no_interval_stands_where_it_would_say_nothing(tmp_path):
    labels = X[:, :3].argmax(1)
    task = own_task("plain", lambda: net(3), (X[:48], labels[:48]), (X[48:], labels[48:]), epochs=1, batch_size=8)
    found = compared(task, seeds=2, path=tmp_path)
    assert "±" not in str(found).split("Task")[0] and "No ± stands where it would say nothing" in str(found)
    assert "±" in str(compared(task, seeds=4, path=tmp_path)).split("Task")[0]


def test_seeds_at_once_are_refused_for_what_they_cannot_do():
    with pytest.raises(ValueError, match="a loss, a metric, a validation split or rates of its own"):
        fit_seeds(amounts(), "Adam", [0, 1])
    with pytest.raises(ValueError, match="of its own"):
        fit_seeds(amounts(lr={"Adam": 0.1}, loss=F.mse_loss), "Adam", [0, 1])
    configs = [Config("amounts", "Adam", seed) for seed in (0, 1)]
    with known_as_registered(amounts(model=lambda: nn.Sequential(nn.Linear(4, 3)))):
        assert [len(stack) for stack in stacks(configs)] == [1, 1]


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_a_target_is_in_the_unit_of_the_metric(target, tmp_path):
    with pytest.raises(ValueError, match="a number in the unit of rmse"):
        compared(amounts(), target=target, path=tmp_path)
    found = compared(amounts(), path=tmp_path, target=250.0)
    assert [row.epochs for row in found.rows] == [1, 1] and "epochs to 250 " in str(found)


def test_fast_compiles_the_model_and_is_said_in_the_record(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model) # what it does is the matter of test_training
    run = compared(amounts(), ["Adam"], 1, path=tmp_path, fast=True).runs[0]
    plain = compared(amounts(), ["Adam"], 1, path=tmp_path / "plain").runs[0]
    assert run.compiled and not plain.compiled and len(compiled) == 1 and run.history == plain.history


def test_every_metric_of_the_list_has_a_direction():
    assert {name for name, metric in METRICS.items() if not metric.higher} == {"rmse", "mae", "perplexity"}
