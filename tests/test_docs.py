"What help() and an editor show of the public names: every parameter, with its meaning and its default; and types that find a misspelt one."
import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import dals
from dals.optim import adaptive, base, dals as optimizer, joint, layerwise, schedule
from dals.paper import published
from dals.recipes import strategies

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZERS = (dals.DALS, dals.DALSFast, dals.DALSAcc, adaptive.AdaBound, layerwise.LARS, joint.Lion, joint.Lookahead, joint.SAM,
              joint.Grokfast)
SCHEDULES = (schedule.constant, schedule.cosine, schedule.step_decay, schedule.restarts, schedule.warmup, schedule.floored,
             schedule.per_step, schedule.PerStep, schedule.linear, schedule.inverse_sqrt, schedule.wsd,
             schedule.one_cycle, schedule.range_test, joint.stlr)
METHODS = (strategies.Strategy.build, strategies.Strategy.settings, base.BaseOptimizer.step, joint.Lookahead.step, joint.SAM.step,
           joint.Grokfast.step, dals.DALS.step, dals.DALS.observe, dals.DALS.factor, dals.DALSAcc.factor, dals.DALS.memory,
           dals.DALS.add_param_group, dals.DALS.check, dals.DALS.load_state_dict)
PUBLIC = (*OPTIMIZERS, *SCHEDULES, *METHODS, dals.layer_groups, layerwise.discriminative, strategies.Strategy, strategies.get_strategy,
          strategies.strategy, dals.fit, dals.benchmark, dals.own_task)
every = pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__qualname__)


def sections(thing):
    "The parts of a docstring by their headings; what stands before the first is under ''"
    lines = inspect.cleandoc(thing.__doc__).splitlines()
    found, name = {"": []}, ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and re.fullmatch("-+", below) and len(below) == len(line):
            name = line
            found[name] = []
        elif not re.fullmatch("-{3,}", line):
            found[name].append(line)
    return found


def described(thing):
    "Parameter -> what follows its colon, and its meaning"
    entries, names = {}, []
    for line in sections(thing).get("Parameters", []):
        if line.startswith(" "):
            for name in names:
                entries[name][1] += " " + line.strip()
        elif line:
            head, _, kind = line.partition(" : ")
            names = [name.strip().lstrip("*") for name in head.split(",")]
            for name in names:
                assert name.isidentifier() and name not in entries, line
                entries[name] = [kind, ""]
    return {name: (kind, meaning.strip()) for name, (kind, meaning) in entries.items()}


def parameters(thing):
    return {name: p for name, p in inspect.signature(thing).parameters.items() if name != "self"}


def test_every_public_name_is_held_to_it():
    assert {getattr(dals, name) for name in dals.__all__ if name != "STRATEGIES"} <= set(PUBLIC)


@every
def test_every_parameter_is_described_and_nothing_else(thing):
    found, signature = described(thing), parameters(thing)
    assert sorted(found) == sorted(signature)
    assert all(re.search(r"\w{2,}.*\.$", meaning) for _, meaning in found.values()), found
    if all(kind for kind, _ in found.values()) and thing not in (dals.DALSFast, dals.DALSAcc):
        assert list(found) == list(signature)


@every
def test_the_defaults_that_are_told_are_those_of_the_signature(thing):
    for name, parameter in parameters(thing).items():
        kind, _ = described(thing)[name]
        if not kind:
            continue  # of an entry for several, which refers to where they are told
        told = re.search(r"default (.+)$", kind)
        assert (told is None) == (parameter.default is inspect.Parameter.empty), (name, kind)
        if told and callable(parameter.default):
            assert told[1] == parameter.default.__name__
        elif told:
            assert ast.literal_eval(told[1]) == parameter.default, name


