"Every notebook runs from top to bottom; every experiment notebook also through papermill, at smoke size, in a folder that starts empty."
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"1_generations": 8, "2_evidence": 10, "3_use": 4, "4_workshop": 23} # and how many chapters each has
CHAPTERS = [*(ROOT / "nbs").glob("*.ipynb"), *(path for part in PARTS for path in sorted((ROOT / "nbs" / part).glob("*.ipynb")))]
FEWER = {"ablation": {"traces": [0, 1]}} # what has no smoke size of its own
EXPERIMENTS = sorted(p for p in (ROOT / "nbs" / "experiments").glob("*.ipynb"))


def patiently(run):
    "Two kernels that start at the same moment may want one port; the loser gets a second chance"
    try:
        return run()
    except RuntimeError as error:
        if "Kernel died before replying" not in str(error): raise
        return run()


def test_no_chapter_is_missed():
    assert [path.stem for path in CHAPTERS[:1]] == ["index"] and len(CHAPTERS) == 1 + sum(PARTS.values())
    assert {part: len([*(ROOT / "nbs" / part).rglob("*.ipynb")]) for part in PARTS} == PARTS
    found = {path for path in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in path.relative_to(ROOT).parts)}
    assert found == {*CHAPTERS, *EXPERIMENTS} # no folder has notebooks that nobody runs


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    if "TRITON_INTERPRET" in path.read_text(encoding="utf-8"): # which triton reads when it is imported
        monkeypatch.setenv("WARM_PYTHON", "")
    patiently(NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs_through_papermill(path, tmp_path, monkeypatch):
    import papermill
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    known = papermill.inspect_notebook(path)
    assert "out" in known, "every experiment says where its pictures and tables go"
    values = {"out": str(tmp_path / "out"), **FEWER.get(path.stem, {})}
    patiently(lambda: papermill.execute_notebook(path, tmp_path / path.name, values, kernel_name="python3", cwd=path.parent,
                                                 progress_bar=False, execution_timeout=900))
    made = list((tmp_path / "out").glob("*"))
    assert made and all(p.stat().st_size for p in made)
