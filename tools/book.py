"""The chapters as a static book, without Quarto: one HTML page a notebook, as committed, outputs included.

    python tools/book.py [FOLDER]    write it, into _reproduced/book if no folder is named
"""
import ast
import configparser
import re
import sys
from html import escape
from itertools import groupby
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any, NamedTuple

import jinja2
import nbformat
import yaml
from latex2mathml.converter import convert
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


class Entry(NamedTuple):
    "A line of the contents"
    part: str | None
    text: str
    href: str # of the notebook, from nbs/

    @property
    def page(self) -> str:
        return self.href.removesuffix(".ipynb") + ".html"


def contents() -> list[Entry]:
    "The sidebar of the site, line by line"
    rows = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [Entry(row.get("section"), line["text"], line["href"]) for row in rows for line in row.get("contents", [row])]


def home() -> str:
    "Where the repository lives"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["git_url"]


class Renderer(IPythonRenderer):
    "Markdown with formulas as MathML, which browsers draw without a script, and links that stay inside the book"
    def __init__(self, here: str):
        super().__init__(escape=False)
        self.here, self.headings = here, list[tuple[int, str, str]]() # the page; level, anchor and text of what stands on it

    def block_math(self, body: str) -> str:
        return f'<div class="formula" tabindex="0">{convert(body.strip(), display="block")}</div>'

    def inline_math(self, body: str) -> str:
        return convert(body.strip())

    def block_code(self, code: str, info: str | None = None) -> str:
        return coloured(code, info or "text")

    def table(self, text: str) -> str:
        return f'<div class="wide" tabindex="0"><table>\n{text}</table></div>\n'

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"\s", "-", re.sub(r"<[^>]+>|[^\w\s-]", "", text).strip().lower())
        self.headings.append((level, anchor, text))
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return f'<a href="{escape(moved(url, self.here))}">{text}</a>'


def moved(url: str, here: str) -> str:
    "A link of a notebook as one of its page: to a page of the book, else to the repository"
    if re.match(r"\w+:|#", url):
        return url
    path, _, anchor = url.partition("#")
    target = normpath(f"nbs/{here}/../{path}")
    if target.startswith("nbs/") and target.endswith(".ipynb"):
        return relpath(target.removesuffix(".ipynb") + ".html", normpath(f"nbs/{here}/..")) + f"#{anchor}" * bool(anchor)
    return f"{home()}/blob/main/{target}" + f"#{anchor}" * bool(anchor)


def coloured(code: str, language: str) -> str:
    "Code as HTML"
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return f'<div class="code" tabindex="0">{highlight(code, lexer, HtmlFormatter(nowrap=False))}</div>'


def output(data: Any, alt: str, renderer: Renderer) -> str:
    "What a cell printed, said or drew"
    if data.output_type == "stream":
        return f"<pre tabindex=\"0\">{ansi2html(data.text)}</pre>"
    kinds = data.data
    if "image/png" in kinds:
        return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{kinds["image/png"].strip()}"></figure>'
    if "text/html" in kinds:
        return f'<div class="wide" tabindex="0">{kinds["text/html"]}</div>'
    if "text/markdown" in kinds:
        return f'<div>{MarkdownWithMath(renderer)(kinds["text/markdown"])}</div>'
    return f"<pre tabindex=\"0\">{escape(kinds['text/plain'])}</pre>"


def imports_alone(code: str) -> bool:
    "Whether a cell only imports: nobody reads that before the chapter"
    if re.search(r"^[%!]", code, re.M):
        return False
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) or "plt.style" in ast.unparse(node) for node in ast.parse(code).body)


def cell_html(cell: Any, renderer: Renderer, module: str) -> str:
    "A cell, by the directives of its first lines"
    if cell.cell_type == "markdown":
        return MarkdownWithMath(renderer)(cell.source)
    said = dict(re.findall(r"^#\| *([\w-]+)(?:: *(.*))?$", cell.source, re.M))
    if cell.cell_type != "code" or "hide" in said or "default_exp" in said:
        return ""
    code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    shown = coloured(code, "python") if code and said.get("echo") != "false" else ""
    if shown and "export" in said:
        shown = f'<div class="exported"><small>{module}</small>{shown}</div>'
    if shown and (said.get("code-fold") == "true" or imports_alone(code)):
        shown = f"<details><summary>{escape(said.get('code-summary', 'imports').strip(chr(34)))}</summary>{shown}</details>"
    return shown + "".join(output(one, said.get("fig-alt", ""), renderer) for one in cell.outputs)


def page(entry: Entry, book: list[Entry], template: jinja2.Template) -> str:
    "A notebook as HTML"
    notebook = nbformat.read(NBS / entry.href, as_version=4)
    module = re.search(r"#\| default_exp (\S+)", "\n".join(cell.source for cell in notebook.cells))
    renderer = Renderer(entry.href)
    body = "\n".join(cell_html(cell, renderer, f"dals.{module[1]}" if module else "dals") for cell in notebook.cells)
    at = book.index(entry)
    return template.render(
        entry=entry, book=book, body=body, home=home(), link=lambda other: relpath(other.page, normpath(f"{entry.page}/..")),
        headings=[(anchor, re.sub(r"<a [^>]*>|</a>", "", text)) for level, anchor, text in renderer.headings if level == 2],
        parts=[(part, [*lines]) for part, lines in groupby(book, lambda line: line.part)],
        before=book[at - 1] if at else None, after=book[at + 1] if at + 1 < len(book) else None,
        colours=HtmlFormatter(style="xcode").get_style_defs(".highlight"))


def write(folder: Path) -> list[Path]:
    "All pages, into a folder"
    book = contents()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template, made = environment.get_template("book.html"), []
    for entry in book:
        path = folder / entry.page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(entry, book, template), encoding="utf-8")
        made.append(path)
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_reproduced" / "book"
    print(f"{len(write(folder))} pages: {folder / 'index.html'}")
