"The page as a reader meets it: what stands first, headings, links, one line a cell, colours that can be read, and how heavy it is."
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dals.lab.render import page, save_figure, save_table, simple_table, styled
from dals.lab.store import Store
from dals.paper.claims import claims_html, claims_rows, claims_verdict, rulings
from dals.paper.page import EXPERIMENTS, build_index
from dals.paper.published import PUBLICATION
from dals.paper.tables import table2, table2_about, table2_html, table2_rows, table2_verdict, table3, table3_about, table3_html, table3_rows

ROOT = Path(__file__).resolve().parent.parent
STYLE = (ROOT / "dals" / "lab" / "templates" / "style.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    "The page from the published records, with the three tables that make most of it and one picture"
    from matplotlib.figure import Figure
    out, store = tmp_path_factory.mktemp("page"), Store(local="_none")
    two, three, found = table2(store.runs()), table3(store.runs()), rulings(store.runs(variant="*"))
    save_table(table2_html(two), "table2_benchmark", out, table2_rows(two), table2_about(two))
    save_table(table3_html(three), "table3_convergence", out, table3_rows(three), table3_about(three))
    save_table(claims_html(found), "claims", out, claims_rows(found), {"verdict": claims_verdict(found)})
    save_figure(Figure(), "audit_4_best", out, alt="Ours beside the paper's.")
    return build_index(out).read_text(encoding="utf-8")


class Outline(HTMLParser):
    "Headings with their levels, ids, links within the page, summaries, and the text of each cell that nobody has to open"

    def __init__(self, text):
        super().__init__()
        self.levels, self.ids, self.links, self.cells, self.open, self.summaries = [], [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if re.fullmatch(r"h\d", tag): self.levels.append(int(tag[1]))
        if "id" in attributes: self.ids.append(attributes["id"])
        if attributes.get("href", "").startswith("#"): self.links.append(attributes["href"][1:])
        if tag == "td": self.cells.append([])
        self.summaries += tag == "summary"
        if tag not in ("meta", "link", "img", "wbr"): self.open.append(tag)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if "td" in self.open and ("details" not in self.open or "summary" in self.open) and data.strip():
            self.cells[-1].append(data.strip())


def test_the_first_screen_says_which_paper_what_was_asked_and_what_came_out(text):
    marks = [PUBLICATION["title"], PUBLICATION["authors"], f'href="{PUBLICATION["url"]}"', "What was asked here",
             "Can the numbers be had again?", table2_verdict(table2(Store(local="_none").runs()))[:60],
             "Do the conclusions hold?", "Is it the strategy, or its rate?",
             '<section id="table2">', '<section id="picture">', '<nav id="contents"', '<section id="glance">', '<section id="table1">']
    places = [text.index(mark.replace("'", "&#39;")) for mark in marks]
    assert places == sorted(places) and "No answer yet: the records or the page of Tuned are missing." in text
    assert PUBLICATION["title"] in (cited := (ROOT / "CITATION.cff").read_text(encoding="utf-8")) and PUBLICATION["url"] in cited


def test_headings_go_down_in_steps_of_one_and_every_link_within_the_page_arrives(text):
    outline = Outline(text)
    assert outline.levels.count(1) == 1 and outline.levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids)) and {*outline.links} <= {*outline.ids}
    assert {*EXPERIMENTS, "contents", "glance"} <= {*outline.links}


def test_a_cell_of_table_2_is_one_line_and_the_rest_unfolds(text):
    table = text[text.index('<section id="table2">'):text.index('<section id="picture">')]
    outline = Outline(table)
    assert len(outline.cells) == 18 * 6 * 3 and outline.summaries > 150
    for cell in outline.cells:
        assert len(cell) <= 2 and all(len(word) < 20 for word in cell), cell
    assert "<details open" not in table and "onclick" not in text and "<script" not in text  # the browser's own folding: touch and keys


def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_of_letters_has_a_contrast_of_4_5_on_every_ground():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", STYLE))
    letters = set(re.findall(r"(?<![-\w])color: ([^;}]+)", STYLE))
    assert letters - {"inherit"} == {f"var(--{name})" for name in ("ink", "soft", "quiet", "yes", "no", "maybe", "near")}
    grounds = set(re.findall(r"background: (?!currentColor|linear)([^;}]+)", STYLE))
    assert grounds == {"var(--paper)", "var(--wash)", "var(--warning)"}
    for letter in letters - {"inherit"}:
        for ground in grounds:
            assert contrast(colours[letter[6:-1]], colours[ground[6:-1]]) >= 4.5, (letter, ground)


def test_the_page_is_light_and_its_fixed_part_small(text):
    assert len(text.encode()) < 250_000  # the whole page, with the tables of every notebook, is to stay under 400 kB
    assert len(page("", "").encode()) < 20_000


def test_headings_stay_in_sight_and_paper_is_a4_across():
    screen, printed = STYLE[:STYLE.index("@media print")], STYLE[STYLE.index("@media print"):]
    assert re.search(r"\.dals thead \{ position: sticky; top: 0", screen)
    assert re.search(r"th\[scope=row\].*?\{ position: sticky; left: 0", screen)
    assert "size: A4 landscape" in printed and re.search(r"\.scroll \{ overflow: visible; max-height: none", printed)


def test_a_fragment_in_a_notebook_styles_nothing_but_itself():
    rules = re.sub(r"/\*.*?\*/|\([^()]*\)", "", STYLE, flags=re.S)
    selectors = [one.strip() for group in re.findall(r"([^{}]+)\{", rules) if "@" not in group for one in group.split(",")]
    assert len(selectors) > 100 and [one for one in selectors if not re.match(r"\.(dals|page)\b", one)] == []
    assert re.findall(r'<div class="([^"]*)"', styled("x")) == ["dals"]


def test_whatever_a_template_is_given_stays_text():
    nasty = '<script>"&'
    html = simple_table(nasty, [nasty], [[nasty, nasty]], nasty)
    assert html.count("&lt;script&gt;&#34;&amp;") == 6 and "<script" not in html
