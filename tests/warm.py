"""A Python that has imported torch and the notebooks' other heavy libraries: the kernels that tests start are copies of it.

`python warm.py serve FOLDER` is that Python, and `python -S warm.py -m ipykernel_launcher -f FILE` becomes a copy of it; the first to
come starts it. Where a copy would not be what a fresh Python is, a fresh one is what it becomes: with another number of threads, where
there is CUDA, whose driver does not live on in a copy, or where FOLDER is empty. dals itself is not among the imports."""
import atexit
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("torch", "torch._dynamo", "torch.utils.data", "matplotlib.pyplot", "matplotlib_inline.backend_inline", "ipykernel.kernelapp",
         "ipykernel.ipkernel", "IPython.display", "fastcore.test")
SIGNALS = signal.SIGINT, signal.SIGTERM


def serve(folder):
    "Import, then become each copy that is asked for, until the tests have ended; return what a copy is to run."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline" # as in a kernel
    for name in HEAVY:
        importlib.import_module(name)
    usable = not sys.modules["torch"].cuda.is_available()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX)
    door.bind(f"{folder}/door")
    door.listen(64)
    tests = int(Path(folder, "pid").read_text(encoding="utf-8"))
    while True:
        while not select.select([door], [], [], 1)[0]:
            try:
                os.kill(tests, 0)
            except ProcessLookupError:
                sys.exit()
        line, _ = door.accept()
        if not usable:
            line.close()
        elif os.fork() == 0:
            door.close()
            return attend(line)
        else:
            line.close()


def attend(line):
    "Make the copy, pass on signals and its status, and end it where its client has ended."
    text, files, _, _ = socket.recv_fds(line, 1 << 20, 3)
    asked = json.loads(text)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    copy = os.fork()
    if copy == 0:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        line.close()
        return asked
    ended = os.pidfd_open(copy)
    while ended not in select.select([line, ended], [], [])[0]:
        if not (heard := line.recv(1)):
            os.killpg(copy, signal.SIGKILL)
            break
        os.killpg(copy, heard[0])
    line.send(bytes([os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) & 255]))
    os._exit(0)


def become(asked):
    "What `python -m` does with these words, in this folder and this environment."
    os.environ.clear()
    os.environ.update({name: value for name, value in asked["environment"].items() if name != "JPY_PARENT_PID"}) # a copy has another parent
    os.chdir(asked["folder"])
    places = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*places, *(place for place in sys.path[1:] if place not in places)]
    sys.argv[:] = asked["words"][1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0) # the usual end takes every module apart, for nobody, and the pages that copies share: longer than a short chapter takes


def client(folder, words):
    "Wait for a copy that does it; return its status, or None where there is no copy to be had."
    if not folder or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    line = socket.socket(socket.AF_UNIX)
    with open(f"{folder}/lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(f"{folder}/door"):
            server = subprocess.Popen([sys.executable, __file__, "serve", folder], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL, start_new_session=True, cwd="/")
            while not os.path.exists(f"{folder}/door") and server.poll() is None:
                time.sleep(0.02)
    try:
        line.connect(f"{folder}/door")
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(line, [json.dumps(asked).encode()], [0, 1, 2])
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: line.send(bytes([number])))
        return (line.recv(1) or [None])[0]
    except OSError:
        return None


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        become(serve(sys.argv[2]))
    else:
        status = client(os.environ["WARM_PYTHON"], sys.argv[1:])
        if status is None:
            os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
        os._exit(status)
