"The recipes of chapter 4.18 for dask, word for word: who may send code to a scheduler, and on which addresses it listens."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120 # seconds for processes that take a few to start


def recipes():
    "The two shell blocks of the chapter that start a scheduler: for one machine, and for Slurm."
    cells = json.loads((ROOT / "nbs" / "4_workshop" / "18_cli.ipynb").read_text(encoding="utf-8"))["cells"]
    blocks = [block for cell in cells if cell["cell_type"] == "markdown"
              for block in re.findall(r"```bash\n(.*?)```", "".join(cell["source"]), re.S)]
    return [block for block in blocks if "dask scheduler" in block]


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def follow(tmp_path):
    "Runs a recipe on a free port, in a folder of its own, with stand-ins for Slurm and for `dals`, which writes down its environment."
    jobs = []

    def run(recipe):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        tools = tmp_path / "tools"
        program(tools / "srun", '#!/bin/sh\nexec "$@"\n')
        program(tools / "hostname", "#!/bin/sh\necho 127.0.0.1\n")
        program(tools / "dask", f'#!/bin/sh\nexec {sys.executable} -m dask "$@"\n')
        program(tools / "dals", f"#!/bin/sh\n{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))' > told.tmp\n"
                                "mv told.tmp told.json\nsleep 600\n")
        program(tools / "sleep", f'#!/bin/sh\n[ "$1" = 20 ] || exec {shutil.which("sleep")} "$@"\n')
        program(tmp_path / ".venv" / "bin" / "activate", "")
        said = open(tmp_path / "said", "w", encoding="utf-8")
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        job = subprocess.Popen(["bash", "-c", recipe.replace("8786", str(port))], cwd=tmp_path, env=environment, stdout=said, stderr=said,
                               start_new_session=True)
        jobs.append(job)
        told, end = tmp_path / "told.json", time.monotonic() + PATIENCE
        while not told.exists() or sum(1 for _ in listening(job)) < 2:
            assert time.monotonic() < end and job.poll() is None, (tmp_path / "said").read_text(encoding="utf-8")
            time.sleep(0.2)
        return job, port, json.loads(told.read_text(encoding="utf-8"))

    yield run
    for job in jobs:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def listening(job):
    "The addresses on which the recipe's processes listen."
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            yield from (at.laddr.ip for at in process.net_connections() if at.status == psutil.CONN_LISTEN)
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue


SEND = """
import os, sys
from distributed import Client
client = Client(sys.argv[1], timeout=float(sys.argv[2]))
client.wait_for_workers(1, timeout=100)
assert client.submit(os.getpid).result(timeout=60) != os.getpid()
"""


def send(address, environment, seconds):
    "Whether somebody with this environment gets code run there, and what was said."
    done = subprocess.run([sys.executable, "-c", SEND, address, str(seconds)], env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def strangers(environment):
    return {name: value for name, value in environment.items() if not name.startswith("DASK_")}


def test_there_is_a_recipe_for_one_machine_and_one_for_many_and_the_dashboard_is_off_in_both():
    here, many = recipes()
    assert "--host 127.0.0.1" in here and "--protocol tls" in many
    for recipe in recipes():
        starts = [line for line in recipe.splitlines() if re.search(r"\bdask (scheduler|worker)\b", line)]
        assert len(starts) == 2 and all("--no-dashboard --dashboard-address 127.0.0.1:0" in line for line in starts)


@pytest.mark.skipif(not hasattr(os, "killpg") or not shutil.which("bash"), reason="the recipes are for bash")
def test_on_one_machine_everything_listens_on_the_loopback_address_alone(follow):
    job, port, environment = follow(recipes()[0])
    works, said = send(f"tcp://127.0.0.1:{port}", environment, 60)
    assert works, said
    assert set(listening(job)) == {"127.0.0.1"}


@pytest.mark.skipif(not hasattr(os, "killpg") or not shutil.which("bash"), reason="the recipes are for bash")
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the key, is not installed")
def test_between_machines_only_who_has_the_key_of_the_job_gets_code_run(follow, tmp_path):
    job, port, environment = follow(recipes()[1])
    works, said = send(f"tls://127.0.0.1:{port}", environment, 60)
    assert works, said
    [folder] = tmp_path.glob(".tls-*")
    assert folder.stat().st_mode & 0o077 == 0
    own = tmp_path / "own"
    own.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=dals", "-keyout", own / "key.pem",
                    "-out", own / "cert.pem"], check=True, capture_output=True)
    forged = {name: value.replace(str(folder), str(own)) for name, value in environment.items()}
    trusting = {**forged, "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": environment["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"]}
    for address, who in ((f"tcp://127.0.0.1:{port}", strangers(environment)), (f"tls://127.0.0.1:{port}", trusting)):
        works, said = send(address, who, 5)
        assert not works and re.search("OSError|Timeout|CommClosed", said), said
    os.kill(job.pid, signal.SIGTERM)
