"""The wings of dals/, which arrows their imports draw, and docs/architecture.md made from the same walk; `--check` only says what is wrong.

    python tools/house.py            write docs/architecture.md and the picture in CONTRIBUTING.md
    python tools/house.py --check    exit with 1 where an import goes the wrong way or a file is not what the walk draws
    python tools/house.py --check --root COPY
"""
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINGS = {  # each wing, and those that it may import besides itself
    "optim": (),
    "lesson": ("optim",),
    "recipes": ("optim",),
    "lab": ("optim", "recipes"),
    "paper": ("optim", "recipes", "lab"),
    "integrations": ("optim",),
    "cli": ("optim", "recipes", "lab", "paper"),
}
TAKE_HOME = {"optim": "torch"}  # a wing that needs this package and the standard library alone
GUARDED = {"optim": "triton"}  # what a wing may import inside an `if` or a `try`, where it is there
BY_NAME = ("Registry", "Later", "import_module")  # calls that are given the modules to import, in words
DOOR = ("__version__",)  # what modules may take from the package itself, whose other names are made of them
MARKS = "<!-- the house: drawn by tools/house.py -->", "<!-- end of the house -->"


@dataclass(frozen=True)
class Import:
    "One import statement's target"
    target: str  # a module of ours, another package's top name, or `dals:NAME` for a name from the package itself
    line: int
    when: str  # "import" of the module, "call" of a function, or "typing": read by type checkers alone
    guarded: bool  # inside an `if` or a `try`


@dataclass(frozen=True)
class Module:
    "One file of the library"
    name: str  # dotted
    path: str  # from the root
    title: str  # first line of the docstring
    lines: int
    notebook: str | None  # where it is written, from the root
    imports: tuple[Import, ...]

    @property
    def wing(self) -> str:
        return (self.name.split(".") + [""])[1]


