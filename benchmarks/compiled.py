"""What would a loop of one's own bring, by numba or in C++? One step of three updates, in turn with the library's own and AdamW, fused.

    pip install numba                    # and g++ for the other half; what is missing is left out
    python benchmarks/compiled.py        # two minutes, one thread; writes benchmarks/compiled.md, which benchmarks/step.py shows

The loops say the updates a second time, so they are no part of the library: this is what that would be worth.
"""
from __future__ import annotations

import argparse
import ctypes
import importlib.util
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import DECAY, FUSED, MODELS, SIDES, milliseconds, parameters, stepping, write_whole
from torch import Tensor

CPU, PAGE = torch.device("cpu"), Path(__file__).with_name("compiled.md")
RATE, SHARE, ALPHA, MOMENTUM = 1e-5, 0.5, 0.6, 0.9

SOURCE = r"""
#include <algorithm>
#include <cmath>
extern "C" {
void lion(long n, float* p, const float* g, float* m, float rate, float decay) {
    #pragma GCC ivdep
    for (long i = 0; i < n; i++) {
        float u = m[i] + 0.1f * (g[i] - m[i]);
        p[i] -= rate * ((u > 0) - (u < 0) + decay * p[i]);
        m[i] += 0.01f * (g[i] - m[i]);
    }
}
void adabound(long n, float* p, const float* g, float* m, float* v, float rate, float decay, float low, float high) {
    #pragma GCC ivdep
    for (long i = 0; i < n; i++) {
        float d = g[i] + decay * p[i];
        m[i] += 0.1f * (d - m[i]);
        v[i] = 0.999f * v[i] + 0.001f * d * d;
        p[i] -= rate * m[i] / std::min(std::max(std::sqrt(v[i]) + 1e-8f, low), high);
    }
}
void first(long n, const float* p, const float* g, float* f, float* m, float share, float alpha, float mu, float decay, double* norms) {
    norms[0] = norms[1] = 0;
    for (long k = 0; k < n; k += 4096) {
        float a = 0, b = 0;
        #pragma GCC ivdep
        for (long i = k; i < std::min(n, k + 4096); i++) {
            float x = f[i] + (1 - alpha) * (g[i] - f[i]), u = x + share * (g[i] - x) + decay * p[i];
            f[i] = x;
            m[i] = mu * m[i] + u;
            a += p[i] * p[i];
            b += u * u;
        }
        norms[0] += a;
        norms[1] += b;
    }
}
void second(long n, float* p, const float* m, float rate) {
    #pragma GCC ivdep
    for (long i = 0; i < n; i++) p[i] -= rate * m[i];
}
}
"""


def in_cpp(folder: str) -> dict[str, Callable[..., Any]]:
    "The four loops, called by ctypes"
    source, built = Path(folder, "loops.cpp"), Path(folder, "loops.so")
    source.write_text(SOURCE, encoding="utf-8")
    # not -ffast-math: a library linked with it makes the whole process round the smallest numbers to 0
    loose = ["-fassociative-math", "-freciprocal-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-ffinite-math-only"]
    subprocess.run(["g++", "-O3", "-march=native", *loose, "-shared", "-fPIC", source, "-o", built], check=True)
    library, loops = ctypes.CDLL(str(built)), {}
    for name, tensors, numbers in (("lion", 3, 2), ("adabound", 4, 4), ("first", 4, 4), ("second", 2, 1)):
        loop = getattr(library, name)
        loop.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * tensors, *[ctypes.c_float] * numbers, *[ctypes.c_void_p] * (name == "first")]
        loops[name] = loop
    norms = (ctypes.c_double * 2)()

    def call(name: str, *row: Tensor, numbers: tuple[float, ...]) -> Any:
        places = [x.data_ptr() for x in row]
        loops[name](row[0].numel(), *places, *numbers, *([norms] if name == "first" else []))
        return norms
    return {name: lambda row, *numbers, name=name: call(name, *row, numbers=numbers) for name in loops}


