"Local data, where the checkout lies beside it, is offered to every test and to the notebooks that tests start."
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
if "DALS_DATA_DIR" not in os.environ and beside.is_dir():
    os.environ["DALS_DATA_DIR"] = str(beside)

# one thread a process, as in the workers of a sweep: two processes with a thread for each of two cores keep waiting for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# kernels start as copies of one Python that has imported torch (tests/warm.py), also those that commands under test start
if sys.platform == "linux" and "WARM_PYTHON" not in os.environ:
    warm = Path(tempfile.mkdtemp(prefix="dals-warm-"))
    (warm / "pid").write_text(str(os.getpid()), encoding="utf-8")
    (warm / "kernels" / "python3").mkdir(parents=True)
    words = [sys.executable, "-S", str(Path(__file__).with_name("warm.py")), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = json.dumps({"argv": words, "display_name": "python3", "language": "python"})
    (warm / "kernels" / "python3" / "kernel.json").write_text(kernel, encoding="utf-8")
    os.environ |= {"WARM_PYTHON": str(warm), "JUPYTER_PATH": os.pathsep.join(filter(None, [str(warm), os.environ.get("JUPYTER_PATH")]))}


def pytest_collection_modifyitems(items):
    "Notebooks and benchmarks first, since each takes many seconds: begun last, one would keep a worker busy while the others wait"
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_benchmarks.py"))


def pytest_unconfigure(config):
    "The last line counts what passed and what failed, also where nothing did"
    if "warm" in globals():
        shutil.rmtree(warm, ignore_errors=True)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(config, "workerinput"):
        count = {word: len(reporter.stats.get(word, [])) for word in ("passed", "failed", "error", "skipped")}
        print(f"{count['passed']} passed, {count['failed'] + count['error']} failed, {count['skipped']} skipped")

try:
    from hypothesis import settings
except ImportError: # the tests of properties say so themselves
    pass
else:
    settings.register_profile("dals", deadline=None) # a first import on a busy machine is no failure; timings belong in benchmarks
    settings.load_profile("dals")