def imports(
    tree: ast.Module,  # a parsed file
    package: str,  # that its relative imports start from, such as "dals.lab"
    ours: frozenset[str],  # the dotted names of all modules
) -> Iterator[Import]:
    "Every import of a file, at its top and inside its functions"
    def walk(node: ast.AST, when: str, guarded: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name if alias.name in ours else alias.name.split(".")[0], node.lineno, when, guarded)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[:len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                if f"{base}.{alias.name}" in ours: target = f"{base}.{alias.name}"
                elif base == "dals": target = f"dals:{alias.name}"
                else: target = base if base.startswith("dals.") else base.split(".")[0]
                yield Import(target, node.lineno, when, guarded)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in BY_NAME:
            for word in ast.walk(node):  # modules that are named for a later import, "dals.lab.texts:RTE"
                named = str(word.value).partition(":")[0] if isinstance(word, ast.Constant) else ""
                if named in ours: yield Import(named, word.lineno, "call", guarded)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body: yield from walk(statement, "typing", True)
            for statement in node.orelse: yield from walk(statement, when, guarded)
        else:
            inside = "call" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and when != "typing" else when
            for part in ast.iter_child_nodes(node):
                yield from walk(part, inside, guarded or isinstance(node, (ast.If, ast.Try)))
    yield from walk(tree, "import", False)


@cache
def parsed(
    text: str,  # of a file
    package: str,  # as in `imports`
    ours: frozenset[str],  # as in `imports`
) -> tuple[str, tuple[Import, ...]]:
    "The first line of a file's docstring, and its imports"
    tree = ast.parse(text)
    return (ast.get_docstring(tree) or "").partition("\n")[0], tuple(imports(tree, package, ours))


def modules(root: Path = ROOT) -> dict[str, Module]:
    "The library under `root`, by dotted name"
    paths = {}
    for path in sorted((root / "dals").rglob("*.py")):
        if path.name not in ("_modidx.py", "__main__.py") and "__pycache__" not in path.parts: # an index, and a call of the command
            parts = path.relative_to(root).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8")
        title, arrows = parsed(text, name if path.name == "__init__.py" else name.rpartition(".")[0], frozenset(paths))
        source = re.search(r"File to edit: (?:\.\./)*(\S+\.ipynb)\.", text)
        found[name] = Module(name, path.relative_to(root).as_posix(), title, len(text.splitlines()), source and source[1], arrows)
    return found


def wing_of(target: str) -> str | None:
    "The wing of an imported module of ours; None for other packages and for the package itself"
    return target.split(".")[1] if target.startswith("dals.") else None


def faults(house: dict[str, Module]) -> list[str]:
    "Arrows that turn, packages that a wing may not need, circles, and modules that do not say what they do, each in one sentence"
    said = []
    for module in house.values():
        where = module.path
        if not module.title:
            said.append(f"{where} has no docstring: write the `> ` line under its notebook's title.")
        if module.name == "dals": continue  # the door: it names everything
        if module.wing not in WINGS:
            said.append(f"{where} is in no wing: the wings are {', '.join(WINGS)}.")
            continue
        for it in module.imports:
            wing, at = wing_of(it.target), f"{where}:{it.line}"
            if wing and wing != module.wing and wing not in WINGS[module.wing]:
                said.append(f"{at} imports {it.target}: {module.wing} may import {' and '.join(WINGS[module.wing]) or 'no other wing'}.")
            elif it.target.startswith("dals:") and it.target[5:] not in DOOR:
                said.append(f"{at} takes {it.target[5:]} from the package itself: import it from the module that makes it.")
            elif module.wing in TAKE_HOME and not wing and it.target.partition(":")[0] not in ("dals", TAKE_HOME[module.wing]):
                if it.target in sys.stdlib_module_names or it.guarded and GUARDED.get(module.wing) == it.target: continue
                said.append(f"{at} imports {it.target}: {module.wing} needs {TAKE_HOME[module.wing]} and the standard library alone.")
    graph = {name: [it.target.partition(":")[0] for it in module.imports if it.when == "import" and it.target.partition(":")[0] in house]
             for name, module in house.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        said.append(f"These modules import each other in a circle: {' <- '.join(error.args[1])}.")
    return said


def picture(house: dict[str, Module]) -> str:
    "The wings, and an arrow from each to those that it really imports, as a mermaid diagram"
    arrows = Counter((module.wing, wing_of(it.target)) for module in house.values() for it in module.imports if module.wing)
    lines = ["```mermaid", "flowchart RL"]
    for wing in WINGS:
        inside = [name.split(".")[-1] for name in house if name.startswith(f"dals.{wing}.")]
        rows = [", ".join(inside[i:i + 4]) for i in range(0, len(inside), 4)]
        lines.append(f'  {wing}["<b>{wing}</b>{"".join("<br/>" + row for row in rows)}"]')
    lines += [f"  {wing} --> {other}" for wing in reversed(WINGS) for other in WINGS if other != wing and arrows[wing, other]]
    return "\n".join([*lines, "```"])


def architecture(house: dict[str, Module]) -> str:
    "docs/architecture.md"
    text = ["<!-- Made from the imports of dals/ by tools/house.py: run `make house`. -->", "# The house", "",
            "An arrow points from a wing to one that it imports. No wing imports a later one, and no two modules import each other:",
            "`python tools/house.py --check` fails where an arrow turns. `optim` needs torch and the standard library alone.", "",
            picture(house), ""]
    for wing in WINGS:
        within = [m for name, m in house.items() if m.wing == wing]
        rows = [m for m in within if not m.path.endswith("__init__.py")]
        head = next((m.title for m in within if m.path.endswith("__init__.py")), "The command.")
        others = sorted({it.target for m in rows for it in m.imports if not it.target.startswith("dals") and it.when != "typing"}
                        - set(sys.stdlib_module_names))
        may = ", ".join(WINGS[wing]) or "no other wing"
        text += [f"## {wing}", "", head, "", f"May import: {may}. Packages that it names: {', '.join(others) or 'none'}.", "",
                 "| module | what it does | lines | written in |", "| --- | --- | ---: | --- |"]
        for m in rows:
            notebook = f"[{Path(m.notebook).parent.name}/{Path(m.notebook).stem}](../{m.notebook})" if m.notebook else "by hand"
            text.append(f"| `{m.name.removeprefix('dals.')}` | {m.title.replace('|', '/')} | {m.lines} | {notebook} |")
        text += [f"| | | {sum(m.lines for m in rows)} | |", ""]
    return "\n".join(text)


def drawn(house: dict[str, Module], root: Path) -> dict[Path, str]:
    "What the files that show the house should hold"
    files = {root / "docs" / "architecture.md": architecture(house)}
    guide = root / "CONTRIBUTING.md"
    if guide.exists():
        before, start, rest = guide.read_text(encoding="utf-8").partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        files[guide] = f"{before}{start}\n{picture(house)}\n{end}{after}" if start and end else f"{before}{start}{rest}"
    return files


def main(words: list[str]) -> int:
    "The command"
    root = Path(words[words.index("--root") + 1]).resolve() if "--root" in words else ROOT
    house = modules(root)
    wrong = faults(house)
    for path, content in drawn(house, root).items():
        if "--check" not in words:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            wrong.append(f"{path.relative_to(root).as_posix()} is not what the imports of dals/ draw: run `make house` and commit it.")
    print("\n".join(wrong), end="\n" * bool(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
