"fused=True: a compiled loop, or one call for a small model, does what the pieces do, and without a compiler the pieces do it."

import copy
import pickle
import warnings

import pytest
import torch
from torch.nn import Parameter

import dals.optim.base
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
small_models = pytest.mark.parametrize("name", [name for name in MAKE if name != "DALS"])  # whose step over one is no sooner compiled


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


def two_layouts(params, channels_last, transposed):
    params[channels_last].data = params[channels_last].data.to(memory_format=torch.channels_last)
    params[transposed].data = params[transposed].data.t()
    return params


def same(fused, plain):
    "Whether two optimizers have come to the same weights and the same state."
    ours, others = ([p for group in optimizer.param_groups for p in group["params"]] for optimizer in (fused, plain))
    for p, q in zip(ours, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(fused.state[p], plain.state[q], rtol=1e-10, atol=1e-12)


@each
def test_a_compiled_run_is_that_of_the_pieces(name):
    params = two_layouts(weights((300, 200), (7,), (2**20 + 3,), (64, 128, 5, 5), (400, 400)), 3, 4)
    others = copy.deepcopy(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", "Two schedules are multiplied")
        fused, plain = walk(name, params, fused=True), walk(name, others)
    assert not dals.optim.blocks.DECLINED, "it was compiled"
    same(fused, plain)


def no_pieces(*args, **options):
    raise AssertionError("it was not done in one call")


def small():
    return two_layouts(weights((300, 200), (7,), (), (0, 3), (32, 64, 5, 5), (160, 200)), 4, 5)


@small_models
def test_a_small_model_is_updated_in_one_call(name, monkeypatch):
    plain = walk(name, small())
    monkeypatch.setattr(dals.optim.base, "update_in_pieces", no_pieces)
    params = small()
    versions = [p._version for p in params]
    same(walk(name, params, fused=True), plain)
    assert all(p._version > before for p, before in zip(params, versions, strict=True)), "autograd can tell that they have moved"


@small_models
def test_neither_another_rate_nor_another_model_of_the_same_sizes_is_compiled_again(name, monkeypatch):
    plain = walk(name, small())
    walk(name, small(), fused=True)
    monkeypatch.setattr(dals.optim.base, "update_in_pieces", no_pieces)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(walk(name, small(), fused=True), plain)


@small_models
@pytest.mark.parametrize("through", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on_in_one_call(name, through, monkeypatch):
    monkeypatch.setattr(dals.optim.base, "update_in_pieces", no_pieces)
    fused = walk(name, small(), steps=2, fused=True)
    copied, loaded = through(fused), MAKE[name](copy.deepcopy(fused.param_groups[0]["params"]), fused=True)
    loaded.load_state_dict(copy.deepcopy(fused.state_dict()))
    for optimizer in (fused, copied, loaded):
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            p.grad = torch.full_like(p, 0.1 * i - 0.2)
        optimizer.step()
    same(copied, fused)
    same(loaded, fused)


@small_models
def test_parameters_that_lie_in_one_memory(name, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    whole = torch.randn(400 * 500, generator=rng, dtype=torch.float64)
    plain = walk(name, [Parameter(x.clone()) for x in whole.split(50_000)])
    monkeypatch.setattr(dals.optim.base, "update_in_pieces", no_pieces)
    same(walk(name, [Parameter(x) for x in whole.split(50_000)], fused=True), plain)


@small_models
def test_a_model_whose_gradients_come_and_go_is_not_compiled_each_time(name, monkeypatch):
    def not_now(*args, **options):
        raise AssertionError("it was compiled")
    monkeypatch.setattr(dals.optim.blocks, "compiled", not_now)
    params = weights(*[(100, 150)] * 10)
    others = copy.deepcopy(params)
    for some, options in ((params, {"fused": True}), (others, {})):
        optimizer = MAKE[name](some, **options)
        for k in range(3):
            for i, p in enumerate(some):
                p.grad = None if i == k else torch.full_like(p, 0.1 * i - k)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_options_that_change_at_each_step_end_in_pieces_with_a_warning(monkeypatch):
    monkeypatch.setattr(dals.optim.blocks, "DECLINED", set())
    ends = []
    with torch._dynamo.config.patch(recompile_limit=2), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for fused in (True, False):
            optimizer = Lion(weights((350, 400), (9,)), 1e-3, fused=fused)
            for k in range(5):
                optimizer.param_groups[0]["weight_decay"] = 0.1 * (k + 1)
                for p in optimizer.param_groups[0]["params"]:
                    p.grad = torch.full_like(p, 0.1 - 0.05 * k)
                optimizer.step()
            ends.append(optimizer)
    assert [str(w.message)[:29] for w in seen if "fused=True" in str(w.message)] == ["Lion runs without fused=True:"]
    same(*ends)


@pytest.mark.parametrize("name, shapes", [*((name, [(300, 4000), (7,)]) for name in MAKE), ("Lion", [(300, 1000), (7,)])])
def test_without_a_compiler_it_says_so_once_and_goes_on(name, shapes, monkeypatch):
    monkeypatch.setattr(dals.optim.blocks, "DECLINED", set())
    for name_of_cache in ("compiled",):
        monkeypatch.setattr(dals.optim.blocks, name_of_cache, getattr(dals.optim.blocks, name_of_cache).__wrapped__)

    def absent(whole, **options):
        def fails(*args):
            raise RuntimeError("No working C++ compiler found")
        return fails

    monkeypatch.setattr(torch, "compile", absent)
    params = weights(*shapes)
    others = copy.deepcopy(params)
    with pytest.warns(UserWarning, match=f"{name} runs without fused=True: .*No working C\\+\\+ compiler found") as seen:
        walk(name, params, fused=True)
    assert len(seen) == 1
    walk(name, others)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_fused_is_a_switch():
    with pytest.raises(TypeError, match="fused must be True or False, not str"):
        Lion(weights((3,)), fused="yes")
