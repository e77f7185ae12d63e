"The kernels of DALS are tested in a process of their own: Triton's interpreter must be asked for before Triton is imported."

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ONLY_ON_A_GPU = 5 # of the tests in kernels.py


def test_the_kernels_do_what_the_loop_does():
    pytest.importorskip("triton", reason="torch came without Triton")
    gpu = torch.cuda.is_available()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("kernels.py")],
                          env=os.environ | ({} if gpu else {"TRITON_INTERPRET": "1"}), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed, failed, skipped = map(int, re.findall(r"(\d+) passed, (\d+) failed, (\d+) skipped", done.stdout)[-1])
    assert passed >= 9 and failed == 0 and skipped == (0 if gpu else ONLY_ON_A_GPU)
