"make: what a reader types cannot run as a command, and an environment of another Python or another folder is made anew."
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(tmp_path):
    "The Makefile in a folder of its own, with a `dals` that writes down how it was called and an environment that is up to date"
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("dals", "python", "nbdev_docs"):
        tool = tmp_path / ".venv" / "bin" / name
        tool.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > called_{name}\n", encoding="utf-8")
        tool.chmod(0o755)
    (tmp_path / ".venv" / "installed").write_text(
        f"{tmp_path} {sys.version.split()[0]} {sys.base_prefix}\n", encoding="utf-8")
    return tmp_path


def make(folder, *arguments):
    return subprocess.run(["make", f"PYTHON={sys.executable}", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("seeds", ["42; touch stolen", "$(shell touch stolen)", "`touch stolen`", "$$(touch stolen)", "' touch stolen '",
                                   '" && touch stolen "'])
def test_seeds_reach_the_program_as_they_were_typed_and_run_nothing(folder, seeds):
    make(folder, "reproduce", f"SEEDS={seeds}")
    assert (folder / "called_dals").read_text(encoding="utf-8").splitlines() == ["reproduce", "--seeds", seeds, "--jobs", "2"]
    assert (folder / "called_python").read_text(encoding="utf-8").splitlines() == ["tools/book.py"]
    assert not (folder / "stolen").exists()


def test_an_environment_of_this_folder_and_python_is_kept_and_any_other_is_made_anew(folder):
    stamp = folder / ".venv" / "installed"
    assert "-m venv" not in make(folder, "-n", "reproduce")
    good = stamp.read_text(encoding="utf-8")
    for other in (good.replace(str(folder), "/elsewhere"), good.replace(sys.version.split()[0], "3.9.1"), ""):
        stamp.write_text(other, encoding="utf-8")
        assert "-m venv --clear .venv" in make(folder, "-n", "reproduce")
    stamp.unlink()
    assert "-m venv --clear .venv" in make(folder, "-n", "reproduce")


def test_help_lists_every_command_and_check_installs_nothing_where_there_is_an_environment(folder):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*help.*)$", makefile, re.M)[1].split()
    assert sorted(line.split()[1] for line in make(folder, "--no-print-directory", "help").splitlines()) == sorted(phony)
    (folder / ".venv" / "installed").unlink()
    assert "-m pip install" in make(folder, "-n", "check") # nothing is there
    (folder / ".venv" / "bin" / "ruff").write_text("", encoding="utf-8")
    assert "pip" not in make(folder, "-n", "check")
    for name in re.search(r"^FAST = (.*)$", makefile, re.M)[1].split():
        assert (ROOT / name).exists(), name


def test_docs_without_quarto_is_one_sentence_and_runs_nothing(folder, tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("sh", "sed", "printf", "cat", "make"):
        (tmp_path / "tools" / name).symlink_to(shutil.which(name))
    done = subprocess.run([tmp_path / "tools" / "make", f"PYTHON={sys.executable}", "docs"], cwd=folder, capture_output=True, text=True,
                          env={"PATH": str(tmp_path / "tools")})
    assert done.returncode and done.stderr.splitlines()[0] == (
        "make docs needs Quarto, from https://quarto.org: install it first, or use make book, which does without")
    assert not (folder / "called_nbdev_docs").exists()
