"The benchmark runs, at a size that says nothing about speed."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dals.tasks import available

ROOT = Path(__file__).resolve().parent.parent


def benchmark(name, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, ROOT / "benchmarks" / name, *options], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("group, rows", [("synthetic", 4), ("seeds", 12), ("pictures", 2), ("texts", 2)])
def test_every_group_fills_its_rows(group, rows, tmp_path):
    if group == "texts":
        pytest.importorskip("accelerate")
        if sentence := available("trec6+minilm-l6"):
            pytest.skip(sentence)
    if group == "pictures":
        pytest.importorskip("torchvision")
    out = tmp_path / "page.md"
    done = benchmark("throughput.py", "--smoke", "--only", group, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    page = out.read_text()
    assert page.count("times") == rows and page.count(f"--only {group}`") == rows and "not measured" not in page
    assert "These numbers mean nothing" in page


def test_an_unknown_group_is_an_error_that_names_the_known():
    done = benchmark("throughput.py", "--only", "speed")
    assert done.returncode == 2 and "synthetic" in done.stderr


def test_memory_is_told_for_every_stage(tmp_path):
    out = tmp_path / "page.md"
    done = benchmark("memory.py", "--only", "synthetic", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    [row] = [line for line in out.read_text().splitlines() if line.startswith("| `synthetic`")]
    read, trained, evaluated = map(float, row.split("|")[4:7])
    assert "6,400 + 1,600" in row and 0.1 < read <= trained <= evaluated < 6 # GiB; a peak never falls


def test_a_step_is_timed_beside_others_and_held_against_its_goals(tmp_path):
    out = tmp_path / "page.md"
    done = benchmark("step.py", "--only", "mlp", "--rounds", "2", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines() if line.startswith("| MLP")]
    assert [row[1] for row in rows] == ["1"] * (len(rows) // 2) + ["2"] * (len(rows) // 2)
    for half in (rows[:len(rows) // 2], rows[len(rows) // 2:]):
        cells = {row[2]: row[3:] for row in half}
        assert len(cells) == len(half) and {"DALS", "DALS, foreach=False", "AdamW, foreach", "AdamW, fused"} < cells.keys()
        assert cells["AdamW, foreach"][1] == "1" and cells["AdamW, fused"][2] == "1"
        ratio, goal = cells["DALS"][1].split("; ")
        middle, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", ratio).groups())
        assert 0 < low <= middle <= high and goal.startswith("at most 0.7: ")
        assert middle == 0.7 or goal.endswith("met" if middle < 0.7 else "missed") # 0.70 may be either, before it was rounded
        for name, row in cells.items():
            assert float(row[0]) > 0 and (";" in "".join(row)) == (name == "DALS"), row
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
