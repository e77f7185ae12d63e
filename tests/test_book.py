"The chapters as a book: what stands at the end of each, links that lead somewhere, numbers that agree, and schedules worked by hand."
import ast
import asyncio
import html
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dals.lesson.problem import (
    CHOSEN, FRESH, TEXT_COLOURS, TRIAL, alone, difference, half_interval, stacked, tidied, watch, watch_all, world,
)
from dals.optim.dals import DALS
from dals.optim.joint import SAM
from dals.optim.layerwise import LARS
from dals.optim.schedule import inverse_sqrt, linear, one_cycle, range_test, wsd
from dals.lab.statistics import paired

NBS = Path(__file__).resolve().parent.parent / "nbs"
TEACHING = sorted((NBS / "1_generations").glob("0[0-6]_*.ipynb"))
READ = [*TEACHING, *sorted((NBS / "3_use").glob("*.ipynb"))]
CLASSES = {  # whole optimizers, which are looked up more than read through: a sitting does not count them; the list may only shrink
    "03_adaptive-064", "04_layerwise-069", "05_joint-046", "05_joint-054", "05_joint-066"}


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


def code_lines(text):
    "Lines of code as a reader counts them: none that is blank, a comment or part of a docstring"
    said = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False) is not None:
            said |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in said for n, line in enumerate(text.splitlines(), 1))


def words(text):
    "Words of prose; a formula counts as one, and where a link leads does not count"
    return len(re.sub(r"\]\([^)]*\)", "]", re.sub(r"\$\$.*?\$\$|\$[^$]+\$", "x", text, flags=re.S)).split())


def folded(text):
    return bool(re.search(r"^#\| (code-fold: true|hide)$", text, re.M))


def test_code_lines_and_words_are_counted_as_said():
    assert code_lines('def f(x):\n    "Says."\n    # why\n\n    return x  # here\n"a value"') == 3
    assert words("so $a + b$ is\n$$c = d$$ [there](far/away.ipynb)") == 5


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.stem)
def test_a_chapter_of_part_1_fits_one_sitting(path):
    assert words("\n".join(text for _, text in cells(path, "markdown"))) <= 2500
    assert sum(code_lines(text) for cell, text in cells(path, "code") if not folded(text) and cell["id"] not in CLASSES) <= 250


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_no_cell_is_longer_than_a_screen(path):
    lengths = {cell["id"]: len(text.splitlines()) for cell, text in cells(path, "code")}
    assert not {name for name, length in lengths.items() if length > 60}


def test_the_classes_that_are_not_counted_are_there():
    assert CLASSES <= {cell["id"] for path in READ for cell, _ in cells(path, "code")}