def by_numba() -> dict[str, Callable[..., Any]]:
    "The same, compiled by numba when they are first called"
    import numpy as np
    from numba import njit
    fast = njit(fastmath=True, error_model="numpy")

    @fast
    def lion(p, g, m, rate, decay):
        for i in range(p.size):
            u = m[i] + np.float32(0.1) * (g[i] - m[i])
            p[i] -= rate * (np.float32(u > 0) - np.float32(u < 0) + decay * p[i])
            m[i] += np.float32(0.01) * (g[i] - m[i])

    @fast
    def adabound(p, g, m, v, rate, decay, low, high):
        for i in range(p.size):
            d = g[i] + decay * p[i]
            m[i] += np.float32(0.1) * (d - m[i])
            v[i] = np.float32(0.999) * v[i] + np.float32(0.001) * d * d
            p[i] -= rate * m[i] / min(max(np.sqrt(v[i]) + np.float32(1e-8), low), high)

    @fast
    def first(ps, gs, fs, ms, share, alpha, mu, decay):
        w = v = 0.0
        for k in range(0, ps.size, 4096):
            p, g, f, m = ps[k:k + 4096], gs[k:k + 4096], fs[k:k + 4096], ms[k:k + 4096]
            a, b = np.float32(0), np.float32(0)
            for i in range(p.size):
                x = f[i] + (np.float32(1) - alpha) * (g[i] - f[i])
                u = x + share * (g[i] - x) + decay * p[i]
                f[i] = x
                m[i] = mu * m[i] + u
                a += p[i] * p[i]
                b += u * u
            w, v = w + a, v + b
        return w, v

    @fast
    def second(p, m, rate):
        for i in range(p.size):
            p[i] -= rate * m[i]

    def call(loop: Any, row: list[Tensor], numbers: tuple[float, ...]) -> Any:
        return loop(*[x.numpy() for x in row], *[np.float32(x) for x in numbers])
    return {loop.__name__: lambda row, *numbers, loop=loop: call(loop, row, numbers) for loop in (lion, adabound, first, second)}


def steps_of(loops: dict[str, Callable[..., Any]], groups: list[dict]) -> dict[str, Callable[[], None]]:
    "A step of each of the three over all parameters"
    ps = [p.detach().view(-1) for p in parameters(groups)]
    gs = [p.grad.view(-1) for p in parameters(groups)]
    ms, vs, fs = ([torch.zeros_like(p) for p in ps] for _ in range(3))

    def lion() -> None:
        for row in zip(ps, gs, ms, strict=True):
            loops["lion"](row, RATE, DECAY)

    def adabound() -> None:
        for row in zip(ps, gs, ms, vs, strict=True):
            loops["adabound"](row, RATE, DECAY, 1e-4, 1.0)

    def dals() -> None:
        for row in zip(ps, gs, fs, ms, strict=True):
            w, u = loops["first"](row, SHARE, ALPHA, MOMENTUM, DECAY)
            ratio = min(max(0.02 * w**0.5 / (u**0.5 + 1e-8), 0.2), 5.0)
            loops["second"]((row[0], row[3]), RATE * ratio)
    return {"Lion": lion, "AdaBound": adabound, "DALS": dals}


def rows_of(model: str, ways: dict[str, dict[str, Callable[..., Any]]], rounds: int) -> list[str]:
    "Rows of the table for the shapes of one model: ratios to AdamW, fused, taken within a round"
    shapes = MODELS[model]
    groups = shapes.groups(CPU)
    names = ("Lion", "AdaBound", "DALS")
    steps = {(name, how): stepping(SIDES[name + end](groups), CPU)
             for name in names for how, end in (("in pieces", ""), ("torch.compile", ", fused=True"))}
    for how, loops in ways.items():
        steps |= {(name, how): step for name, step in steps_of(loops, groups).items()}
    rival = stepping(SIDES[FUSED](groups), CPU)
    times: dict[Any, list[float]] = {key: [] for key in steps}
    for step in steps.values():
        step() # compiles what is compiled
    for _ in range(rounds):
        base = milliseconds(rival, shapes.steps, CPU)
        for key, step in steps.items():
            times[key].append(milliseconds(step, shapes.steps, CPU) / base)
    cells = {key: f"{statistics.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" for key, x in times.items()}
    hows = ["in pieces", "torch.compile", *ways]
    return [f"| {name} | {shapes.what} | {' | '.join(cells[name, how] for how in hows)} |" for name in names]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure loops of one's own beside the updates of the library.")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=["mlp", "distilbert"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"numba": by_numba()} if importlib.util.find_spec("numba") else {}
        ways |= {"C++": in_cpp(folder)} if shutil.which("g++") else {}
        lines = [f"| update | parameters | in pieces | torch.compile | {' | '.join(ways)} |", "| --- " * (4 + len(ways)) + "|"]
        for model in options.only:
            lines += rows_of(model, ways, options.rounds)
    text = "\n".join(lines) + "\n"
    print(text)
    write_whole(options.out, text)


if __name__ == "__main__":
    main()
