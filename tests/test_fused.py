"fused=True: one compiled loop does what the pieces do, and without a compiler the pieces do it."

import copy
import warnings

import pytest
import torch
from torch.nn import Parameter

import dals.optim.blocks
from dals.optim.adaptive import AdaBound
from dals.optim.dals import DALS
from dals.optim.joint import Lion
from dals.optim.layerwise import LARS

MAKE = {"Lion": lambda ps, **options: Lion(ps, 1e-3, weight_decay=0.1, **options),
        "LARS": lambda ps, **options: LARS(ps, 0.1, weight_decay=0.1, **options),
        "AdaBound": lambda ps, **options: AdaBound(ps, 1e-2, gamma=0.1, weight_decay=0.1, **options),
        "DALS": lambda ps, **options: DALS(ps, 0.1, total_steps=9, weight_decay=0.1, **options)}
each = pytest.mark.parametrize("name", MAKE)


def walk(name, params, steps=4, **options):
    "A few steps, each at another rate."
    optimizer, rng = MAKE[name](params, **options), torch.Generator().manual_seed(1)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] *= 1 - 0.1 * k
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            if p.ndim == 4:
                p.grad = p.grad.to(memory_format=torch.channels_last)
        optimizer.step(lambda k=k: 2.0 * 0.99**(k * k))
    return optimizer


def weights(*shapes):
    rng = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in shapes]


@each
def test_a_compiled_run_is_that_of_the_pieces(name):
    params = weights((300, 200), (7,), (2**20 + 3,), (64, 128, 5, 5), (400, 400))
    with torch.no_grad():
        params[3].data = params[3].data.to(memory_format=torch.channels_last)
        params[4].data = params[4].data.t()
    others = copy.deepcopy(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", "Two schedules are multiplied")
        fused, plain = walk(name, params, fused=True), walk(name, others)
    assert not dals.optim.blocks.DECLINED, "it was compiled"
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in others], rtol=1e-10, atol=1e-12)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(fused.state[p], plain.state[q], rtol=1e-10, atol=1e-12)


@each
def test_without_a_compiler_it_says_so_once_and_goes_on(name, monkeypatch):
    monkeypatch.setattr(dals.optim.blocks, "DECLINED", set())
    for name_of_cache in ("compiled",):
        monkeypatch.setattr(dals.optim.blocks, name_of_cache, getattr(dals.optim.blocks, name_of_cache).__wrapped__)

    def absent(whole, **options):
        def fails(*args):
            raise RuntimeError("No working C++ compiler found")
        return fails

    monkeypatch.setattr(torch, "compile", absent)
    params = weights((300, 4000), (7,))
    others = copy.deepcopy(params)
    with pytest.warns(UserWarning, match=f"{name} runs without fused=True: .*No working C\\+\\+ compiler found") as seen:
        walk(name, params, fused=True)
    assert len(seen) == 1
    walk(name, others)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_fused_is_a_switch():
    with pytest.raises(TypeError, match="fused must be True or False, not str"):
        Lion(weights((3,)), fused="yes")
