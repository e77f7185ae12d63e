"""torch's optimizer database over our classes: what any torch optimizer survives, and what ours refuse in a sentence."""

import copy
import io
import itertools
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
    optim_db,
)

from dals.optim.adaptive import AdaBound
from dals.optim.joint import SAM, Grokfast, Lion, Lookahead
from dals.optim.layerwise import LARS
from dals.optim.dals import DALS, DALSAcc, DALSFast

LOSS = ("dals", "dals_fast", "dals_acc")  # read the loss, from the closure
TORCH = {info.optim_cls: info for info in optim_db}
FLAGS = ("foreach", "fused", "capturable", "differentiable", "maximize")


# ---- our entries in the database ----

def lars(params, lr=0.1, **options): return LARS(params, lr, **{"trust": 0.05, **options})
def lookahead(params, k=3, alpha=0.5, **options): return Lookahead(SGD(params, **options), k, alpha)
def sam(params, rho=0.05, **options): return SAM(SGD(params, **options), rho)
def grokfast(params, alpha=0.9, lamb=2.0, **options): return Grokfast(AdamW(params, **options), alpha, lamb)
def dals_plain(params, lr=0.03, **options): return DALS(params, lr, total_steps=None, schedule=None, thresholds=None, **options)
def dals(params, lr=0.03, **options): return DALS(params, lr, total_steps=200, **options)
def dals_fast(params, lr=0.03, **options): return DALSFast(params, lr, total_steps=200, **options)
def dals_acc(params, lr=0.03, **options): return DALSAcc(params, lr, restart_steps=7, **options)


def inputs(*options):
    """An `optim_inputs_func`: the defaults, and each set of options."""
    return lambda device, dtype=None: [OptimizerInput(params=None, kwargs=o, desc=str(o) if o else "default") for o in ({}, *options)]


def of(base, *options, without="capturable"):
    """The `optim_inputs_func` of a wrapper: all that torch's database has for the base, less what it refuses, and the wrapper's own."""
    def make(device, dtype=None):
        return [x for x in TORCH[base].optim_inputs_func(device, dtype) if not x.kwargs.get(without)] + inputs(*options)(device)[1:]
    return make


def errors(*cases):
    """An `optim_error_inputs_func`: torch's cases for every optimizer, and ours, each as (options, what the sentence says)."""
    def make(device, dtype):
        return get_error_inputs_for_all_optims(device, dtype) + [
            ErrorOptimizerInput(OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)), error_regex=sentence,
                                error_type=TypeError if "plain number, not a" in sentence else ValueError)
            for kwargs, sentence in cases]
    return make


LR, TENSOR = dict(lr=torch.tensor(0.001)), torch.tensor(0.5)
COMMON = ((dict(lr=-1.0), "lr must be at least 0, not -1"), (dict(lr=float("nan")), "lr must be at least 0, not nan"),
          (dict(weight_decay=-0.1), "weight_decay must be at least 0"),
          (dict(lr=torch.tensor(0.1, requires_grad=True)), "Tensor lr must be 1-element without grad"))
BETAS = ((dict(betas=(1.0, 0.9)), "Both betas must lie"), (dict(betas=(0.9, -0.1)), "Both betas must lie"),
         (dict(betas=(0.9,)), "Both betas must lie"))
FUSED = dict(supports_fused_on=("cpu",), supports_complex=False)
OURS = dict(supported_impls=("fused",), not_og_supported_flags=("fused",), **FUSED)
DALS_ERRORS = ((dict(lr=-1.0), "lr must be a finite number of at least 0"), (dict(alpha=TENSOR), "must be a plain number, not a"),
               (dict(lr=torch.tensor(0.1, requires_grad=True)), "Tensor lr must be 1-element without grad"),
               (dict(momentum=1.0), "momentum must be in"), (dict(weight_decay=-1.0), "weight_decay must be"),
               (dict(alpha=1.0), "alpha must be in"), (dict(trust_clip=(2.0, 1.0)), "trust_clip must be"))
PHASED = dict(supported_impls=("foreach", "fused"), not_og_supported_flags=("foreach", "fused"), step_requires_closure=True, **FUSED)

INFOS = {info.name: info for info in (
    OptimizerInfo(AdaBound, **OURS, optim_error_inputs_func=errors(
        *COMMON, *BETAS, (dict(eps=-1.0), "eps must be at least 0"), (dict(final_lr=0.0), "final_lr must be positive"),
        (dict(gamma=0.0), "gamma must be positive"), (dict(gamma=TENSOR), "gamma must be a plain number")),
        optim_inputs_func=inputs(dict(lr=0.01), LR, dict(betas=(0.5, 0.75)), dict(eps=0.1), dict(weight_decay=0.1),
                                 dict(final_lr=0.01, gamma=0.1))),
    OptimizerInfo(lars, **OURS, optim_error_inputs_func=errors(
        *COMMON, (dict(momentum=1.0), "momentum must lie"), (dict(momentum=-0.5), "momentum must lie"),
        (dict(trust=0.0), "trust must be positive"), (dict(eps=-1.0), "eps must be at least 0"),
        (dict(momentum=TENSOR), "momentum must be a plain number")),
        optim_inputs_func=inputs(dict(lr=0.01), LR, dict(momentum=0.0), dict(weight_decay=0.1), dict(trust=0.5), dict(eps=0.1))),
    OptimizerInfo(Lion, **OURS, optim_error_inputs_func=errors(*COMMON, *BETAS),
                  optim_inputs_func=inputs(dict(lr=0.01), LR, dict(betas=(0.5, 0.75)), dict(weight_decay=0.1))),
    OptimizerInfo(lookahead, supported_impls=("foreach", "fused"), supports_fused_on=("cpu",), supports_sparse=True,
                  not_og_supported_flags=TORCH[SGD].not_og_supported_flags, optim_inputs_func=of(SGD, dict(k=1), dict(alpha=0.9)),
                  optim_error_inputs_func=errors((dict(momentum=-0.5), "Invalid momentum"), (dict(k=0), "k must be"),
                                                 (dict(alpha=1.5), "alpha must lie"),
                                                 (dict(differentiable=True), "Lookahead does not support differentiable"))),
    OptimizerInfo(sam, supported_impls=("foreach", "fused"), supports_fused_on=("cpu",), supports_complex=False,
                  not_og_supported_flags=TORCH[SGD].not_og_supported_flags, step_requires_closure=True,
                  optim_inputs_func=of(SGD, dict(rho=0.5), dict(rho=0.0), without="maximize"),
                  optim_error_inputs_func=errors((dict(momentum=-0.5), "Invalid momentum"), (dict(rho=-1.0), "rho must be"),
                                                 (dict(differentiable=True), "SAM does not support differentiable"),
                                                 (dict(maximize=True), "SAM does not support maximize: minimise the negative loss"))),
    OptimizerInfo(grokfast, supported_impls=("foreach", "fused"), supports_fused_on=("cpu",), supports_complex=False,
                  not_og_supported_flags=TORCH[AdamW].not_og_supported_flags,
                  optim_inputs_func=of(AdamW, LR, dict(alpha=0.5), dict(lamb=0.0)),
                  optim_error_inputs_func=errors((dict(betas=(1.0, 0.0)), "Invalid beta"), (dict(alpha=1.0), "alpha must lie"),
                                                 (dict(lamb=-1.0), "lamb must be"),
                                                 (dict(capturable=True), "Grokfast does not support capturable"))),
    OptimizerInfo(dals_plain, **{**PHASED, "step_requires_closure": False}, optim_error_inputs_func=errors(*DALS_ERRORS),
                  optim_inputs_func=inputs(LR, dict(lr=0.01), dict(momentum=0), dict(weight_decay=0.1), dict(trust=0.2), dict(alpha=0.9))),
    *(OptimizerInfo(make, **PHASED, optim_error_inputs_func=errors(*DALS_ERRORS),
                    optim_inputs_func=inputs(dict(lr=0.01), LR, dict(thresholds=(0.5, 0.1)), dict(weight_decay=0.1)))
      for make in (dals, dals_fast, dals_acc)),
)}
CLASSES = {"AdaBound": AdaBound, "lars": LARS, "Lion": Lion, "lookahead": Lookahead, "sam": SAM, "grokfast": Grokfast}
each = pytest.mark.parametrize("name", INFOS)
ours = pytest.mark.parametrize("name", CLASSES)