def test_every_chapter_begins_with_one_and_the_same_cell_that_installs_the_package_where_it_is_missing():
    found = set()
    for path in READ:
        first = [text for _, text in cells(path) if not text.startswith("#| default_exp")][:2]
        assert first[0].startswith("# ") and folded(first[1]) and "#| export" not in first[1]
        found.add(first[1])
    (text,) = found
    run = subprocess.run([sys.executable, "-c", "import subprocess\nsubprocess.run = None\n" + text], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr  # it is installed, so nothing is called
    run = subprocess.run([sys.executable, "-c", "import importlib.util, subprocess\nimportlib.util.find_spec = lambda name: None\n"
                          "subprocess.run = lambda command, check: print(*command)\n" + text], capture_output=True, text=True)
    assert re.search(r"-m pip install --quiet dals\[dev\] @ git\+https://", run.stdout), run.stderr


def contrast(colour):
    "Of a colour on white, as WCAG 2 counts it"
    from matplotlib.colors import to_rgb
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return 1.05 / (sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05)


def test_colours_of_generations_can_be_read_where_they_are_text():
    import matplotlib
    from matplotlib import pyplot as plt
    before = dict(matplotlib.rcParams)
    plt.style.use(["default", "dals.paper"])
    assert min(contrast(colour) for colour in TEXT_COLOURS.values()) >= 4.5 and contrast("C1") < 2.5
    pale = {name for name in TEXT_COLOURS if contrast(name) < 4.5}
    matplotlib.rcParams.update(before)
    for path in READ:
        for cell, text in cells(path, "code"):
            for line in text.splitlines():
                if re.search(r"\.(text|annotate)\(", line):
                    used = set(re.findall(r"""color=["'](C\d)["']""", line))
                    assert not used & pale, (path.stem, cell["id"])


def test_worlds_trained_side_by_side_are_those_trained_one_by_one():
    def adam(model, steps): return torch.optim.Adam(model.parameters(), lr=0.002), None
    for seed, diary in zip((0, 1, 2), watch_all(adam, (0, 1, 2), steps=12), strict=True):
        single = watch(adam, steps=12, seed=seed)
        assert diary["loss"] == pytest.approx(single["loss"], abs=1e-4) and diary["middle"] == pytest.approx(single["middle"], abs=1e-4)
        assert diary["old"] == pytest.approx(single["old"], abs=1)


def test_what_measures_more_than_one_weight_gets_a_world_of_its_own():
    model = stacked([world(0), world(1)]).model
    assert alone(LARS(model.parameters(), 0.1)) and alone(SAM(torch.optim.SGD(model.parameters(), 0.1)))
    assert alone(DALS(model.parameters(), total_steps=3)) and not alone(torch.optim.AdamW(model.parameters()))
    def dals(model, steps): return DALS(model.parameters(), 0.01, total_steps=steps), None
    assert watch_all(dals, (0, 1), steps=4)[1] == watch(dals, steps=4, seed=1)


def test_the_page_of_advice_links_each_recommendation_and_types_no_result():
    path = NBS / "3_use" / "04_which_one.ipynb"
    shown = "\n".join("".join(output["data"].get("text/markdown", "")) for cell, _ in cells(path, "code")
                      for output in cell["outputs"] if "data" in output)
    table = [line for line in shown.splitlines() if line.startswith("| ") and "ipynb" in line]
    assert len(table) == 5 and all(re.search(r"\]\(\.\./1_generations/\d\d_\w+\.ipynb\)", line) for line in table)
    titles = [text.lower() for _, text in cells(path, "markdown") if text.startswith("#")]
    headings = {re.sub(r"[^a-z -]", "", title).strip().replace(" ", "-") for title in titles}
    anchors = set(re.findall(r"\(#([\w-]+)\)", shown + "\n".join(text for _, text in cells(path, "markdown"))))
    assert anchors and anchors <= headings
    prose = "\n".join(text for _, text in cells(path, "markdown"))
    assert not re.search(r"\d+\.\d+ (%|points)|\d+ %(?! interval| of the highest)", prose)


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


def sliders():
    "The page of chapter 1, as the notebook holds it"
    (cell,) = [cell for cell, text in cells(NBS / "1_generations" / "01_fixed.ipynb", "code") if "HTML(PAGE)" in text]
    return "".join(cell["outputs"][0]["data"]["text/html"])


PRESS = """<script>
const told = [], say = () => told.push([+document.getElementById("bowl-rate").value, +document.getElementById("bowl-momentum").value,
  +document.getElementById("bowl-said").dataset.left, document.getElementById("bowl-said").textContent]);
say();
for (const [rate, momentum] of [[0.23, 0.27], [0.3, 0.2]]) {
  for (const [name, value] of [["rate", rate], ["momentum", momentum]]) {
    const slider = document.getElementById("bowl-" + name);
    slider.focus();
    if (document.activeElement !== slider || !slider.labels.length) told.push("cannot be reached: " + name);
    slider.value = value;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
  }
  say();
}
for (const button of document.querySelectorAll("#bowl button")) { button.click(); say(); }
document.title = JSON.stringify(told);
</script>"""


def left(rate, momentum, steps=40):
    "What is left of the distance, by two lines of arithmetic"
    place, velocity = [-9.0, 3.0], [0.0, 0.0]
    for _ in range(steps):
        for i, curvature in enumerate((1, 10)):
            velocity[i] = momentum * velocity[i] + curvature * place[i]
            place[i] -= rate * velocity[i]
    return math.hypot(*place) / math.hypot(9, 3)


def test_the_page_with_sliders_asks_for_nothing_outside_itself():
    page = sliders()
    assert not re.search(r"src=|https?:|import |fetch\(|require", page)
    assert page.count('type="range"') == 2 and page.count("<label>") == 2 and "aria-live" in page and ":focus-visible" in page


@pytest.fixture
def page(tmp_path):
    "The page in a file, and the command of a headless browser without what it is to do"
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{sliders()}</body>", encoding="utf-8")
    return path, [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]


def test_the_sliders_move_the_walk_in_a_browser(page):
    path, command = page
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", PRESS + "</body>"), encoding="utf-8")
    dom = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120).stdout
    told = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert len(told) == 7 and not [one for one in told if isinstance(one, str)], told
    for rate, momentum, rest, said in told:
        assert rest == pytest.approx(left(rate, momentum), rel=1e-9)
        assert said.startswith("Above") == (rate >= 2 * (1 + momentum) / 10)
    assert [(rate, momentum) for rate, momentum, *_ in told[1:3]] == [(0.23, 0.27), (0.3, 0.2)]
    assert len(re.findall(r'<circle cx="-?\d', dom)) == 41


async def pressed(port, keys, question):
    "What a page answers after some keys, by the protocol of the browser's own developer tools"
    from tornado.httpclient import AsyncHTTPClient
    from tornado.websocket import websocket_connect
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
    (target,) = [each for each in json.loads(answer.body) if each["type"] == "page"]
    socket = await websocket_connect(target["webSocketDebuggerUrl"])

    async def ask(number, method, **parameters):
        await socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            if (reply := json.loads(await socket.read_message())).get("id") == number:
                return reply
    number = 0
    for name, code in keys:
        for kind in ("keyDown", "keyUp"):
            number += 1
            await ask(number, "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)
    reply = await ask(number + 1, "Runtime.evaluate", expression=question, returnByValue=True)
    socket.close()
    return reply["result"]["result"]["value"]


def test_the_sliders_can_be_moved_with_the_keyboard_alone(page):
    pytest.importorskip("tornado")
    path, command = page
    browser = subprocess.Popen([*command, "--remote-debugging-port=0", path.as_uri()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = path.parent / "profile" / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not (port.exists() and port.read_text(encoding="utf-8").strip()) and time.monotonic() < until:
            time.sleep(0.2)
        keys = [("Tab", 9), *[("ArrowRight", 39)] * 3, ("Tab", 9), *[("ArrowRight", 39)] * 2, ("Tab", 9)]
        question = "[...document.querySelectorAll('#bowl input')].map(x => x.value).join(' ') + ' ' + document.activeElement.textContent"
        time.sleep(2)  # the page is there a moment after the port
        assert asyncio.run(pressed(port.read_text(encoding="utf-8").split()[0], keys, question)) == "0.195 0.02 creeps"
    finally:
        browser.terminate()
        browser.wait(30)
