"The repository itself: notebooks clean, library in sync with them, README in sync, lint and types, wheel, no path of anybody's machine."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command, cwd=ROOT, **kwargs):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    "A copy of the sources, so that a check never touches the checkout"
    for name in ("nbs", "dals", "settings.ini", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("_out", "_reproduced", "__pycache__", ".ipynb_checkpoints")
        if source.is_dir(): shutil.copytree(source, tmp_path / name, ignore=ignore)
        else: shutil.copy(source, tmp_path / name)
    return tmp_path


def texts(folder, pattern):
    found = [path for path in sorted(folder.rglob(pattern)) if "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}


def changed(before, after): return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def test_notebooks_are_clean(copy):
    before = texts(copy / "nbs", "*.ipynb")
    run(BIN / "nbdev_clean", cwd=copy)
    assert changed(before, texts(copy / "nbs", "*.ipynb")) == []


def test_library_is_what_the_notebooks_export(copy):
    def library(): return {**texts(copy / "dals", "*.py"), **texts(copy, "*.toml"), **texts(copy, "*.ini")}
    before = library()
    run(BIN / "nbdev_export", cwd=copy)
    assert changed(before, library()) == []


def test_readme_is_what_the_index_renders_to():
    run(sys.executable, ROOT / "tools" / "readme.py", "--check")


def without_encoding(source):
    "The calls that read or write text in whatever encoding the machine has"
    for call in ast.walk(ast.parse(source)):
        name = isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", None))
        if not name or name not in ("open", "read_text", "write_text") or {word.arg for word in call.keywords} & {"encoding", None}:
            continue
        if name == "open": # of a path the mode comes first; `os.open` and its like are about bytes
            mode = [word.value for word in call.keywords if word.arg == "mode"] or call.args[isinstance(call.func, ast.Name):][:1]
            of = getattr(getattr(call.func, "value", None), "id", None)
            if of in ("os", "Image", "tarfile") or "b" in "".join(map(ast.unparse, mode)):
                continue
        yield ast.unparse(call)


def test_text_is_utf8_wherever_it_is_read_or_written():
    assert [*without_encoding("open(a)\nb.read_text()\nc.open('w')\nopen(d, mode='r')\nopen(e, 'rb')\nos.open(f, 1)")] == [
        "open(a)", "b.read_text()", "c.open('w')", "open(d, mode='r')"]
    for folder in ("benchmarks", "dals", "template", "tests", "tools"):
        for name, source in texts(ROOT / folder, "*.py").items():
            assert not [*without_encoding(source)], f"{folder}/{name}"
    for name, text in texts(ROOT / "nbs", "*.ipynb").items():
        if any(part.startswith("_") for part in Path(name).parts[:-1]):
            continue
        for cell in json.loads(text)["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.startswith("%%"):
                assert not [*without_encoding(source)], f"nbs/{name}: {source[:80]}"


def test_ruff_and_mypy():
    run(BIN / "ruff", "check", "benchmarks", "dals", "template", "tests", "tools")
    run(BIN / "mypy")


def test_every_picture_has_alt_text_and_no_notebook_ends_in_an_error():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if any(part.startswith(("_", ".")) for part in path.relative_to(ROOT).parts): continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error", f"{path.name}: {source}"
                if "image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}):
                    assert re.search(r"#\| fig-alt: .{30,}", source), f"{path.name}: a picture without alt text\n{source}"


def tracked():
    "The files of the repository; in a copy without git, those outside the folders that it would ignore"
    if shutil.which("git") and (ROOT / ".git").exists():
        return [name for name in run("git", "ls-files", "-z").split("\0") if name]
    ignored = re.compile(r"\.venv|__pycache__|.*\.egg-info|build|dist|_.*|\..*_cache|\.hypothesis|\.ipynb_checkpoints")
    return [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")
            if path.is_file() and not any(ignored.fullmatch(part) for part in path.relative_to(ROOT).parts[:-1])]


def test_nothing_names_a_machine():
    hosts = re.compile(r"/(work|tmp|root|home)/\w|/usr/local/")
    endings = (".ipynb", ".py", ".md", ".json", ".toml", ".ini", ".yml")
    texts = [ROOT / name for name in tracked() if name.endswith(endings) and name != "tests/test_repository.py"]
    found = [path.name for path in texts if path.exists() and hosts.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_library_imports_neither_nbdev_nor_fastcore():
    for name, text in texts(ROOT / "dals", "*.py").items():
        if name != "_modidx.py":
            assert not re.search(r"^\s*(import|from)\s+(nbdev|fastcore)", text, re.M), name


BARE = """
import sys
class Only:
    "An environment with torch alone: everything else that a module of ours might reach for is not there"
    absent = {"nbdev", "fastcore", "transformers", "datasets", "torchvision", "matplotlib", "scipy", "pandas", "papermill", "timm",
              "pytorch_optimizer"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.absent: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Only())
from dals import DALS, DALSFast, DALSAcc, layer_groups, STRATEGIES, fit
import importlib, pkgutil, dals
for module in pkgutil.walk_packages(dals.__path__, "dals."):
    importlib.import_module(module.name)
print(len(STRATEGIES))
"""


def test_the_source_distribution_is_the_repository(tmp_path):
    "Whoever unpacks it can run the tests"
    import tarfile
    if not (ROOT / ".git").exists(): pytest.skip("this is a copy without git, whose files nobody has listed")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert {name for name in tracked() if not name.startswith(".ci/") and (ROOT / name).exists()} <= inside


def test_built_wheel_imports_with_torch_alone(copy, tmp_path):
    "The wheel, unpacked where nothing of the checkout is, in a process that finds torch and refuses every extra"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", cwd=copy)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    templates = [path.relative_to(copy / "dals") for path in (copy / "dals").rglob("templates/*")]
    assert len(templates) > 8
    for data in ("paper.mplstyle", "py.typed", "paper/data/table2_benchmark.csv", *templates):
        assert (site / "dals" / data).exists(), data
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    out = run(sys.executable, "-c", "import dals\nprint(dals.__file__)\n" + BARE, cwd=elsewhere, env=environment)
    assert out.splitlines() == [str(site / "dals" / "__init__.py"), "18"]
    show = "from dals.lab.render import page, simple_table\nprint(page('made', simple_table('a', ['b'], [['c']])))"
    assert '<th scope="row">c</th>' in run(sys.executable, "-c", show, cwd=elsewhere, env=environment)
    assert re.fullmatch(r"dals \d+\.\d+\.\d+\n", run(sys.executable, "-m", "dals", "--version", cwd=elsewhere, env=environment))
    (metadata,) = site.glob("dals-*.dist-info/METADATA")
    head, page = metadata.read_text(encoding="utf-8").split("\n\n", 1)
    assert {"Homepage", "Documentation", "Issues", "Paper"} <= {*re.findall(r"^Project-URL: (\w+),", head, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", page) # on an index there is nothing beside the page
    assert len(links) > 50 and all(link.startswith(("https://", "#")) for link in links)
    assert re.search(r"!\[[^\]]+\]\(https://\S+/raw/main/nbs/images/\S+\.png\)", page)


def asked_and_pinned(name, *extras):
    "What pyproject.toml asks for, in all extras or in these, and the versions of a constraints file."
    from packaging.requirements import Requirement
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    groups = [project["dependencies"], *(optional[extra] for extra in extras or optional)]
    asked = [requirement for group in groups for requirement in map(Requirement, group) if requirement.name != project["name"]]
    pinned = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (version,) = requirement.specifier
            assert version.operator == "==", line
            pinned[requirement.name.lower().replace("_", "-")] = version.version
    return [(requirement, pinned[requirement.name.lower().replace("_", "-")]) for requirement in asked]


def test_constraints_hold_a_version_of_everything_that_the_package_asks_for_and_none_below_its_bound():
    for requirement, version in asked_and_pinned("constraints.txt"):
        assert version in requirement.specifier, f"{requirement} against {version}"


def test_the_lowest_constraints_are_the_bounds_of_all_that_users_install():
    "A bound of 2.9 is promised by its first release, 2.9.0."
    found = asked_and_pinned("constraints-lowest.txt", "text", "offline", "vision", "report", "cluster", "bench", "test")
    assert len({requirement.name for requirement, _ in found}) > 15
    for requirement, version in found:
        (bound,) = requirement.specifier
        parts = bound.version.split(".")
        assert bound.operator == ">=" and version.split(".") == parts + ["0"] * (len(version.split(".")) - len(parts)), \
            f"{requirement} against {version}"


def workflows():
    return {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def test_workflows_test_both_ends_and_may_write_nothing_else_than_pages_and_releases():
    texts = workflows()
    assert "-c ${{ matrix.constraints }} " in texts["test.yml"]
    for name in ("constraints.txt", "constraints-lowest.txt"):
        assert f"constraints: {name}," in texts["test.yml"] and (ROOT / name).exists()
    files = re.findall(r"tests/test_\w+\.py", texts["test.yml"])
    assert len(files) > 5 and all((ROOT / name).exists() for name in files)
    for name, text in texts.items():
        allowed = {"docs.yml": ["pages: write", "id-token: write"], "release.yml": ["id-token: write", "attestations: write"]}
        assert re.findall(r"[\w-]+: write", text) == allowed.get(name, []), name
        assert re.search(r"^permissions: \{", text, re.M), name
        for action in re.findall(r"uses: (.*)", text):
            pages = name == "docs.yml" and re.fullmatch(r"(actions/(upload-pages-artifact|deploy-pages)|quarto-dev/.*)@v\d+", action)
            index = name == "release.yml" and action == "pypa/gh-action-pypi-publish@release/v1"
            assert pages or index or re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