def configurations(name):
    """Every set of options that the entry lists, with and without the implementations that it supports on the CPU."""
    found = [{**x.kwargs} for x in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, INFOS[name])]
    lists = [{**x, "foreach": True} for x in found if "foreach" in INFOS[name].supported_impls and not x.get("fused")]
    return found + [x for x in lists if name != "grokfast" or not isinstance(x.get("lr"), torch.Tensor)]  # which torch's AdamW refuses


# ---- a small problem ----

def weights(dtype=torch.float32, shapes=((4, 3), (3,), (2, 1, 3), ())):
    rng = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)) for shape in shapes]


def closure(optimizer, params, k):
    """The loss of step k, every parameter's distance from a place that changes with k, and its gradients."""
    def evaluate():
        optimizer.zero_grad()
        loss = torch.zeros(())
        for p in params:
            if p.requires_grad:
                real = torch.view_as_real(p) if p.is_complex() else p
                loss = loss + (real.float() - torch.sin(torch.arange(real.numel()) + k).view(real.shape)).square().sum()
        loss.backward()
        return loss
    return evaluate


def train(name, optimizer, params, first=0, last=8, scheduler=None):
    for k in range(first, last):
        if INFOS[name].step_requires_closure:
            optimizer.step(closure(optimizer, params, k))
        else:
            closure(optimizer, params, k)()
            optimizer.step()
        if scheduler:
            scheduler.step()
    return [p.detach().clone() for p in params]


def make(name, params, **options):
    return INFOS[name].optim_cls(params, **options)


def two_groups(params, **first):
    return [dict(params=params[:2], **first), dict(params=params[2:])]


