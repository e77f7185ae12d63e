"The site and the book: the sidebar has every notebook and nothing else, nbdev can prepare each of them, every page of the book is whole."
import configparser
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import bs4
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


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The book, page by page: its place and its HTML"
    pytest.importorskip("latex2mathml")
    folder = tmp_path_factory.mktemp("book")
    subprocess.run([sys.executable, ROOT / "tools" / "book.py", folder], check=True, capture_output=True)
    return {path.relative_to(folder).as_posix(): bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for path in folder.rglob("*.html")}


def test_the_book_has_a_page_for_every_notebook_and_its_links_arrive(pages):
    assert sorted(pages) == sorted(path.relative_to(ROOT / "nbs").with_suffix(".html").as_posix() for path in NOTEBOOKS)
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    outside = set()
    for name, page in pages.items():
        for link in (tag["href"] for tag in page.find_all("a", href=True)):
            if re.match(r"https?:", link):
                outside.add(link)
                continue
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            assert target in pages, f"{name}: {link}"
            assert not anchor or anchor in anchors[target], f"{name}: {link}"
    for link in outside: # what is not in the book is in the repository
        if found := re.match(r"https://github.com/[^/]+/[^/]+/blob/main/([^#]+)", link):
            assert (ROOT / found[1]).exists(), link


def test_a_page_of_the_book_is_whole(pages):
    for name, page in pages.items():
        assert len(page.find_all("h1")) == 1 and page.title.string.endswith("- dals"), name
        assert len(page.select("[aria-current=page]")) == 1, name
        assert all(len(image["alt"]) >= 30 for image in page.find_all("img")), name
        for shown in page.select("pre, code, style, script, math, table"): # a dollar or a backslash there is itself
            shown.extract()
        assert not re.search(r"\$[^$]*\\|\\[a-z]+\{|#\| ", page.get_text()), name
