"The chapters as a book: what stands at the end of each, links that lead somewhere, numbers that agree, and schedules worked by hand."
import json
import math
import re
from pathlib import Path

import pytest
import torch

from dals.lesson.problem import CHOSEN, FRESH, TRIAL, difference, half_interval, tidied, watch, world
from dals.optim.schedule import inverse_sqrt, linear, one_cycle, range_test, wsd
from dals.lab.statistics import paired

NBS = Path(__file__).resolve().parent.parent / "nbs"
TEACHING = sorted((NBS / "1_generations").glob("0[0-6]_*.ipynb"))


def cells(path, kind=None):
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell, "".join(cell["source"])) for cell in every if kind in (None, cell["cell_type"])]


def said(cell):
    "What a cell printed or displayed"
    return "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.stem)
def test_a_chapter_ends_with_the_picture_a_summary_and_exercises_with_folded_answers(path):
    texts = [text for _, text in cells(path)]
    last = {heading: max(i for i, text in enumerate(texts) if text.startswith(heading))
            for heading in ("## Learned against kept", "## Summary", "## Exercises")}
    assert sorted(last, key=last.get) == list(last)
    picture = next(text for text in texts[last["## Learned against kept"]:] if "learned_against_kept(kept" in text and "import" not in text)
    assert re.match(r"#\| fig-alt: .{30,}", picture)
    assert 4 <= len(re.findall(r"^- ", texts[last["## Summary"] + 1], re.M)) <= 6
    tail = texts[last["## Exercises"] + 1:]
    questions, answers = tail[::2], tail[1::2]
    assert 3 <= len(questions) <= 5 and len(questions) == len(answers)
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True), 1):
        assert question.startswith(f"**{i}.**") and answer.startswith("#| code-fold: true\n")
        assert "assert" in answer or "test_" in answer


@pytest.mark.parametrize("path", sorted(NBS.rglob("[0-9i]*.ipynb")), ids=lambda path: path.stem)
def test_every_link_within_the_repository_leads_somewhere(path):
    for _, text in cells(path, "markdown"):
        text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)  # code that calls an item of a table is no link
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            assert re.match(r"\w+:", target) or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.stem)
def test_a_teaching_chapter_links_papers_and_chapters(path):
    text = "\n".join(text for _, text in cells(path, "markdown"))
    assert re.search(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.)", text)
    assert re.search(r"\]\(\d\d_\w+\.ipynb\)", text)


def test_papers_that_are_linked_stand_in_the_bibliography():
    known = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", "".join(text for _, text in cells(NBS / "1_generations" / "07_reference.ipynb"))))
    for path in TEACHING:
        linked = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", "".join(text for _, text in cells(path, "markdown"))))
        assert linked <= known, (path.stem, linked - known)


def test_one_experiment_has_one_number_in_all_chapters():
    found = {}
    for path in TEACHING:
        for cell, _ in cells(path, "code"):
            for name, new, old in re.findall(r"^(\S.*?) +learned ([\d.]+) % +kept ([\d.]+) %$", said(cell), re.M):
                found.setdefault(name, set()).add((new, old))
    assert set(CHOSEN) <= set(found) and all(len(numbers) == 1 for numbers in found.values()), found


def test_rates_are_chosen_in_worlds_that_nothing_is_reported_on():
    assert not set(TRIAL) & set(FRESH) and len(FRESH) == 10


def test_standardised_inputs_are_the_same_network_and_the_difference_is_students():
    raw = world(0)
    neat = tidied(raw)
    torch.testing.assert_close(raw.model(raw.test_x), neat.model(neat.test_x), rtol=1e-4, atol=1e-4)
    assert neat.x.std(0).sub(1).abs().max() < 0.3 and raw.x.std(0).max() > 10
    a, b = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 1.0, 3.0, 3.0, 9.0], [0.5, 4.5, 1.0, 9.0, 2.0, 2.0, 3.0, 3.0, 1.0, 4.0]
    theirs = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert difference(a, b) == pytest.approx((theirs.mean, theirs.low, theirs.high), abs=1e-4)
    with pytest.raises(ValueError, match="ten worlds, not 2"):
        half_interval([1.0, 2.0])


def test_a_run_that_is_tested_less_is_the_same_run():
    def build(model, steps): return torch.optim.SGD(model.parameters(), lr=0.01), None
    whole, partly = watch(build, steps=6), watch(build, steps=6, tests=2)
    assert partly["loss"] == whole["loss"] and partly["old"][4:] == whole["old"][4:] and math.isnan(partly["new"][3])


@pytest.mark.parametrize("schedule, progress, factor", [
    (linear, 0.25, 0.75), (inverse_sqrt(0.25), 0.125, 0.5), (inverse_sqrt(0.25), 1.0, 0.5), (wsd(0.1, 0.2), 0.05, 0.5),
    (wsd(0.1, 0.2), 0.79, 1.0), (wsd(0.1, 0.2), 0.9, 0.5), (one_cycle(), 0.15, 0.52), (one_cycle(), 0.3, 1.0), (one_cycle(), 1.0, 4e-6)])
def test_schedules_by_hand(schedule, progress, factor):
    assert schedule(progress) == pytest.approx(factor, abs=1e-12)


def test_the_range_test_puts_everything_back_and_stops_where_the_loss_explodes():
    theta = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([{"params": [theta], "lr": 0.5}], lr=0.1, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        loss = (theta**2).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, state = theta.item(), optimizer.state[theta]["momentum_buffer"].item()
    found = range_test(optimizer, closure, 1e-3, 1e3, steps=60, smooth=0.0)
    assert len(found) < 60 and [rate for rate, _ in found] == sorted(rate for rate, _ in found)
    assert (theta.item(), optimizer.state[theta]["momentum_buffer"].item(), optimizer.param_groups[0]["lr"]) == (weight, state, 0.5)