def assert_same(a, b):
    """Equal to the last bit, type by type, all the way down."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a: assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True): assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), (a, b)
    else:
        assert a == b


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copy_weights(source, target):
    with torch.no_grad():
        for p, q in zip(source, target, strict=True): q.copy_(p)


# ---- refusals ----

@each
def test_what_cannot_be_honoured_is_an_error_that_says_so(name):
    info = INFOS[name]
    cases = info.optim_error_inputs_func("cpu", torch.float32)
    assert len(cases) > 8
    for case in cases:
        params, kwargs = case.optimizer_error_input.params or weights(), case.optimizer_error_input.kwargs
        assert case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        if case.error_type is UserWarning:
            with pytest.warns(UserWarning, match=case.error_regex):
                make(name, params, **kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                make(name, params, **kwargs)


@each
def test_a_refused_group_leaves_the_optimizer_as_it_was(name):
    info, params = INFOS[name], weights()
    optimizer = make(name, params[:3])
    train(name, optimizer, params[:3])
    before, groups = copy.deepcopy(optimizer.state_dict()), optimizer.param_groups
    own = [x for x in info.optim_error_inputs_func("cpu", torch.float32)
           if x.optimizer_error_input.params is None and not {"k", "rho", "lamb"} & x.optimizer_error_input.kwargs.keys()]
    refused = 0
    for case in own:
        kwargs = case.optimizer_error_input.kwargs
        if name in ("lookahead", "sam", "grokfast") and not kwargs.keys() & {"capturable", "differentiable", "maximize"}:
            continue  # the base is torch's, which checks the options of the call only
        with pytest.raises(case.error_type, match=case.error_regex):
            optimizer.add_param_group(dict(params=[params[3]], **copy.copy(kwargs)))
        refused += 1
    assert refused and optimizer.param_groups is groups and len(groups) == 1
    assert_same(optimizer.state_dict(), before)
    optimizer.add_param_group(dict(params=[params[3]]))  # and the parameter is still free
    assert len(groups) == 2


def supports(name, feature):
    """Build with the feature and take a step; what a class refuses is a sentence with its name in it."""
    p = Parameter(torch.ones(3, 2, dtype=torch.complex64 if feature == "complex" else torch.float32))
    group = dict(params=[p], **({"lr": torch.tensor(0.01)} if feature == "tensor lr" else {feature: True} if feature in FLAGS else {}))
    optimizer = None

    def evaluate():
        p.grad = torch.ones_like(p).to_sparse() if feature == "sparse" else torch.ones_like(p)
        return 1.0

    try:
        optimizer = make(name, [group])
        optimizer.step(evaluate)
    except (ValueError, RuntimeError, TypeError) as error:
        assert re.search(r"does not support|needs dense real|sparse gradients|plain number", str(error)), error
        assert torch.equal(p.detach(), torch.ones_like(p))
        assert optimizer is None or not optimizer.state.get(p)
        return False
    assert not torch.equal(p.detach(), torch.ones_like(p))
    return True


@ours
def test_the_docstring_says_what_the_class_supports_and_what_it_refuses(name):
    (line,) = (line.lower() for line in CLASSES[name].__doc__.splitlines() if "; no " in line)
    yes, _, no = line.partition("; no ")
    for feature in (*FLAGS, "complex", "sparse", "tensor lr"):
        assert (feature in yes) != (feature in no), feature
        assert supports(name, feature) == (feature in yes), feature


@each
def test_the_entry_in_the_database_is_true(name):
    info = INFOS[name]
    assert supports(name, "complex") == info.supports_complex
    assert supports(name, "sparse") == info.supports_sparse
    assert supports(name, "tensor lr") == any(isinstance(x.kwargs.get("lr"), torch.Tensor) for x in info.optim_inputs_func("cpu"))
    assert not info.has_capturable_arg and not info.only_supports_sparse_grads and info.supports_param_groups
    if name in ("AdaBound", "lars", "Lion"):  # arguments that do not exist
        for flag in set(FLAGS) - {"fused"}:
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{flag}'"):
                make(name, weights(), **{flag: True})


@ours
def test_a_step_inside_a_cuda_graph_is_refused(name, monkeypatch):
    class Elsewhere(Parameter):
        is_cuda = True

    p = Elsewhere(torch.ones(2))
    optimizer = make(name, [p])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="step outside of it"):
        optimizer.step(lambda: None)
    assert torch.equal(p.detach(), torch.ones(2))


@ours
def test_one_sparse_gradient_stops_all_tensors_from_moving(name):
    if INFOS[name].supports_sparse:
        return
    a, b = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3, 2))
    optimizer = make(name, [dict(params=[a]), dict(params=[b])])
    a.grad, b.grad = torch.ones(3, 2), torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="dense real gradients"):
        optimizer.step(lambda: 1.0)
    assert torch.equal(a.detach(), torch.ones(3, 2)) and torch.equal(a.grad, torch.ones(3, 2)) and not optimizer.state


def test_a_wrapper_takes_no_group_that_one_of_its_bases_refuses():
    params = weights()
    optimizer = Lookahead(SAM(AdaBound(params[:3])))
    train("sam", optimizer, params[:3])
    before = copy.deepcopy(optimizer.state_dict())
    for wrong, sentence in ((dict(gamma=-1.0), "gamma must be positive"), (dict(maximize=True), "AdaBound does not support maximize")):
        with pytest.raises(ValueError, match=sentence):
            optimizer.add_param_group(dict(params=[params[3]], **wrong))
    optimizer = SAM(Lookahead(SGD(params[:3])))
    with pytest.raises(ValueError, match="SAM does not support maximize"):
        optimizer.add_param_group(dict(params=[params[3]], maximize=True))
    assert len(optimizer.base.base.param_groups) == 1
    optimizer = Lookahead(SAM(AdaBound(params[:3])))
    optimizer.load_state_dict(before)
    assert_same(optimizer.state_dict(), before)


def test_wrapping_leaves_the_base_as_it_was():
    base = AdaBound(weights())
    before = copy.deepcopy(base.defaults), copy.deepcopy(base.state_dict())
    Lookahead(Grokfast(SAM(base)))
    assert_same((base.defaults, base.state_dict()), before)


# ---- steps ----

@each
def test_groups_override_options(name):
    """Two groups walk as two optimizers do, where tensors do not see each other."""
    if name == "sam":  # they see each other in the norm, unless there is no climb
        options = dict(rho=0.0)
    elif name in LOSS:  # they see each other in the loss, unless no phase reads it
        options = dict(thresholds=None)
    else:
        options = {}
    own = dict(lr=0.02, weight_decay=0.2)
    params = weights()
    together = train(name, make(name, two_groups(params, **own), lr=0.01, **options), params)
    first, second = weights()[:2], weights()[2:]
    apart = train(name, make(name, first, **own, **options), first) + train(name, make(name, second, lr=0.01, **options), second)
    assert_same(together, apart)
    same = weights()
    assert not torch.equal(train(name, make(name, same, lr=0.01, **options), same)[0], together[0])


@each
def test_parameters_without_a_gradient_stay(name):
    for kwargs in configurations(name):
        params = weights()
        before = [p.detach().clone() for p in params]
        optimizer = make(name, params, **kwargs)
        for _ in range(4):
            optimizer.step(lambda: 1.0)
        assert_same([p.detach() for p in params], before)
        assert not any(set(state) - {"slow"} for state in optimizer.state.values())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_gradients_move_nothing(name, dtype):
    for kwargs in configurations(name):
        if dtype == torch.float16 and kwargs.get("fused"):
            continue  # the base's: torch has no fused step for half tensors on the CPU
        params = weights(dtype)
        before = [p.detach().clone() for p in params]
        if name == "grokfast":
            kwargs["eps"] = 1e-4  # the base's: the default is zero in float16, and torch's AdamW divides by it
        optimizer = make(name, params, **{**kwargs, "weight_decay": 0.0})

        def zero(params=params):
            for p in params: p.grad = torch.zeros_like(p)
            return 1.0

        for _ in range(4):
            optimizer.step(zero)
        assert_same([p.detach() for p in params], before)


@each
@pytest.mark.parametrize("value", [None, 1, 2.5, torch.ones(()), torch.ones(1)])
def test_closures_of_all_kinds(name, value):
    params = weights()
    optimizer = make(name, params)

    def evaluate():
        assert torch.is_grad_enabled()
        for p in params: p.grad = torch.ones_like(p)
        return value

    with torch.no_grad():
        if value is None and name in LOSS:
            with pytest.raises(RuntimeError, match="has had none since the last one"):
                optimizer.step(evaluate)
        else:
            assert optimizer.step(evaluate) is value
            assert not torch.equal(params[0].detach(), weights()[0].detach())


@each
def test_a_step_needs_a_closure_where_the_entry_says_so(name):
    params = weights()
    optimizer = make(name, params)
    closure(optimizer, params, 0)()
    if INFOS[name].step_requires_closure:
        with pytest.raises((ValueError, RuntimeError), match=r"step\(closure\)"):
            optimizer.step()
    else:
        assert optimizer.step() is None
        twins = weights()
        twin = make(name, twins)
        twin.step(closure(twin, twins, 0))
        assert_same([p.detach() for p in params], [p.detach() for p in twins])


@each
def test_lists_walk_like_the_loop(name):
    if "foreach" not in INFOS[name].supported_impls:
        assert name in ("AdaBound", "lars", "Lion")  # and the docstring refuses it
        return
    for kwargs in (x for x in configurations(name) if x.get("foreach")):
        params, others = weights(torch.float64), weights(torch.float64)
        lists = train(name, make(name, params, **kwargs), params)
        loop = train(name, make(name, others, **{**kwargs, "foreach": False}), others)
        torch.testing.assert_close(lists, loop, rtol=1e-7, atol=1e-9)


@each
def test_strides_do_not_matter(name):
    for kwargs in configurations(name):
        params = weights(torch.float64)
        strided = [Parameter(p.detach().t().contiguous().t()) if p.ndim == 2 else Parameter(p.detach().clone()) for p in params]
        assert not strided[0].is_contiguous()
        torch.testing.assert_close(train(name, make(name, strided, **kwargs), strided), train(name, make(name, params, **kwargs), params),
                                   rtol=1e-9, atol=1e-11)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_close_to_single(name, dtype):
    """Tensors of several dtypes in one group; each keeps its dtype, and its buffers have it too."""
    params = [p for pair in zip(weights()[:2], weights(dtype)[:2], weights(torch.float64)[:2], strict=True) for p in pair]
    optimizer = make(name, params, lr=0.01)
    final = train(name, optimizer, params, last=4)
    assert [x.dtype for x in final] == 2 * [torch.float32, dtype, torch.float64]
    for single, half, double in (final[:3], final[3:]):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(half.double(), double, rtol=0.03, atol=0.03)
    for p, state in optimizer.state.items():
        assert all(value.dtype == p.dtype for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", ["lars", "sam"])
def test_norms_of_half_tensors_do_not_overflow(name):
    """300 weights of 5000, and gradients like them, have norms that float16 cannot hold."""
    start = torch.full((300,), 5000.0)
    assert start.norm() > torch.finfo(torch.float16).max
    ends = []
    for dtype in (torch.float16, torch.float32):
        p = Parameter(start.to(dtype, copy=True))
        optimizer = make(name, [p], **({"lr": 1.0} if name == "lars" else {"lr": 0.1, "rho": 5000.0}))

        def evaluate(p=p):
            p.grad = p.detach() + 0
            return 1.0

        optimizer.step(evaluate)
        ends.append(p.detach().float())
    assert not torch.equal(ends[1], start)
    torch.testing.assert_close(*ends, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_adabound_divides_by_eps_in_half_precision_too(lr):
    """The default eps is zero in float16, where a weight without gradient would divide zero by zero at rate zero."""
    p = Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = AdaBound([p], lr=lr)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones_like(p))


@each
def test_maximize_is_minimizing_the_negative(name):
    if not any("maximize" in x.kwargs for x in INFOS[name].optim_inputs_func("cpu")):
        assert name not in ("lookahead", "grokfast")  # the others refuse it, or, as DALS, have no such option
        return
    walks = []
    for sign, maximize in ((1, False), (-1, True)):
        params = weights()
        optimizer = make(name, params, maximize=maximize)
        for k in range(8):
            closure(optimizer, params, k)()
            for p in params: p.grad.mul_(sign)
            optimizer.step()
        walks.append([p.detach() for p in params])
    torch.testing.assert_close(*walks)


def test_lookahead_treats_complex_weights_as_pairs():
    for kwargs in configurations("lookahead"):
        if kwargs.get("fused"):
            continue  # the base's: torch has no fused step for complex tensors
        params = weights(torch.complex64)
        pairs = [Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
        train("lookahead", make("lookahead", params, **kwargs), params)
        train("lookahead", make("lookahead", pairs, **kwargs), pairs)
        torch.testing.assert_close([torch.view_as_real(p.detach()) for p in params], [p.detach() for p in pairs])


def test_lookahead_takes_sparse_gradients_as_its_base_does():
    walks = []
    for sparse in (True, False):
        rows = torch.nn.Embedding(5, 2, sparse=sparse)
        with torch.no_grad(): rows.weight.copy_(torch.arange(10.0).view(5, 2))
        optimizer = lookahead(rows.parameters(), lr=0.1)
        for k in range(7):
            optimizer.zero_grad()
            rows(torch.tensor([k % 5, (k + 2) % 5])).square().sum().backward()
            optimizer.step()
        walks.append(rows.weight.detach())
    assert_same(*walks)


@each
def test_zero_grad(name):
    params = weights()
    optimizer = make(name, params)
    closure(optimizer, params, 0)()
    optimizer.zero_grad(set_to_none=False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


# ---- schedulers ----

SCHEDULERS = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda k: 0.9**k),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5),
}


@each
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_work_with_a_warning_only_where_they_multiply_another_and_resume(name, kind):
    def build():
        params = weights()
        optimizer = make(name, two_groups(params, lr=0.02))
        return params, optimizer, SCHEDULERS[kind](optimizer)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params, optimizer, scheduler = build()
        expected = train(name, optimizer, params, 0, 10, scheduler)
        rates = [group["lr"] for group in optimizer.param_groups]
        params, optimizer, scheduler = build()
        train(name, optimizer, params, 0, 4, scheduler)
        saved = through_a_file([optimizer.state_dict(), scheduler.state_dict()])
        others, optimizer, scheduler = build()
        copy_weights(params, others)
        scheduler.load_state_dict(saved[1])
        optimizer.load_state_dict(saved[0])
        assert_same(train(name, optimizer, others, 4, 10, scheduler), expected)
    assert len(caught) == (3 if name in LOSS else 0), caught[0].message  # DALS has a schedule of its own, and says so once in each run
    assert all("Two schedules are multiplied: a scheduler has moved lr from" in str(warning.message) for warning in caught)
    assert [group["lr"] for group in optimizer.param_groups] == rates != [0.02, optimizer.defaults["lr"]]
    plain = weights()
    unscheduled = train(name, make(name, two_groups(plain, lr=0.02)), plain, 0, 10)
    assert not torch.equal(unscheduled[0], expected[0])


@each
def test_plateaus_and_the_schedulers_of_the_database(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name in LOSS:
            warnings.filterwarnings("ignore", "Two schedules are multiplied")
        params = weights()
        optimizer = make(name, params, lr=0.01)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        train(name, optimizer, params)
        for loss in (1.0, 2.0): plateau.step(loss)
        assert optimizer.param_groups[0]["lr"] == 0.005
        for builders in INFOS[name].scheduler_inputs:
            params = weights()
            optimizer = make(name, params)
            chain = [build(optimizer) for build in builders]
            for k in range(12):
                train(name, optimizer, params, k, k + 1)
                for scheduler in chain:
                    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
            assert optimizer.param_groups[0]["lr"] < optimizer.defaults["lr"]


@each
def test_a_tensor_rate_walks_like_a_number_and_stays_the_same_tensor(name):
    rate = torch.tensor(0.5)  # powers of two, which single precision holds
    walks = []
    for lr in (rate, 0.5, torch.tensor([0.5])):
        params = weights()
        optimizer = make(name, params, lr=lr)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Two schedules are multiplied")
            walks.append(train(name, optimizer, params, scheduler=lr_scheduler.StepLR(optimizer, 2, 0.5)))
        if isinstance(lr, torch.Tensor):
            assert optimizer.param_groups[0]["lr"].data_ptr() == lr.data_ptr() and not optimizer.param_groups[0]["lr"].ndim
    assert rate == 0.5**5 and lr.item() == 0.5**5
    torch.testing.assert_close(walks[0], walks[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(walks[2], walks[1], rtol=1e-6, atol=1e-7)
    state = through_a_file(optimizer.state_dict())
    again = make(name, weights(), lr=torch.tensor(7.0))
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"].item() == 0.5**5


# ---- state ----

WRAPPERS = ("lookahead", "sam", "grokfast")
BUFFERS = {"AdaBound": {"step", "mean", "square"}, "lars": {"momentum_buffer"}, "Lion": {"mean"}, "lookahead": {"slow"}, "sam": set(),
           "grokfast": {"mean"}, **{name: {"filtered", "momentum_buffer"} for name in ("dals_plain", *LOSS)}}
PLAIN = (int, float, bool, str, type(None), torch.Tensor)


def leaves(x):
    if isinstance(x, dict): return itertools.chain.from_iterable(map(leaves, x.values()))
    if isinstance(x, (list, tuple)): return itertools.chain.from_iterable(map(leaves, x))
    return [x]


@each
def test_the_state_is_tensors_and_plain_numbers_and_is_complete(name):
    for kwargs in configurations(name):
        params = weights()
        optimizer = make(name, params, **kwargs)
        train(name, optimizer, params)
        state = optimizer.state_dict()
        assert all(type(x) in PLAIN for x in leaves(state))
        base = optimizer.base.state_dict()["state"] if name in WRAPPERS else {}
        assert_same({i: x["base"] for i, x in state["state"].items() if "base" in x}, base)
        assert {frozenset(x) - {"base"} for x in state["state"].values()} - {frozenset()} == ({frozenset(BUFFERS[name])} - {frozenset()})
        assert len(state["state"]) == len(params) * bool(BUFFERS[name] or base)
        again = make(name, weights(), **kwargs)
        again.load_state_dict(through_a_file(state))
        assert_same(again.state_dict(), state)


@each
def test_a_reloaded_run_goes_on_bit_by_bit(name):
    for kwargs in configurations(name):
        for cut in (0, 4):  # in the middle of Lookahead's cycle of three
            params = weights()
            optimizer = make(name, two_groups(params, lr=0.02), **kwargs)
            train(name, optimizer, params, 0, cut)
            others = weights()
            copy_weights(params, others)
            state = through_a_file(optimizer.state_dict())
            run_options = kwargs if name.startswith("dals") else {}  # the phases' thresholds are not in DALS's state
            again = make(name, two_groups(others), **run_options)
            again.load_state_dict(state)
            assert_same(train(name, again, others, cut, 10), train(name, optimizer, params, cut, 10))
            assert_same(again.state_dict(), optimizer.state_dict())


@each
def test_a_state_that_lacks_an_option_gets_the_default(name):
    """Of our classes every option that is not required; of a wrapper's base those that torch added after its release."""
    params, info = weights(), INFOS[name]
    optimizer = make(name, params)
    train(name, optimizer, params)
    inherited = name in ("lookahead", "sam", "grokfast")
    newer = info.not_og_supported_flags if inherited else [key for key in optimizer.defaults if key != "differentiable"]
    lacking = [key for key in newer if key in optimizer.param_groups[0]]
    assert lacking
    state = copy.deepcopy(optimizer.state_dict())
    group = state["param_groups"][0]
    for key in lacking: del group[key]
    others = weights()
    copy_weights(params, others)
    again = make(name, others)
    again.load_state_dict(state)
    found, defaults = ({key: place[key] or None for key in lacking} for place in (again.param_groups[0], optimizer.defaults))
    assert found == defaults  # None and False are one for torch's flags
    assert_same(train(name, again, others, 8, 12), train(name, optimizer, params, 8, 12))


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_state_follows_the_dtype_of_the_parameters(name, dtype):
    params = weights()
    optimizer = make(name, params)
    train(name, optimizer, params)
    others = weights(dtype)
    again = make(name, others)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, others, strict=True):
        mine, theirs = optimizer.state.get(p, {}), again.state.get(q, {})
        for kept, there in ((mine, theirs), (mine.get("base", {}), theirs.get("base", {}))):
            for key, value in kept.items():
                if key != "base":
                    assert_same(there[key], value.to(dtype) if isinstance(value, torch.Tensor) and key != "step" else value)
    assert [x.dtype for x in train(name, again, others, 8, 10)] == [dtype] * 4