@pytest.mark.parametrize("cls", [dals.DALSFast, dals.DALSAcc])
def test_what_a_sibling_takes_as_dals_has_it_has_the_default_of_dals(cls):
    own, base, found = parameters(cls), parameters(dals.DALS), described(cls)
    for name, parameter in own.items():
        if not found[name][0]:
            assert parameter.default == base[name].default, name
        elif name in base and name != "total_steps":
            assert parameter.default != base[name].default, f"{name} is told apart, but is as in DALS"
    assert base.keys() - own.keys() == ({"schedule"} if cls is dals.DALSAcc else set())


@every
def test_the_docstring_begins_with_a_sentence_and_tells_what_comes_back(thing):
    found = sections(thing)
    assert re.match(r"[A-Za-z].{15,}[.:]$", found[""][0]), found[""][0]
    assert all(len(line) <= 120 for line in thing.__doc__.splitlines())
    if not inspect.isclass(thing):
        nothing = inspect.signature(thing).return_annotation in (None, "None")
        assert nothing != ("Returns" in found)
    else:
        assert "Returns" not in found
    if thing in OPTIMIZERS:
        assert re.search(r"arXiv \d{4}\.\d{4,5}", " ".join(found["References"])) and found["Examples"] and found["Raises"]


def example_globals():
    model, batch = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), torch.ones(8, 4)
    labels = torch.arange(8) % 3

    def closure():
        used.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        return loss

    class Used:
        "Zeroes the gradients of whatever optimizer the example makes"
        def zero_grad(self): model.zero_grad()

    used = Used()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    everything = {k: v for module in (schedule, adaptive, layerwise, joint, optimizer, strategies, dals) for k, v in vars(module).items()}
    return {**everything, "torch": torch, "nn": nn, "model": model, "inputs": batch, "labels": labels, "closure": closure, "optimizer": sgd,
            "batches": [batch]}


@pytest.mark.parametrize("thing", [thing for thing in PUBLIC if ">>>" in thing.__doc__], ids=lambda thing: thing.__qualname__)
def test_the_examples_run(thing):
    values = example_globals()
    if thing is dals.DALS.observe:
        values["optimizer"] = dals.DALS(values["model"].parameters(), total_steps=10)
        values["loss"] = nn.functional.cross_entropy(values["model"](values["inputs"]), values["labels"])
    elif thing is schedule.per_step:
        values["cosine"], values["warmup"] = schedule.cosine, schedule.warmup
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(thing.__doc__), values, thing.__qualname__, None, 0)
    assert test.examples
    out = []
    failed = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=out.append)
    assert failed.failed == 0, "".join(out)


