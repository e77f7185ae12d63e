"Contracts of the registry: the facts of the paper, and compositions that train whatever they are given."
import csv
from pathlib import Path

import pytest
import torch
from torch import nn

import dals
from dals.paper.published import TABLE2
from dals.recipes.strategies import PAPER, PROTOCOLS, STRATEGIES, get_protocol

DATA = Path(dals.__file__).parent / "paper" / "data"
NAMES = {"lr": "lr", "momentum": "momentum", "weight_decay": "weight_decay", "eta_min": "eta_min", "final_lr": "final_lr", "gamma": "gamma",
         "trust": "trust", "delta": "decay", "rho": "rho", "alpha": "alpha", "lambda": "lamb", "k": "k", "warmup": "warmup",
         "T_mult": "restart_mult", "cut_frac": "cut", "ratio": "ratio", "T_0": "restart_epochs"}


def facts(protocol):
    "(regime, strategy, hyperparameter, value) as the facts about the paper state them, in its free text"
    with open(DATA / "hyperparameters.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["protocol"] == protocol and row["strategy"] in STRATEGIES:
                for word in row["settings"].replace(";", " ").split():
                    key, _, value = word.partition("=")
                    if key in NAMES and value:
                        yield row["regime"], row["strategy"], NAMES[key], float(value)


def test_every_stated_hyperparameter_is_the_one_in_the_table():
    seen = set()
    for regime, name, key, value in facts("paper"):
        assert PAPER.settings[regime][name][key] == pytest.approx(value), (regime, name, key)
        seen.add((regime, name))
    assert len(seen) == 2 * 18


def test_fine_tuning_warms_up_except_where_the_schedule_does_so_itself():
    for name, values in PAPER.settings["finetune"].items():
        assert values.get("warmup") == (None if name == "STLR+Discriminative" else 0.1), name


@pytest.mark.parametrize("regime", ["scratch", "finetune"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_obeys_the_one_sentence(name, regime):
    "A separable problem is learned at thirty times the fine-tuning rate; each step calls the closure as often as the record says"
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    multiplier = 30 if regime == "finetune" else 3
    optimizer, scheduler = STRATEGIES[name].build(model, total_steps=400, steps_per_epoch=20, regime=regime, multiplier=multiplier)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    first = closure().item()
    calls = 0
    for _ in range(400):
        loss = optimizer.step(closure)
        scheduler.step()
    assert calls == 400 * STRATEGIES[name].gradients
    assert torch.isfinite(loss)
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    assert accuracy > 0.85 and loss.item() < first, (accuracy, loss.item())


def test_a_multiplier_scales_every_rate_and_nothing_else():
    for name, s in STRATEGIES.items():
        one, three = s.settings("finetune"), s.settings("finetune", multiplier=3.0)
        for key in one:
            assert three[key] == (pytest.approx(3 * one[key]) if key in ("lr", "final_lr", "eta_min") else one[key]), (name, key)


def test_overrides_are_taken_as_they_are():
    assert STRATEGIES["SAM"].settings("finetune", multiplier=10, lr=0.5)["lr"] == 0.5
    with pytest.raises(ValueError, match="hyperparameter of SAM 'lrr'"):
        STRATEGIES["SAM"].settings("finetune", lrr=0.5)


def test_protocol_has_a_composition_and_settings_for_each_name():
    for name, protocol in PROTOCOLS.items():
        assert get_protocol(name) is protocol and protocol.name == name
        assert [strategy for strategy in protocol.strategies if strategy in TABLE2] == list(TABLE2), name
        for regime in ("scratch", "finetune"): # a newcomer may be in some protocols alone
            assert {*protocol.strategies} <= {*protocol.settings[regime]} <= {*STRATEGIES}
        assert {*protocol.strategies} <= {*protocol.compositions} <= {*STRATEGIES}


def test_an_unknown_protocol_is_named_with_the_nearest():
    known = r"Known: paper, tuned, (\w+, )*ablation, released\."
    with pytest.raises(ValueError, match=f"no protocol 'release'\\. Did you mean 'released'[?] {known}"):
        get_protocol("release")