@each
def test_a_state_of_other_groups_is_refused_and_says_where(name):
    def build(*sizes):
        params, cuts = weights(), [0, *itertools.accumulate(sizes)]
        optimizer = make(name, [dict(params=params[a:b]) for a, b in itertools.pairwise(cuts)])
        train(name, optimizer, params[:cuts[-1]])
        return optimizer

    optimizer = build(1, 2)
    before = copy.deepcopy(optimizer.state_dict())
    wrong = {(3,): r"has 1 parameter groups, the optimizer 2", (1, 1, 1): r"has 3 parameter groups, the optimizer 2",
             (1, 1): r"group 1 has 1 parameters in the state, 2", (2, 1): r"group 0 has 2 parameters in the state, 1"}
    for sizes, sentence in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            optimizer.load_state_dict(build(*sizes).state_dict())
        assert_same(optimizer.state_dict(), before)


def test_a_state_of_another_wrapper_is_refused():
    saved = {name: make(name, weights()).state_dict() for name in ("lookahead", "sam")}
    for name, other in (("lookahead", "sam"), ("sam", "lookahead")):
        with pytest.raises(ValueError, match="another wrapper"):
            make(name, weights()).load_state_dict(saved[other])
    older = copy.deepcopy(saved["lookahead"])
    del older["param_groups"][0]["wrapper"]["alpha"]  # a scalar that came later
    optimizer = make("lookahead", weights(), alpha=0.25)
    optimizer.load_state_dict(older)
    assert (optimizer.alpha, optimizer.k) == (0.25, 3)


