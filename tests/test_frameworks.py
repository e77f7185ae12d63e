"DALS in Trainer, accelerate and Lightning: the recipes that chapter 3.3 prints, each cut out of the notebook and run against a plain loop."
import json
import logging
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, default_collate
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dals import DALS, DALSFast, layer_groups
from dals.optim.layerwise import discriminative
from dals.optim.update import detect

CHAPTER = Path(__file__).resolve().parent.parent / "nbs" / "3_use" / "03_frameworks.ipynb"
SMALL = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 16}
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # workers, logging intervals: the frameworks' advice for real runs


def recipe(name):
    "The source of the one cell of the chapter that says it is this recipe"
    cells = ["".join(cell["source"]) for cell in json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    (source,) = [cell.removeprefix(f"# recipe: {name}\n") for cell in cells if cell.startswith(f"# recipe: {name}\n")]
    return source


def follow(name, **given):
    "What the names of a recipe stand for once it has run"
    names = {"DALS": DALS, "layer_groups": layer_groups, "Trainer": Trainer, "lightning": lightning, "torch": torch, **given}
    exec(recipe(name), names)
    return names


def bert(dropout=0.0):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(
        **SMALL, num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def examples(make, n=24):
    "Sentences with a label, or texts of which some begin with an unlabelled prompt, so that micro-batches differ in tokens"
    rows = torch.randint(40, (n, 8), generator=torch.Generator().manual_seed(1))
    if make is not llama:
        return [{"input_ids": row, "labels": (row[0] > 20).long()} for row in rows]
    return [{"input_ids": row, "labels": row.where(torch.arange(8) >= i % 6, -100)} for i, row in enumerate(rows)]


def arguments(folder, max_steps, batch, micro_batches, **others):
    return TrainingArguments(str(folder), max_steps=max_steps, per_device_train_batch_size=batch, logging_steps=1, report_to=[],
                             gradient_accumulation_steps=micro_batches, lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True,
                             disable_tqdm=True, save_steps=6, **others)


def by_hand(losses):
    average, phase = None, 0
    for loss in losses:
        average, phase = detect(loss, average, phase)
    return average, phase


def told(optimizer, losses):
    "Whether the optimizer took one step for each of these losses and keeps their average"
    average, phase = by_hand(losses)
    assert optimizer.param_groups[0]["step"] == len(losses)
    assert float(optimizer.loss_ema) == pytest.approx(average, rel=1e-6) and optimizer.phase == phase


def plain(model, batches, total_steps):
    "A loop without a framework: an update for each batch; DALS and the losses"
    optimizer, losses = DALS(layer_groups(model), total_steps=total_steps), []
    for batch in batches:
        def closure():
            optimizer.zero_grad()
            loss = model(**batch).loss  # noqa: B023
            loss.backward()
            return loss
        losses.append(optimizer.step(closure).item())
    return optimizer, losses


def progress(optimizer): return optimizer.param_groups[0]["step"], optimizer.phase, float(optimizer.loss_ema)


def equal(one, other): return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def close(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_recipe_for_trainer_has_at_most_six_lines():
    lines = recipe("Trainer").splitlines()
    assert 0 < len(lines) <= 6 and all(len(line) <= 140 for line in lines)
    assert not any(";" in line or line.endswith("\\") for line in lines)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("make", [bert, llama])
def test_trainer_takes_the_steps_of_a_plain_loop(make, micro_batches, tmp_path):
    "All examples make one update, so the order does not matter; their mean loss is what DALS must be told"
    model, data = make(), examples(make)
    names = follow("Trainer", model=model, args=arguments(tmp_path, 8, 24 // micro_batches, micro_batches), data=data)
    if make is bert:
        names["trainer"].loss_is_scaled_for_ga = False  # its loss is a mean over the micro-batch
    names["trainer"].train()
    logged = [row["loss"] for row in names["trainer"].state.log_history if "loss" in row]
    twin = make()
    optimizer, losses = plain(twin, [default_collate(data)] * 8, 8)
    assert losses[0] > losses[-1] and logged == pytest.approx(losses, rel=1e-5)
    told(names["opt"], logged)
    assert names["opt"].phase == optimizer.phase
    close(model, twin)


@pytest.mark.parametrize("make", [bert, llama])
def test_trainer_logs_the_rate_of_every_layer(make, tmp_path):
    model = make()
    groups = discriminative(layer_groups(model), 0.1)
    names = follow("Trainer", model=model, args=arguments(tmp_path, 8, 8, 1), data=examples(make), layer_groups=lambda model: groups)
    names["trainer"].train()
    rows = [row for row in names["trainer"].state.log_history if "loss" in row]
    assert len(rows) == 8 and len(groups) == {bert: 5, llama: 4}[make]
    for step, row in enumerate(rows, 1):
        rates = {name.removeprefix("lr/"): rate for name, rate in row.items() if name.startswith("lr/")}
        assert rates == pytest.approx({group["name"]: group["lr"] * names["opt"].factor(step) for group in groups})
    assert len({row["lr/" + groups[0]["name"]] for row in rows}) == 8


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("make", [lambda: bert(dropout=0.1), llama], ids=["bert", "llama"])
def test_trainer_resumes_to_the_last_bit(make, micro_batches, tmp_path):
    ends, models = [], [make(), make()]
    for model, start in zip(models, (None, str(tmp_path / "checkpoint-6")), strict=True):
        names = follow("Trainer", model=model, args=arguments(tmp_path, 12, 4, micro_batches), data=examples(make))
        names["trainer"].train(resume_from_checkpoint=start)
        ends.append(progress(names["opt"]))
        losses = [row["loss"] for row in names["trainer"].state.log_history if "loss" in row]
        told(names["opt"], losses)  # the log of a resumed run begins with that of the checkpoint
    assert ends[0] == ends[1] and ends[0][0] == 12
    assert equal(*models) and not equal(models[0], make())


def accelerated(make, rows, micro_batches):
    accelerator, model = Accelerator(gradient_accumulation_steps=micro_batches, cpu=True), make()
    optimizer = DALS(layer_groups(model), total_steps=24 // 4 // micro_batches)
    loader = DataLoader(rows, batch_size=4, generator=torch.Generator())  # without one a pass begins with a number from the global one
    return accelerator, *accelerator.prepare(model, optimizer, loader)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_accelerate_takes_the_steps_of_a_plain_loop(micro_batches):
    "For BERT, whose loss is a mean: then micro-batches of one size are as good as one batch"
    data, epoch = examples(bert), follow("accelerate")["epoch"]
    accelerator, model, optimizer, loader = accelerated(bert, data, micro_batches)
    losses = torch.tensor(epoch(accelerator, model, optimizer, loader), dtype=torch.double).view(-1, micro_batches).mean(1).tolist()
    told(optimizer.optimizer, losses)
    twin = bert()
    _, expected = plain(twin, DataLoader(data, batch_size=4 * micro_batches), 6 // micro_batches)
    assert losses == pytest.approx(expected, rel=1e-5)
    close(model, twin)


@pytest.mark.parametrize("make", [lambda: bert(dropout=0.1), llama], ids=["bert", "llama"])
def test_accelerate_resumes_to_the_last_bit(make, tmp_path):
    data, epoch = examples(make), follow("accelerate")["epoch"]
    accelerator, half, optimizer, loader = accelerated(make, data[:12], 1)
    torch.manual_seed(3)
    epoch(accelerator, half, optimizer, loader)
    accelerator.save_state(tmp_path)
    accelerator, whole, optimizer, loader = accelerated(make, data, 1)
    torch.manual_seed(3)
    epoch(accelerator, whole, optimizer, loader)
    end = progress(optimizer.optimizer)
    accelerator, resumed, optimizer, loader = accelerated(make, data, 1)
    accelerator.load_state(tmp_path)
    assert progress(optimizer.optimizer)[0] == 3 and equal(half, resumed)
    epoch(accelerator, resumed, optimizer, accelerator.skip_first_batches(loader, 3))
    assert progress(optimizer.optimizer) == end and end[0] == 6
    assert equal(whole, resumed) and not equal(half, whole)


class Notes(lightning.pytorch.callbacks.Callback):
    "What a module logged, batch by batch"
    def __init__(self): self.rows = []
    def on_train_batch_end(self, trainer, *_): self.rows.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def lit(name, model):
    names = follow("Lightning")
    return (names if name == "Lightning" else follow(name, Lit=names["Lit"]))["Lit" if name == "Lightning" else "LitAccumulated"](model)


def fit(module, folder, data, micro_batches=1, start=None, **others):
    "Two epochs, a checkpoint after each; the rows of the log"
    notes = Notes()
    saves = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", accumulate_grad_batches=micro_batches, callbacks=[notes, saves],
                                logger=False, enable_progress_bar=False, enable_model_summary=False, **others)
    trainer.fit(module, DataLoader(data, batch_size=4), ckpt_path=start)
    return notes.rows


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_lightning_takes_the_steps_of_a_plain_loop(micro_batches, tmp_path):
    data, module = examples(bert), lit("Lightning" if micro_batches == 1 else "Lightning, accumulated", bert())
    rows = fit(module, tmp_path, data, micro_batches)
    losses = torch.tensor([row["loss"] for row in rows], dtype=torch.double).view(-1, micro_batches).mean(1).tolist()
    told(module.dals, losses)
    twin = bert().train()
    _, expected = plain(twin, [*DataLoader(data, batch_size=4 * micro_batches)] * 2, 12 // micro_batches)
    assert losses == pytest.approx(expected, rel=1e-5)
    close(module.model, twin)


def test_lightning_logs_the_rate_of_every_layer(tmp_path):
    module = lit("Lightning", llama())
    rows = fit(module, tmp_path, examples(llama))
    for step, row in enumerate(rows):  # before an update: the rates of the one before it
        assert {k: v for k, v in row.items() if k != "loss"} == pytest.approx(
            {f"lr/{group['name']}": 0.03 * module.dals.factor(max(step, 1)) for group in module.dals.param_groups})
    assert len(rows) == 12 and len(rows[0]) == 5


def test_lightning_hands_the_loss_over_with_a_gradient_scaler_too(tmp_path):
    module = lit("Lightning, accumulated", llama())
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    rows = fit(module, tmp_path, examples(llama), 3, plugins=[half])
    told(module.dals, torch.tensor([row["loss"] for row in rows], dtype=torch.double).view(-1, 3).mean(1).tolist())


@pytest.mark.parametrize("make", [bert, llama])
def test_lightning_resumes_to_the_last_bit(make, tmp_path):
    whole, resumed = (lit("Lightning, accumulated", make()) for _ in range(2))
    fit(whole, tmp_path, examples(make), 2)
    fit(resumed, tmp_path / "again", examples(make), 2, start=str(tmp_path / "epoch=0.ckpt"))
    assert progress(resumed.dals) == progress(whole.dals) and resumed.dals.param_groups[0]["step"] == 6
    assert equal(whole, resumed) and not equal(whole.model, make())


SCALED = {"16-mixed": lambda: MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0)),
          "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu")}


@pytest.mark.parametrize("precision", SCALED)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_lightning_clips_gradients_in_mixed_precision(precision, micro_batches, tmp_path):
    "What reaches the optimizer is true to size and no longer than was asked for"
    longest = {}
    for clip in (None, 0.25):
        module, lengths = lit("Lightning, accumulated", llama()), []

        def measure(optimizer, *_):
            lengths.append(torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item())  # noqa: B023

        with register_optimizer_step_post_hook(measure):
            rows = fit(module, tmp_path, examples(llama), micro_batches, plugins=[SCALED[precision]()], gradient_clip_val=clip)
        told(module.dals, torch.tensor([row["loss"] for row in rows], dtype=torch.double).view(-1, micro_batches).mean(1).tolist())
        longest[clip] = max(lengths)
    assert 0.24 < longest[0.25] < 0.2501 < longest[None] < 5  # scaled eight times, it would be above


def test_lightning_skips_an_overflow_and_forgets_its_loss(tmp_path):
    module = lit("Lightning, accumulated", llama())
    step, calls = module.training_step, []
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (float("inf") if calls.append(1) or len(calls) == 3 else 1)
    rows = fit(module, tmp_path, examples(llama), plugins=[SCALED["16-mixed"]()])
    told(module.dals, [row["loss"] for i, row in enumerate(rows) if i != 2])


def test_lightning_may_leave_batches_out(tmp_path):
    module = lit("Lightning", llama())
    step, kept = module.training_step, []
    module.training_step = lambda batch, batch_idx: None if batch_idx % 3 == 1 else kept.append(step(batch, batch_idx)) or kept[-1]
    fit(module, tmp_path, examples(llama))
    told(module.dals, [loss.item() for loss in kept])
    assert len(kept) == 8


def test_lightning_without_an_end_is_told_to_have_one(tmp_path):
    def run(**how):
        module = lit("Lightning", llama())
        lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                          enable_checkpointing=False, **how).fit(module, DataLoader(examples(llama), batch_size=4))
        return module.dals.total_steps

    with pytest.raises(ValueError, match=r"total_steps.* got inf: give the run an end \(max_epochs=-1 has none\)"):
        run(max_epochs=-1)
    assert run(max_epochs=-1, max_steps=5) == 5


def test_accelerate_sees_skipped_steps_and_their_loss_is_forgotten():
    accelerator, model = Accelerator(cpu=True), llama()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # accelerate builds one for CUDA only
    loader = DataLoader(examples(llama), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, DALS(layer_groups(model), total_steps=6), loader)
    losses, skipped = [], []
    for i, batch in enumerate(loader):
        loss = model(**batch).loss
        accelerator.backward(loss * (float("inf") if i in (1, 4) else 1))
        optimizer.optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        skipped.append(optimizer.step_was_skipped)
    assert skipped == [False, True, False, False, True, False]
    told(optimizer.optimizer, [loss for loss, skip in zip(losses, skipped, strict=True) if not skip])


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_clips_and_takes_bfloat16(bf16, tmp_path):
    lengths = []

    def measure(optimizer, *_):
        lengths.append(torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm().item())

    args = arguments(tmp_path, 8, 8, 1, bf16=bf16)
    args.max_grad_norm = 0.25
    names = follow("Trainer", model=llama(), args=args, data=examples(llama))
    with register_optimizer_step_post_hook(measure):
        names["trainer"].train()
    told(names["opt"], [row["loss"] for row in names["trainer"].state.log_history if "loss" in row])
    assert len(lengths) == 8 and 0.24 < max(lengths) < 0.2501


def test_trainer_with_a_scaler_skips_an_overflow(tmp_path):
    "Trainer zeroes the gradients of the model, so the optimizer does not learn that they are gone: the loss counts for the next update"
    names = follow("Trainer", model=llama(), args=arguments(tmp_path, 6, 8, 1), data=examples(llama))
    trainer = names["trainer"]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # Trainer asks for one on CUDA only
    backward, calls = trainer.accelerator.backward, []
    trainer.accelerator.backward = lambda loss, **how: backward(loss * (float("inf") if calls.append(1) or len(calls) == 3 else 1), **how)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 6 and trainer.accelerator.scaler.get_scale() == 4.0
    told(names["opt"], [*losses[:2], (losses[2] + losses[3]) / 2, *losses[4:]])


def test_a_schedule_of_trainers_own_is_announced(tmp_path):
    args = arguments(tmp_path, 4, 8, 1)
    args.lr_scheduler_type = "linear"
    names = follow("Trainer", model=llama(), args=args, data=examples(llama))
    with pytest.warns(UserWarning, match='schedule=None switches its own off.*lr_scheduler_type="constant" in Trainer') as caught:
        names["trainer"].train()
    assert sum("Two schedules are multiplied" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("make", [bert, llama])
def test_the_trainer_to_import_takes_the_steps_of_a_plain_loop(make, micro_batches, tmp_path):
    from dals.integrations import DALSTrainer, find_dals
    data, args = examples(make), arguments(tmp_path, 8, 24 // micro_batches, micro_batches)
    args.lr_scheduler_type = "linear"  # Trainer's default, which must not be multiplied
    trainer = DALSTrainer(make(), args, train_dataset=data)
    if make is bert:
        trainer.loss_is_scaled_for_ga = False  # its loss is a mean over the micro-batch
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Two schedules")
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    twin = make()
    optimizer, losses = plain(twin, [default_collate(data)] * 8, 8)
    told(find_dals(trainer.optimizer), losses)
    close(trainer.model, twin)
    assert [row["phase"] for row in rows][-1] == optimizer.phase
    name = optimizer.param_groups[-1]["name"]
    assert [row[f"lr/{name}"] for row in rows] == pytest.approx([0.03 * optimizer.factor(n) for n in range(1, 9)])


def test_the_trainer_to_import_keeps_an_optimizer_of_the_users(tmp_path):
    from dals.integrations import DALSTrainer
    model = llama()
    mine = DALSFast(layer_groups(model), 0.1, total_steps=8)
    trainer = DALSTrainer(model, arguments(tmp_path, 8, 24, 1), train_dataset=examples(llama), optimizers=(mine, None))
    trainer.train()
    assert mine.param_groups[0]["step"] == 8 and mine.total_steps == 8
    with pytest.raises(ValueError, match="leave them out, or optimizers="):
        DALSTrainer(model, arguments(tmp_path, 8, 24, 1), optimizers=(mine, None), dals={"lr": 0.1})
    sgd = torch.optim.SGD(model.parameters())
    other = DALSTrainer(model, arguments(tmp_path, 8, 24, 1), train_dataset=examples(llama), optimizers=(sgd, None))
    with pytest.raises(TypeError, match="There is no DALS in this SGD"):
        other.train()


class Plain(lightning.LightningModule):
    "Nothing of ours but the optimizer"
    def __init__(self, model, skipped=()):
        super().__init__()
        self.model, self.skipped, self.losses = model, skipped, []

    def training_step(self, batch, index):
        if index in self.skipped:
            return None
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return DALS(layer_groups(self.model), total_steps=self.trainer.estimated_stepping_batches)


@pytest.mark.parametrize("precision", [None, *SCALED])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_callback_to_import_hands_over_the_loss_of_every_update(precision, micro_batches, tmp_path):
    from dals.integrations import DALSCallback
    module = Plain(llama())
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", accumulate_grad_batches=micro_batches, callbacks=[DALSCallback()],
                                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                                **({"plugins": [SCALED[precision]()]} if precision else {}))
    trainer.fit(module, DataLoader(examples(llama), batch_size=4))
    told(trainer.optimizers[0], torch.tensor(module.losses, dtype=torch.double).view(-1, micro_batches).mean(1).tolist())
    assert {"phase", "lr/lm_head"} <= {*trainer.callback_metrics} and "optimizer_step" not in vars(module)


def test_the_callback_to_import_lets_batches_be_left_out():
    from dals.integrations import DALSCallback
    module = Plain(llama(), skipped=(1, 4))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[DALSCallback()], logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(examples(llama), batch_size=4))
    told(trainer.optimizers[0], module.losses)
    assert len(module.losses) == 4


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_step_for_accelerate_takes_those_of_a_plain_loop(micro_batches):
    from dals.integrations import accelerate_step
    data, losses = examples(bert), []
    accelerator, model, optimizer, loader = accelerated(bert, data, micro_batches)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerate_step(accelerator, optimizer, loss)
        losses.append(loss.item())
    told(optimizer.optimizer, torch.tensor(losses, dtype=torch.double).view(-1, micro_batches).mean(1).tolist())
    twin = bert()
    plain(twin, DataLoader(data, batch_size=4 * micro_batches), 6 // micro_batches)
    close(model, twin)


def test_a_framework_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch):
    import dals.integrations as integrations
    for name, framework in (("DALSTrainer", "transformers"), ("DALSCallback", "lightning")):
        monkeypatch.delitem(vars(integrations), name, raising=False)
        for module in [other for other in sys.modules if other.split(".")[0] in (framework, "pytorch_lightning")]:
            monkeypatch.delitem(sys.modules, module)
        for module in (framework, "lightning.pytorch", "pytorch_lightning"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=f"{name} needs .* which is not installed: pip install"):
            getattr(integrations, name)
    with pytest.raises(AttributeError, match="no attribute 'DALSTrainr': it has accelerate_step"):
        getattr(integrations, "DALSTrainr")  # noqa: B009
