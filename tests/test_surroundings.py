"What a reader has set up on the machine changes nothing here: kernels of other environments, and settings of matplotlib."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dals.cli import run_notebooks

ROOT = Path(__file__).resolve().parent.parent


def test_a_notebook_runs_in_this_environment_whatever_kernel_is_called_python3(tmp_path, monkeypatch):
    for variable, folder in (("JUPYTER_PATH", tmp_path / "other"), ("JUPYTER_DATA_DIR", tmp_path / "mine")):
        spec = folder / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": [sys.executable, "-c", "raise SystemExit('another environment')", "{connection_file}"],
                                    "display_name": "Python 3", "language": "python"}), encoding="utf-8")
        monkeypatch.setenv(variable, str(folder))
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("out = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import sys; from pathlib import Path; Path(out).write_text(sys.executable)")])
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(notebook, tmp_path / "one.ipynb")
    found = tmp_path / "found"
    assert run_notebooks({"one": tmp_path / "one.ipynb"}, {"one": {"out": str(found)}}, tmp_path, 1, lambda line: None) == {}
    assert found.read_text(encoding="utf-8") == sys.executable


DRAW = """
import sys
import matplotlib
matplotlib.use("Agg", force=True)
import matplotlib.pyplot as plt
plt.style.use(%s)
fig, ax = plt.subplots()
ax.plot([1, 2], [2, 1], marker="o", label="a")
ax.legend()
ax.set_title("$x$")
fig.savefig(sys.argv[1], metadata={"Software": None})
"""
LEAKY = """
lines.linestyle: --
lines.marker: x
font.family: serif
mathtext.fontset: stix
axes.facecolor: black
axes.xmargin: 0.4
legend.loc: lower left
savefig.transparent: True
"""


def styles():
    "Every way in which a notebook or a module of ours asks for the style of the pictures."
    texts = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "dals").rglob("*.py")]
    return {asked for path in texts for asked in re.findall(
        r"style\.(?:use|context)\((.*?)\)", path.read_text(encoding="utf-8").replace('\\"', '"'))}


def test_the_readers_matplotlibrc_is_not_seen_in_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    [style] = styles()
    pictures = {}
    for name, text, asked in (("plain", "", style), ("leaky", LEAKY, style), ("control", LEAKY, '"dals.paper"')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "matplotlibrc").write_text(text, encoding="utf-8")
        subprocess.run([sys.executable, "-c", DRAW % asked, "figure.png"], cwd=folder, check=True,
                       env={**os.environ, "MATPLOTLIBRC": str(folder / "matplotlibrc"), "PYTHONPATH": str(ROOT)})
        pictures[name] = (folder / "figure.png").read_bytes()
    assert pictures["leaky"] == pictures["plain"] != pictures["control"] # the settings would be seen, were they not put back