@each
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_clones_have_all_that_is_public_and_go_on_alike(name, clone):
    for kwargs in configurations(name):
        params = weights()
        optimizer = make(name, two_groups(params, lr=0.02), **kwargs)
        train(name, optimizer, params, 0, 4)
        others, twin = clone((params, optimizer))
        public = {key for key in vars(optimizer) if not key.startswith("_")}
        assert public <= set(vars(twin)) and public >= {"state", "defaults"}
        assert twin.param_groups[0]["params"][0] is others[0]
        assert_same(twin.state_dict(), optimizer.state_dict())
        assert_same(train(name, twin, others, 4, 10), train(name, optimizer, params, 4, 10))


@each
def test_names_of_parameters_travel_with_the_state(name):
    params = weights()
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    optimizer = make(name, [dict(params=named[:2]), dict(params=named[2:])])
    train(name, optimizer, params)
    state = through_a_file(optimizer.state_dict())
    assert [group["param_names"] for group in state["param_groups"]] == [["layer0", "layer1"], ["layer2", "layer3"]]
    again = make(name, two_groups(weights()))
    again.load_state_dict(state)
    assert [group["param_names"] for group in again.param_groups] == [["layer0", "layer1"], ["layer2", "layer3"]]


@each
def test_groups_that_join_and_weights_that_thaw_mid_run(name):
    """As from the start, had they had no gradient until then; and the state of it reloads."""
    def run(late, cut=None):
        params = weights()
        for p in params[2:]: p.requires_grad_(False)
        optimizer = make(name, params[:2] if late else two_groups(params))
        train(name, optimizer, params, 0, 4)
        if late:
            optimizer.add_param_group(dict(params=params[2:]))
        for p in params[2:]: p.requires_grad_(True)
        train(name, optimizer, params, 4, 6)
        if cut:
            others = weights()
            copy_weights(params, others)
            again = make(name, two_groups(others))
            again.load_state_dict(through_a_file(optimizer.state_dict()))
            return train(name, again, others, 6, 12)
        return train(name, optimizer, params, 6, 12)

    expected = run(late=False)
    assert_same(run(late=True), expected)
    assert_same(run(late=True, cut=True), expected)
    assert not torch.equal(expected[2], weights()[2].detach())


OTHERS = {"Adam": torch.optim.Adam, "SGD": lambda params: SGD(params, momentum=0.9), "RMSprop": torch.optim.RMSprop,
          "Adagrad": torch.optim.Adagrad, "RAdam": torch.optim.RAdam, "Adafactor": torch.optim.Adafactor,
          **{name: lambda params, name=name: make(name, params) for name in INFOS}}


def kind(name): return "DALS" if name.startswith("dals") else name


@each
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_state_of_another_class_is_refused_and_changes_nothing(name, other, steps):
    if kind(name) == kind(other):
        return  # the three of DALS differ in their defaults
    saved = {}
    for which, build in ((name, INFOS[name].optim_cls), (other, OTHERS[other])):
        params = weights()
        optimizer = build(params)
        for k in range(3 if which == name else steps):
            optimizer.step(closure(optimizer, params, k))
        saved[which] = params, optimizer
    params, optimizer = saved[name]
    before, places = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="another optimizer|not saved by|another wrapper"):
        optimizer.load_state_dict(saved[other][1].state_dict())
    assert_same([optimizer.state_dict(), [p.detach() for p in params]], [before, places])


