"""Render README.md from nbs/index.ipynb as it is committed, outputs included; `--check` only says whether they agree."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def render() -> str:
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    shown = []
    for cell in notebook.cells:
        if "#| hide" in cell.source: continue
        if "#| echo: false" in cell.source: cell.metadata["transient"] = {"remove_source": True}
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
        shown.append(cell)
    notebook.cells = shown
    notebook.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"\]\((?!\w+:|#)", "](nbs/", text).replace("](nbs/../", "](")  # links start at the root here
    lines = [line.rstrip() for line in text.strip().splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(["<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->", *kept]) + "\n"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        if readme.read_text() != render(): sys.exit("README.md is not what nbs/index.ipynb renders to: run `make readme` and commit it.")
    else:
        readme.write_text(render())
