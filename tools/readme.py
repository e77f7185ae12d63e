"""Render README.md and its pictures from nbs/index.ipynb as it is committed, outputs included; `--check` only says whether they agree."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def render() -> dict[Path, bytes]:
    "What the files should hold"
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    shown, alt = [], {}
    for cell in notebook.cells:
        if "#| hide" in cell.source: continue
        if "#| echo: false" in cell.source: cell.metadata["transient"] = {"remove_source": True}
        if described := re.search(r"#\| fig-alt: (.+)", cell.source): alt[len(shown)] = described[1]
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
        shown.append(cell)
    notebook.cells = shown
    notebook.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    files = {}
    for name, content in resources["outputs"].items():  # output_CELL_OUTPUT.png
        picture = Path("nbs") / "images" / f"index_{name}"
        text = text.replace(f"![png]({name})", f"![{alt[int(name.split('_')[1])]}](../{picture.as_posix()})")
        files[ROOT / picture] = content
    text = re.sub(r"\]\((?!\w+:|#)", "](nbs/", text).replace("](nbs/../", "](")  # links start at the root here
    lines = [line.rstrip() for line in text.strip().splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    files[ROOT / "README.md"] = "\n".join(["<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->", *kept, ""]).encode()
    return files


if __name__ == "__main__":
    for path, content in render().items():
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            sys.exit(f"{path.relative_to(ROOT)} is not what nbs/index.ipynb renders to: run `make readme` and commit it.")
