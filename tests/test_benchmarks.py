"The benchmark runs, at a size that says nothing about speed."
import os
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
