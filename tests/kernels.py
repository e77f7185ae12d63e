"""The kernels of DALS against the loop; on a GPU also unwatched and captured.

`test_kernels.py` runs this file in a process of its own: whether Triton's interpreter carries kernels out, as where there is no GPU, is
decided when Triton is imported."""

import copy
import math
import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from dals.optim import kernels
from dals.optim.dals import DALS, DALSAcc, DALSFast
from dals.optim.update import detect, tensor_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = {"momentum": 0.9, "weight_decay": 0.01, "trust": 0.02, "trust_clip": (0.2, 5.0)}
ON_GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device on this machine")


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    "The kernels also take what lies on the CPU, for the interpreter."
    monkeypatch.setattr(kernels, "usable", lambda place: True)
    original = DALS._kernels
    monkeypatch.setattr(DALS, "_kernels", lambda self: original(self) if DEVICE.type == "cuda" or self.param_groups[0]["foreach"] is False
                        else kernels)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
       shapes=st.lists(st.sampled_from([(5, 3), (), (1,), (0,), (4097,), (2, 3, 4, 5), (8192,)]), min_size=1, max_size=5))
def test_three_steps_are_those_of_the_loop(seed, dtype, shapes):
    rng = torch.Generator().manual_seed(seed)
    start = [[(10.0 ** (i % 3 - 1) * torch.randn(shape, generator=rng)).to(DEVICE, dtype) for i, shape in enumerate(shapes)]
             for _ in range(4)]
    loop, ours = copy.deepcopy(start), copy.deepcopy(start)
    shares = [(1.0, 0.3 + 0.1 * i, 0.5) for i in range(len(shapes))]
    for phase, alpha in enumerate((0.3, 0.6, 0.7)):
        for share, row in zip(shares, zip(*loop, strict=True), strict=True):
            tensor_step(*row, share=share[phase], rate=0.1, alpha=alpha, **OPTIONS)
        kernels.step(*ours, shares, rate=0.1, alphas=(0.3, 0.6, 0.7), phase=phase, **OPTIONS)
    bits = {torch.float64: 40, torch.float32: 17, torch.float16: 7, torch.bfloat16: 4}[dtype]
    for found, wanted, before in zip(ours, loop, start, strict=True):
        for x, y, z in zip(found, wanted, before, strict=True):
            if x.numel():
                assert (x.double() - y.double()).norm() <= 2.0**-bits * (1e-3 + y.double().norm() + z.double().norm())


def test_the_phase_follows_the_loss_as_it_does_by_hand():
    rng = random.Random(0)
    ema, phase, there, seen = None, 0, (None, 0), set()
    for t in range(300):
        loss = 2 * 0.99**t * (1 + 0.15 * rng.gauss(0, 1)) if t % 17 else (math.nan, math.inf, -math.inf)[t % 3]
        ema, phase = detect(loss, ema, phase)
        there = kernels.detect(loss, *there, (0.01, 0.002), DEVICE)
        seen.add(phase)
        assert there[1].item() == phase
        assert there[0].item() == pytest.approx(math.nan if ema is None else ema, rel=1e-12, nan_ok=True)
    assert seen == {0, 1, 2}


def train(cls, foreach, steps=24, dtype=torch.float64, **options):
    "A small model on the device; the state of the run starts where kernels keep it."
    rng = torch.Generator().manual_seed(0)
    shapes = [(20, 30), (30,), (5000,), (3, 2, 3, 3), (4,)]
    ps = [Parameter((torch.randn(s, generator=rng) * 10.0 ** (i % 3 - 1)).to(DEVICE, dtype)) for i, s in enumerate(shapes)]
    with torch.no_grad():
        ps[4].zero_()
        ps[3].data = ps[3].data.to(memory_format=torch.channels_last)
    optimizer = cls([{"params": ps[:2], "depth": 0.0}, {"params": ps[2:4], "depth": 1.0, "lr": 0.1}, {"params": ps[4:]}], 0.3,
                    foreach=foreach, **options)
    for t in range(steps):
        for p in ps:
            g = torch.randn(p.shape, generator=rng).to(DEVICE, dtype)
            p.grad = g.to(memory_format=torch.channels_last) if p.ndim == 4 else g
        loss = torch.tensor(2 * 0.95**t * (1 + 0.15 * torch.randn((), generator=rng).item()), device=DEVICE)
        if foreach is not False and t == 0:
            for group in optimizer.param_groups:
                group["phase"] = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        optimizer.observe(loss)
        optimizer.step()
    return ps, optimizer