def test_help_prints_every_meaning():
    done = subprocess.run([sys.executable, "-c", "import dals; help(dals.DALS)"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = " ".join(re.sub(r"^ \|", "", line) for line in done.stdout.splitlines())
    shown = " ".join(shown.split())
    for name, (kind, meaning) in described(dals.DALS).items():
        assert f"{name} : {kind} {' '.join(meaning.split())}" in shown, name


def test_the_hyperparameters_that_build_takes_by_name_are_those_of_the_papers_eighteen():
    tables = strategies.PAPER.settings.values()
    wanted = {key for rows in tables for name in published.TABLE2 for key in rows[name]}
    assert set(strategies.Overrides.__annotations__) == wanted == set(described(strategies.Overrides))


SCRIPT = """
    import torch
    from torch import Tensor, nn

    from dals import DALS, STRATEGIES, DALSAcc, DALSFast, benchmark, fit, layer_groups, own_task
    from dals.optim.adaptive import AdaBound
    from dals.optim.joint import SAM, Grokfast, Lion, Lookahead
    from dals.optim.layerwise import LARS, discriminative
    from dals.optim.schedule import cosine, per_step, warmup

    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    inputs, labels = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    optimizer = DALS(layer_groups(model), 0.03, total_steps=10)


    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


    def number() -> float:
        return closure().item()


    print(optimizer.step(closure).item(), optimizer.step(number) + 1.0)
    optimizer.observe(closure())
    optimizer.step()
    fast = DALSFast(model.parameters(), total_steps=10, schedule=cosine, thresholds=None, weight_decay=0.0)
    acc = DALSAcc(model.parameters(), torch.tensor(0.1), restart_steps=10, trust_clip=(1, 1))
    sgd = torch.optim.SGD(discriminative(layer_groups(model), 0.1), momentum=0.9)
    for wrapper in (SAM(sgd, rho=0.1), Lookahead(sgd, k=6), Grokfast(sgd, lamb=1.0)):
        wrapper.step(number)
    print(SAM(sgd).step(closure).item())
    for plain in (Lion(model.named_parameters(), betas=(0.9, 0.99)), LARS(model.parameters(), lr=1.0), AdaBound(model.parameters())):
        scheduler = per_step(plain, warmup(cosine, 0.1), total_steps=10)
        plain.step()
        scheduler.step()
    built, scheduler2 = STRATEGIES["SAM"].build(model, total_steps=10, steps_per_epoch=5, regime="scratch", rho=0.1, lr=0.3)
    built.step(number)
    task = own_task("mine", lambda: nn.Linear(4, 3), (inputs, labels), (inputs, labels), epochs=1, batch_size=8)
    print(fit(task, "DALS", overrides={"lr": 0.1}).final_accuracy, benchmark(task, ["Adam"], seeds=2))
"""
MISSPELT = """
    import torch
    from torch import nn

    from dals import DALS, STRATEGIES, DALSAcc, DALSFast
    from dals.optim.joint import SAM, Grokfast, Lookahead

    model = nn.Linear(4, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    DALS(model.parameters(), total_steps=10, momentun=0.9)
    DALSFast(model.parameters(), total_steps=10, trust_clp=(1, 1))
    DALSAcc(model.parameters(), restart_steps=10, tresholds=None)
    SAM(sgd, roh=0.1)
    Lookahead(sgd, aplha=0.5)
    Grokfast(sgd, lambd=2.0)
    STRATEGIES["SAM"].build(model, total_steps=10, steps_per_epoch=5, regime="scratch", rho_=0.1)
    DALS(3, total_steps=10)
    SAM(sgd).step(4)
"""
WRONG = {"DALS": "momentun", "DALSFast": "trust_clp", "DALSAcc": "tresholds", "SAM": "roh", "Lookahead": "aplha", "Grokfast": "lambd",
         "STRATEGIES": "rho_"}

# what --strict asks of one module; of torch the repository's own check asks less, and what it found there serves here too
STRICT = ("disallow-any-generics, disallow-subclassing-any, disallow-untyped-calls, disallow-untyped-defs, disallow-incomplete-defs, "
          "disallow-untyped-decorators, warn-return-any, no-implicit-reexport, strict-equality")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    "What mypy says of two scripts, in an environment where the package lies as pip would lay it: without py.typed it would see no types"
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    shutil.copytree(ROOT / "dals", site / "dals", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    scripts = {name: textwrap.dedent(text).lstrip() for name, text in (("script", SCRIPT), ("misspelt", MISSPELT))}
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(f"{text}# mypy: {STRICT}\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache",
                           "--python-executable", folder / "venv" / "bin" / "python", "script.py", "misspelt.py"],
                          cwd=folder, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return scripts, [line for line in done.stdout.splitlines() if ": error:" in line]


def test_a_script_of_a_user_type_checks(checked):
    assert [line for line in checked[1] if not line.startswith("misspelt.py")] == []


def test_a_misspelt_keyword_is_found(checked):
    scripts, errors = checked
    lines = {number: text for number, text in enumerate(scripts["misspelt"].splitlines(), 1)}
    for name, word in WRONG.items():
        (number,) = [number for number, text in lines.items() if text.startswith((f"{name}(", f"{name}[")) and f"{word}=" in text]
        assert any(line.startswith(f"misspelt.py:{number}:") and f'"{word}"' in line for line in errors), (name, errors)
    for number, said in ((len(lines) - 1, "incompatible type"), (len(lines), "No overload variant")):
        assert any(line.startswith(f"misspelt.py:{number}:") and said in line for line in errors), errors