@each
def test_a_state_that_is_none_or_of_other_shapes_is_refused_and_changes_nothing(name):
    def run(shapes):
        params = weights(shapes=shapes)
        optimizer = make(name, params, **({"momentum": 0.9} if name in ("lookahead", "sam") else {}))
        train(name, optimizer, params, 0, 3)
        return optimizer

    optimizer, state = run(((4, 3), (3,))), run(((3, 4), (3,))).state_dict()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"of group 0 has shape \(3, 4\) in the state, the parameter has \(4, 3\)"):
        optimizer.load_state_dict(state)
    for wrong in ({"param_groups": before["param_groups"]}, {"state": before["state"]}, {}, {"model": before}):
        with pytest.raises(ValueError, match='has "state" and "param_groups"'):
            optimizer.load_state_dict(wrong)
    with pytest.raises(ValueError, match="is a dict, not NoneType"):
        optimizer.load_state_dict(None)
    broken = copy.deepcopy(before)
    if name == "sam":
        broken["param_groups"][0].update(maximize=True)
    else:
        next(iter(broken["state"].values())).update(stranger=torch.ones(4, 3))
    with pytest.raises(ValueError, match="it has|does not support maximize"):
        optimizer.load_state_dict(broken)
    broken = copy.deepcopy(before)
    broken["param_groups"][0].update(foreach=None, momentum=2.0, betas=(2.0, 0.9))
    if name not in WRAPPERS:
        with pytest.raises(ValueError, match="momentum must|Both betas must|another optimizer"):
            optimizer.load_state_dict(broken)
    assert_same(optimizer.state_dict(), before)



def trained(name):
    """Two parameters and their optimizer, three steps later; bases have momentum."""
    params = weights(shapes=((4, 3), (3,)))
    optimizer = make(name, params, **({"momentum": 0.9} if name in ("lookahead", "sam") else {}))
    train(name, optimizer, params, 0, 3)
    return params, optimizer


def first_tensors(change):
    """A change of every tensor with dimensions that a state, or a base in it, keeps for the first parameter."""
    def apply(state):
        kept = state["state"][0]
        for place in (kept, kept.get("base", {})):
            for key, x in place.items():
                if isinstance(x, torch.Tensor) and x.ndim:
                    place[key] = change(x)
    return apply


def in_group(**values):
    """Values in the place of those in the first group, where it has them; False where it has none."""
    def apply(state):
        group = state["param_groups"][0]
        found = {key: value for key, value in values.items() if key in group}
        group.update(found)
        return bool(found)
    return apply


BROKEN = {
    "state is None": lambda state: state.update(state=None), "state is a list": lambda state: state.update(state=[1]),
    "groups are a text": lambda state: state.update(param_groups="ab"), "groups are None": lambda state: state.update(param_groups=None),
    "a group is a text": lambda state: state.update(param_groups=["a"]), "a group is None": lambda state: state.update(param_groups=[None]),
    "no params": lambda state: state["param_groups"][0].pop("params") and None, "params None": in_group(params=None),
    "params a number": in_group(params=2), "params lists": in_group(params=[[0], [1]]), "params twice": in_group(params=[0, 0]),
    "an entry is None": lambda state: state["state"].update({0: None}), "an entry is a list": lambda state: state["state"].update({0: [1]}),
    "an entry is a tensor": lambda state: state["state"].update({0: torch.ones(3)}),
    "an entry of nobody": lambda state: state["state"].update({77: {"x": torch.ones(3)}}),
    "shapes": first_tensors(lambda x: torch.ones(7)), "no values": first_tensors(lambda x: x.to("meta")),
    "lr a text": in_group(lr="x"), "lr NaN": in_group(lr=float("nan")), "lr complex": in_group(lr=1j), "lr True": in_group(lr=True),
    "lr infinite": in_group(lr=float("inf")), "lr a list": in_group(lr=[0.1]),
    "step a text": in_group(step="x"), "step below 0": in_group(step=-1), "step None": in_group(step=None), "step half": in_group(step=0.5),
    "phase 7": in_group(phase=7), "phase a text": in_group(phase="x"), "average a text": in_group(loss_ema="x"),
    "average complex": in_group(loss_ema=1j), "base_lr a text": in_group(base_lr="x"),
    "wrapper None": in_group(wrapper=None), "wrapper a text": in_group(wrapper="ab"),
    "wrapper of texts": in_group(wrapper={"k": "x", "rho": "x", "lamb": "x"}),
}


@pytest.mark.parametrize("fault", BROKEN)
@each
def test_a_state_with_a_part_of_another_kind_is_refused_in_a_sentence_and_changes_nothing(name, fault):
    params, optimizer = trained(name)
    state = copy.deepcopy(optimizer.state_dict())
    if BROKEN[fault](state) is False:
        return  # it has no such part
    before = copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])
    with pytest.raises((TypeError, ValueError)) as refused:
        optimizer.load_state_dict(state)
    assert re.search(r"[a-z].*\.$", str(refused.value)) and "object" not in str(refused.value)
    assert_same([[p.detach() for p in params], optimizer.state_dict()], before)


@pytest.mark.parametrize("change", [torch.Tensor.long, lambda x: x * 1j, torch.Tensor.to_sparse])
@pytest.mark.parametrize("name", ["AdaBound", "lars", "Lion", "dals", "lookahead", "grokfast"])
def test_a_state_of_another_kind_of_tensor_is_refused(name, change):
    params, optimizer = trained(name)
    state = copy.deepcopy(optimizer.state_dict())
    first_tensors(change)(state)
    with pytest.raises(ValueError, match="in the state, the parameter"):
        optimizer.load_state_dict(state)


ODD = {"a text": "x", "None": None, "infinite": float("inf"), "complex": 1j, "a list": [0.1], "True": True, "beyond floats": 10 ** 400,
       "two numbers": torch.ones(2), "with a gradient": torch.ones(1, requires_grad=True), "a complex tensor": torch.tensor(1j),
       "a tensor of truth": torch.tensor(True), "no value": torch.tensor(0.1, device="meta")}


@pytest.mark.parametrize("value", ODD)
@each
def test_an_option_of_another_kind_is_refused_in_a_sentence_and_changes_nothing(name, value):
    params, optimizer = trained(name)
    own = name not in ("lookahead", "sam", "grokfast")
    options = [option for option in ("lr", "weight_decay", "momentum", "alpha", "trust", "eps", "depth", "gamma", "final_lr")
               if option in optimizer.param_groups[0] and (own or option == "lr")]
    if value == "None" and not own:
        return  # the base may have a meaning for it
    before = copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])
    for option in options:
        with pytest.raises((TypeError, ValueError)) as refused:
            optimizer.add_param_group({"params": [Parameter(torch.ones(2))], option: ODD[value]})
        assert option in str(refused.value) and "supported between" not in str(refused.value)
        assert_same([[p.detach() for p in params], optimizer.state_dict()], before)
    with pytest.raises(ValueError, match='has its parameters as "params"'):
        optimizer.add_param_group({"lr": 0.1})


