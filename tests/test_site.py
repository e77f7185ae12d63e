"The site: the sidebar has every notebook and nothing else, and nbdev can prepare each of them."
import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb")
                   if not any(part[0] in "._" for part in path.relative_to(ROOT).parts))


def titled(path):
    "The title of a notebook"
    import nbformat
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and (found := re.match(r"# (.+)", cell.source)): return found[1]


def test_the_sidebar_is_ours_and_has_every_notebook_once_under_its_own_title():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert settings["DEFAULT"]["custom_sidebar"] == "True" # nbdev's own takes the digits off the folders
    contents = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    entries = [(part.get("section"), entry) for part in contents for entry in part.get("contents", [part])]
    assert sorted(entry["href"] for _, entry in entries) == [path.relative_to(ROOT / "nbs").as_posix() for path in NOTEBOOKS]
    for section, entry in entries:
        path = ROOT / "nbs" / entry["href"]
        number = {"1": "", "2": "2.", "3": "3.", "4": "4."}.get(path.parent.name[0])
        number = "" if number is None or section is None else f"{number}{int(path.stem.split('_')[0])} "
        assert entry["text"] == number + titled(path)
    known = ("dals", "Generations", "Evidence", "Use", "Workshop", "Experiments")
    assert len(contents) == 6 and all((section or "dals").split(":")[0] in known for section, _ in entries)
    assert "sidebar" not in (ROOT / "nbs" / ".gitignore").read_text(encoding="utf-8")


def test_the_site_takes_the_sidebar_from_that_file():
    quarto = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text(encoding="utf-8"))
    assert "sidebar.yml" in quarto["metadata-files"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbdev_can_prepare_the_notebook(path, tmp_path, monkeypatch):
    "What `nbdev_proc_nbs` does with each of them: it runs the imports, and shows the signature and docstring of what is exported"
    pytest.importorskip("nbdev")
    from nbdev import serve_drv
    from nbdev.processors import FilterDefaults
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("IN_TEST", "1") # which it sets and takes away
    serve_drv.main((path, tmp_path / path.name, FilterDefaults))
    assert (tmp_path / path.name).stat().st_size > 100