@pytest.mark.parametrize("cls, options", [(DALS, {"total_steps": 24}), (DALSFast, {"total_steps": 24}), (DALSAcc, {"restart_steps": 9}),
                                          (DALS, {"total_steps": 24, "thresholds": None})])
def test_a_run_is_that_of_the_loop(cls, options):
    (ps, a), (qs, b) = train(cls, None, **options), train(cls, False, **options)
    assert a.phase == b.phase and a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-12)
    assert (a.loss_ema is None and a.thresholds is None) or a.loss_ema == pytest.approx(b.loss_ema, rel=1e-6)
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    state = a.state_dict()
    assert all(type(group[name]) in (int, float, type(None)) for group in state["param_groups"] for name in ("step", "loss_ema", "phase"))
    assert isinstance(a.param_groups[0]["phase"], torch.Tensor) or a.thresholds is None  # the kernels did it


@pytest.mark.parametrize("options", [{"total_steps": 18}, {"total_steps": None, "schedule": None}])
def test_a_schedule_on_the_gpu_is_the_schedule(options):
    "18 of 24 updates are scheduled: behind the end of the table the last factor stays."
    with pytest.warns(UserWarning, match="total_steps=18") if options["total_steps"] else nullcontext():
        ps, plain = train(DALS, None, **options)
    qs, table = train(DALS, None, capturable=True, **options)
    assert isinstance(table.param_groups[0]["step"], torch.Tensor) and table.state_dict()["param_groups"][0]["step"] == 24
    assert table.get_last_lr() == pytest.approx(plain.get_last_lr(), rel=1e-12)
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_schedule_without_an_end_cannot_be_captured():
    p = Parameter(torch.ones(3, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = DALSAcc([p], restart_steps=3, capturable=True)
    with pytest.raises(RuntimeError, match="total_steps"):
        optimizer.step(lambda: 1.0)


@ON_GPU
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_does_not_wait_for_the_gpu(capturable):
    ps = [Parameter(torch.randn(300, 200, device="cuda")) for _ in range(3)]
    optimizer = DALS([{"params": ps[:2], "depth": 0.0}, {"params": ps[2:]}], total_steps=100, capturable=capturable)
    for p in ps:
        p.grad = torch.randn_like(p)
    loss = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.observe(loss)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.loss_ema == 1.0 and optimizer.phase == 2


@ON_GPU
def test_a_captured_step_goes_on_through_schedule_and_phases():
    def model():
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3)).cuda()
        return layer, torch.randn(16, 30, device="cuda"), torch.randint(3, (16,), device="cuda")

    def update(layer, x, y, optimizer):
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    layer, x, y = model()
    plain = DALS(layer.parameters(), total_steps=40)
    for _ in range(40):
        update(layer, x, y, plain)

    twin, x, y = model()
    captured = DALS(twin.parameters(), total_steps=40, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update(twin, x, y, captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(twin, x, y, captured)
    for _ in range(37):
        graph.replay()
    assert captured.state_dict()["param_groups"][0]["step"] == 40 and captured.phase == plain.phase
    assert captured.loss_ema == pytest.approx(plain.loss_ema, rel=1e-4)
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@ON_GPU
def test_an_optimizer_that_was_not_built_for_it_refuses_to_be_captured():
    p = Parameter(torch.ones(3, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = DALS([p], total_steps=10, thresholds=None)
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@ON_GPU
def test_a_run_can_be_repeated_to_the_last_bit():
    (ps, _), (qs, _) = (train(DALS, None, dtype=torch.float32, total_steps=40) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))