@pytest.mark.parametrize("make, option", [
    (lambda ps, v: DALS(ps, total_steps=9, thresholds=v), "thresholds"),
    (lambda ps, v: DALS(ps, total_steps=9, trust_clip=v), "trust_clip"),
    (lambda ps, v: DALS(ps, total_steps=9, thresholds=(v, v)), "thresholds"), (lambda ps, v: DALS(ps, total_steps=v), "total_steps"),
    (lambda ps, v: DALS(ps, total_steps=9, trust_clip=(v, v)), "trust_clip"), (lambda ps, v: DALS(ps, total_steps=9, warmup=v), "warmup"),
    (lambda ps, v: DALS(ps, total_steps=9, foreach=v), "foreach"), (lambda ps, v: DALS(ps, total_steps=9, capturable=v), "capturable"),
    (lambda ps, v: DALS(ps, total_steps=9, filter_in_exploration=v), "filter_in"), (lambda ps, v: Lion(ps, betas=v), "betas"),
    (lambda ps, v: DALSAcc(ps, restart_steps=v), "restart_steps"), (lambda ps, v: AdaBound(ps, betas=(0.5, v)), "betas"),
    (lambda ps, v: DALSAcc(ps, restart_steps=9, restart_mult=v), "restart_mult"), (lambda ps, v: SAM(SGD(ps), rho=v), "rho"),
    (lambda ps, v: Lookahead(SGD(ps), k=v), "k must"), (lambda ps, v: Lookahead(SGD(ps), alpha=v), "alpha"),
    (lambda ps, v: Grokfast(SGD(ps), alpha=v), "alpha"), (lambda ps, v: Grokfast(SGD(ps), lamb=v), "lamb")])
@pytest.mark.parametrize("value", ["x", 1j, {}, [[1]], torch.ones(2), torch.tensor(1j), torch.tensor(0.5, device="meta")])
def test_an_argument_of_another_kind_is_refused_in_a_sentence(make, option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        make([Parameter(torch.ones(2))], value)


@each
def test_a_closure_that_raises_leaves_weights_and_state_as_they_were(name):
    params, optimizer = trained(name)
    for call in range(2 if name == "sam" else 1):
        calls, evaluate = iter(range(9)), closure(optimizer, params, 3)

        def breaks(calls=calls, call=call, evaluate=evaluate):
            loss = evaluate()
            if next(calls) == call:
                raise ArithmeticError("in the middle")
            return loss
        before = copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])
        with pytest.raises(ArithmeticError, match="in the middle"):
            optimizer.step(breaks)
        assert_same([[p.detach() for p in params], optimizer.state_dict()], before)


@each
@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_empty_group_changes_nothing(name, where):
    walks = []
    for empty in (False, True):
        params = weights()
        groups = two_groups(params, lr=0.02)
        if empty:
            groups.insert(where, dict(params=[], weight_decay=0.0))
        optimizer = make(name, groups)
        walks.append(train(name, optimizer, params))
        if empty:
            again = make(name, [dict(params=group["params"]) for group in groups])
            again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(*walks)


@each
def test_a_batch_that_was_left_out_is_no_step(name):
    params = weights()
    optimizer = make(name, params)
    train(name, optimizer, params)
    optimizer.zero_grad()
    before, places = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    for _ in range(4):
        assert optimizer.step(lambda: None) is None
    assert_same([optimizer.state_dict(), [p.detach() for p in params]], [before, places])
    only = make(name, [dict(params=[])])
    assert only.step(lambda: None) is None


# ---- hooks ----

@each
def test_step_hooks_fire_once_and_in_order(name):
    params, seen = weights(), []
    optimizer = make(name, params)

    def note(word): return lambda which, *_: seen.append(word) if which is optimizer else None

    handles = [register_optimizer_step_pre_hook(note("all before")), register_optimizer_step_post_hook(note("all after")),
               optimizer.register_step_pre_hook(note("before")), optimizer.register_step_post_hook(note("after"))]
    base = getattr(optimizer, "base", None)
    if base is not None:
        handles.append(base.register_step_post_hook(lambda *_: seen.append("base")))
    try:
        train(name, optimizer, params, 0, 2)
    finally:
        for handle in handles: handle.remove()
    once = ["all before", "before", *(["base"] if base is not None else []), "after", "all after"]
    assert seen == 2 * once
    train(name, optimizer, params, 2, 3)
    assert seen == 2 * once


@pytest.mark.parametrize("wrap", ["Lookahead", "SAM", "Grokfast", "nested", "nested twice"])
@pytest.mark.parametrize("base", ["SGD", "DALS"])
def test_hooks_for_every_optimizer_see_one_step_of_a_wrapper(base, wrap):
    seen, params = [], weights()
    optimizer = WRAPS[wrap](BASES[base](params))
    with (register_optimizer_step_pre_hook(lambda which, *_: seen.append(("before", which))),
          register_optimizer_step_post_hook(lambda which, *_: seen.append(("after", which)))):
        for k in range(2):
            optimizer.step(closure(optimizer, params, k))
    assert seen == 2 * [("before", optimizer), ("after", optimizer)]
    optimizer.step(closure(optimizer, params, 2))
    assert len(seen) == 4
    with register_optimizer_step_post_hook(lambda which, *_: seen.append(which)):
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        optimizer.step(closure(optimizer, params, 3))
    assert seen[4:] == [optimizer]


@each
def test_a_step_pre_hook_may_replace_the_closure(name):
    params, losses = weights(), []
    optimizer = make(name, params)

    def replace(_, args, kwargs):
        return (args[0], lambda: losses.append(1.0) or args[1]()), kwargs

    optimizer.register_step_pre_hook(replace)
    optimizer.step(closure(optimizer, params, 0))
    assert len(losses) == (2 if name == "sam" else 1)


@each
def test_state_dict_hooks_see_the_whole_state(name):
    params = weights()
    optimizer = make(name, params, lr=0.01)
    train(name, optimizer, params)
    state, seen = copy.deepcopy(optimizer.state_dict()), []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append(sorted(state)))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 7})
    assert_same(optimizer.state_dict(), {**state, "note": 7})
    assert seen == ["save", sorted(state)]

    def other_rate(_, loaded):
        loaded = copy.deepcopy(loaded)
        loaded["param_groups"][0]["lr"] = 0.002
        return loaded

    optimizer.register_load_state_dict_pre_hook(other_rate)
    optimizer.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded["param_groups"][0]["lr"]), prepend=True)
    optimizer.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded["param_groups"][0]["lr"]))
    optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append(("loaded", optimizer.param_groups[0]["lr"])))
    optimizer.load_state_dict(state)
    assert seen[2:] == [0.01, 0.002, ("loaded", 0.002)]
    assert state["param_groups"][0]["lr"] == 0.01


# ---- any shapes, groups, dtypes and lengths ----

NUMBERS = st.integers(0, 2**31)
SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)
BASES = {"SGD": lambda groups: SGD(groups, 0.05, momentum=0.9, weight_decay=0.01), "AdamW": lambda groups: AdamW(groups, 0.02),
         "AdaBound": lambda groups: AdaBound(groups, 0.02, gamma=0.1), "Lion": lambda groups: Lion(groups, 0.01, weight_decay=0.1),
         "LARS": lambda groups: LARS(groups, 0.5, trust=0.05), "DALS": lambda groups: DALS(groups, 0.05, total_steps=40)}
WRAPS = {"bare": lambda base: base, "Lookahead": lambda base: Lookahead(base, 3), "SAM": SAM, "Grokfast": lambda base: Grokfast(base, 0.8),
         "nested": lambda base: Lookahead(Grokfast(SAM(base, 0.1)), 2, 0.7), "nested twice": lambda base: Lookahead(Lookahead(base, 2), 3)}


