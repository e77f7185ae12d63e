"The wings: no import turns, optim stays at home with torch, no circle, and the drawing is the code's."
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import house  # noqa: E402


def test_no_wing_imports_a_later_one_optim_needs_torch_alone_and_no_modules_form_a_circle():
    found = house.modules()
    assert {module.wing for module in found.values()} == {"", *house.WINGS}
    assert house.faults(found) == []


def test_the_drawing_is_up_to_date():
    for path, content in house.drawn(house.modules(), ROOT).items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}: run `make house`"


def test_the_walk_sees_imports_wherever_they_stand():
    "A layering in the library that only function-level imports hold is a layering too"
    whens = {it.when for module in house.modules().values() for it in module.imports if it.target.startswith("dals.")}
    assert whens == {"import", "call", "typing"}


PLANTED = {  # a line at the end of a module, and what the check says of it
    "a later wing": ("optim/base.py", "from ..lab.store import Store", "imports dals.lab.store: optim may import no other wing."),
    "in a function": ("recipes/strategies.py", "def late():\n    from dals.paper import claims", "imports dals.paper.claims: recipes may"),
    "for types alone": ("lab/tasks.py", "if TYPE_CHECKING:\n    from dals.cli import main", "imports dals.cli: lab may import"),
    "lesson and recipes": ("lesson/fixed.py", "import dals.recipes.replay", "imports dals.recipes.replay: lesson may import optim."),
    "by its name": ("recipes/strategies.py", 'TASKS = Registry("dals.lab.texts:RTE")', "imports dals.lab.texts: recipes may import optim."),
    "by the door": ("lab/store.py", "from dals import fit", "takes fit from the package itself"),
    "another package": ("optim/joint.py", "import numpy as np", "imports numpy: optim needs torch and the standard library alone."),
    "triton unguarded": ("optim/kernels.py", "import triton", "imports triton: optim needs torch and the standard library alone."),
    "a circle": ("recipes/strategies.py", "from .replay import walk", "in a circle: dals.recipes."),
    "a room outside": ("attic.py", '"An attic"', "dals/attic.py is in no wing"),
    "no title": ("lab/attic.py", "", "dals/lab/attic.py has no docstring"),
}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "dals", tmp_path / "dals", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_import_in_a_copy_is_told(name, copy):
    where, line, said = PLANTED[name]
    with open(copy / "dals" / where, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    told = house.faults(house.modules(copy))
    assert any(said in one for one in told), told


def test_the_command_draws_a_copy_and_ends_with_1_once_an_arrow_turns(copy):
    def command(*words):
        done = subprocess.run([sys.executable, ROOT / "tools" / "house.py", *words, "--root", copy], capture_output=True, text=True)
        return done.returncode, done.stderr
    assert command() == command("--check") == (0, "")
    drawing = copy / "docs" / "architecture.md"
    assert drawing.read_bytes() == (ROOT / "docs" / "architecture.md").read_bytes()
    drawing.write_text("old", encoding="utf-8")
    assert command("--check") == (1, "docs/architecture.md is not what the imports of dals/ draw: run `make house` and commit it.\n")
    with open(copy / "dals" / "optim" / "base.py", "a", encoding="utf-8") as file:
        file.write("import dals.cli\n")
    code, told = command()
    assert code == 1 and "imports dals.cli: optim may import no other wing." in told
    assert "optim --> cli" in drawing.read_text(encoding="utf-8")
