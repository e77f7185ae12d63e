"""Whether the notebooks are clean and dals/ is what they export, told from a copy, so that the checkout is not touched."""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASIDE = shutil.ignore_patterns("_out", "_reproduced", "_proc", "__pycache__", ".ipynb_checkpoints")


def files(folder: Path) -> dict[str, bytes]:
    "The notebooks and the library under a folder"
    found = [*(folder / "nbs").rglob("*.ipynb"), *(folder / "dals").rglob("*.py")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found) if "__pycache__" not in path.parts}


def main() -> int:
    "The command"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("nbs", "dals"): shutil.copytree(ROOT / name, copy / name, ignore=ASIDE)
        for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, copy)
        before, wrong = files(copy), []
        for command, what in (("nbdev_clean", "is not clean: run `nbdev_clean`"),
                              ("nbdev_export", "is not what its notebook exports: run `nbdev_export`")):
            done = subprocess.run([Path(sys.executable).parent / command], cwd=copy, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return done.returncode
            after = files(copy)
            wrong += [f"{name} {what}." for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
            before = after
    print("\n".join(wrong), end="\n" * bool(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