class Course:
    """Random tensors in random groups, with a rate for each step and gradients that come and go."""

    def __init__(self, seed, shapes, dtypes=(torch.float64,), steps=12, gaps=True):
        self.rng, self.gaps = torch.Generator().manual_seed(seed), gaps
        self.start = [self.draw(*shape).to(dtypes[self.pick(len(dtypes))]) for shape in shapes]
        self.cuts = sorted({0, len(shapes), *(self.pick(len(shapes) + 1) for _ in range(2))})
        self.rates = [0.5 + self.pick(4) / 8 for _ in range(steps)]
        self.noise = [[None if gaps and self.pick(5) == 0 else self.draw(*shape) for shape in shapes] for _ in range(steps)]

    def draw(self, *shape): return torch.randn(shape, generator=self.rng, dtype=torch.float64)

    def pick(self, n): return int(torch.randint(n, (), generator=self.rng))

    def params(self): return [Parameter(x.clone()) for x in self.start]

    def groups(self, params):
        return [dict(params=params[a:b], **({"lr": 0.03} if i else {})) for i, (a, b) in enumerate(itertools.pairwise(self.cuts))]

    def walk(self, optimizer, params, first=0, last=None):
        """Steps with gradients that depend on where the weights are; returns where they end."""
        for rate, noise in list(zip(self.rates, self.noise, strict=True))[first:last]:
            def evaluate(noise=noise):
                for p, x in zip(params, noise, strict=True):
                    p.grad = None if x is None else (0.5 * p.detach() + x).to(p.dtype)
                return 1.0

            given = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups: group["lr"] *= rate
            optimizer.step(evaluate)
            for group, lr in zip(optimizer.param_groups, given, strict=True): group["lr"] = lr
        return [p.detach().clone() for p in params]

    def end(self, build):
        params = self.params()
        return self.walk(build(self.groups(params)), params)


@settings(max_examples=60, deadline=None)
@given(seed=NUMBERS, shapes=SHAPES, cut=st.integers(0, 12), base=st.sampled_from(sorted(BASES)), wrap=st.sampled_from(sorted(WRAPS)))
def test_saving_and_loading_anywhere_changes_nothing(seed, shapes, cut, base, wrap):
    course = Course(seed, shapes, (torch.float32, torch.float64, torch.bfloat16))

    def build(groups): return WRAPS[wrap](BASES[base](groups))

    params = course.params()
    optimizer = build(course.groups(params))
    course.walk(optimizer, params, 0, cut)
    others = course.params()
    copy_weights(params, others)
    again = build(course.groups(others))
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(course.walk(again, others, cut), course.walk(optimizer, params, cut))
    assert_same(again.state_dict(), optimizer.state_dict())


@settings(max_examples=30, deadline=None)
@given(seed=NUMBERS, shapes=SHAPES, base=st.sampled_from(sorted(BASES)))
def test_wrappers_that_do_nothing_are_their_base(seed, shapes, base):
    course = Course(seed, shapes, (torch.float32, torch.float64, torch.bfloat16))
    expected = course.end(BASES[base])
    for wrap in (lambda x: Lookahead(x, k=2, alpha=1.0), lambda x: Lookahead(x, k=100), lambda x: SAM(x, rho=0.0),
                 lambda x: Grokfast(x, lamb=0.0)):
        assert_same(course.end(lambda groups, wrap=wrap: wrap(BASES[base](groups))), expected)


@settings(max_examples=30, deadline=None)
@given(seed=NUMBERS, shapes=SHAPES)
@example(seed=1, shapes=[(2, 3), (), (), (0,)]) # a gradient so small that the two places of eps, before and after the bias correction, tell
def test_adabound_with_open_bounds_is_torchs_adam(seed, shapes):
    course, options = Course(seed, shapes), dict(lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    torch.testing.assert_close(course.end(lambda groups: AdaBound(groups, eps=1e-14, gamma=1e-13, final_lr=10.0, **options)),
                               course.end(lambda groups: torch.optim.Adam(groups, eps=1e-14, **options)), rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=NUMBERS, shapes=SHAPES)
def test_the_same_walk_as_pytorch_optimizer(seed, shapes):
    """Where its definition agrees: every tensor has a gradient, for LARS it is a matrix at least, and the rate stays."""
    theirs = pytest.importorskip("pytorch_optimizer")
    course, steady = Course(seed, shapes, gaps=False), Course(seed, [(2, *shape) for shape in shapes if shape] or [(2, 2)], gaps=False)
    steady.rates = [1.0] * 12
    adabound = dict(betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1, final_lr=0.05, gamma=0.1)
    lars_options = dict(momentum=0.9, weight_decay=0.1)
    pairs = {
        "AdaBound": (lambda groups: AdaBound(groups, 0.02, **adabound),
                     lambda groups: theirs.AdaBound(groups, 0.02, weight_decouple=False, foreach=False, **adabound)),
        "LARS": (lambda groups: LARS(groups, 0.5, trust=0.05, eps=0.0, **lars_options),
                 lambda groups: theirs.LARS(groups, 0.5, trust_coefficient=0.05, foreach=False, **lars_options)),
        "Lion": (lambda groups: Lion(groups, 0.01, (0.8, 0.9), 0.1),
                 lambda groups: theirs.Lion(groups, 0.01, (0.8, 0.9), 0.1, foreach=False)),
        "Lookahead": (lambda groups: Lookahead(AdamW(groups, 0.05), 3, 0.3), lambda groups: theirs.Lookahead(AdamW(groups, 0.05), 3, 0.3)),
    }
    for name, (one, two) in pairs.items():
        there = steady if name == "LARS" else course
        torch.testing.assert_close(there.end(one), there.end(two), rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=NUMBERS, shapes=SHAPES, rho=st.floats(0.01, 1.0), lamb=st.floats(0.1, 5.0))
def test_sam_and_grokfast_by_hand(seed, shapes, rho, lamb):
    """One vector of all weights, its gradient 0.5 w + noise, and the two formulas."""
    course = Course(seed, shapes, gaps=False)
    course.cuts = [0, len(shapes)]
    flat = [torch.cat([x.flatten() for x in noise]) for noise in course.noise]

    def ends(build): return torch.cat([x.flatten() for x in course.end(build)])

    w = torch.cat([x.flatten() for x in course.start])
    for rate, x in zip(course.rates, flat, strict=True):
        g = 0.5 * w + x
        w = w - 0.1 * rate * (0.5 * (w + rho * g / (g.norm() + 1e-12)) + x)
    torch.testing.assert_close(ends(lambda groups: SAM(SGD(groups, 0.1), rho)), w, rtol=1e-9, atol=1e-11)

    w, mean = torch.cat([x.flatten() for x in course.start]), None
    for rate, x in zip(course.rates, flat, strict=True):
        g = 0.5 * w + x
        mean = g if mean is None else 0.8 * mean + 0.2 * g
        w = w - 0.1 * rate * (g + lamb * mean)
    torch.testing.assert_close(ends(lambda groups: Grokfast(SGD(groups, 0.1), 0.8, lamb)), w, rtol=1e-9, atol=1e-11)
