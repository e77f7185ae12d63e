"DALS on two ranks: DDP, FSDP2, tensor parallel and distributed checkpoints go where one process goes, phase included."

import copy
import functools
import math
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import Parameter

from dals import DALS, layer_groups
from dals.optim.adaptive import AdaBound
from dals.optim.joint import SAM, Grokfast, Lion, Lookahead
from dals.optim.layerwise import LARS
from torches import flattens

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

LIMIT = 60 # seconds that both ranks may take for one piece of work; each takes a few
START = 300 # seconds in which two processes import torch, also where other work keeps the machine busy


# Two processes that wait for work

def serve(rank, store, pipe):
    "One rank: joins the other, then does what it is sent until it is ended."
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    pipe.send("ready")
    pipe.recv() # the other one is ready too
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2, timeout=timedelta(seconds=LIMIT / 2))
    while True:
        work, arguments = pipe.recv()
        try:
            pipe.send((None, work(rank, *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    "Call with a function of this file and its arguments: returns what it returned on rank 0 and on rank 1. No rank outlives LIMIT."
    pairs = []

    def stop():
        for process, _ in pairs:
            process.kill()
        for process, _ in pairs:
            process.join(5)
        pairs.clear()

    def start():
        context, store = multiprocessing.get_context("spawn"), tmp_path_factory.mktemp("store") / "store"
        for rank in range(2):
            mine, its = context.Pipe()
            process = context.Process(target=serve, args=(rank, store, its), daemon=True)
            process.start()
            its.close() # so that its end is seen here
            pairs.append((process, mine))
        for _, pipe in pairs:
            assert pipe.poll(START) and pipe.recv() == "ready"
        for _, pipe in pairs:
            pipe.send("go")

    def run(work, *arguments):
        if not pairs:
            start()
        pipes = [pipe for _, pipe in pairs]
        for pipe in pipes:
            pipe.send((work, arguments))
        answers, deadline = {}, time.monotonic() + LIMIT
        while len(answers) < 2:
            ready = wait([pipe for pipe in pipes if pipe not in answers], max(0, deadline - time.monotonic()))
            for pipe in ready:
                try:
                    error, answers[pipe] = pipe.recv()
                except EOFError:
                    error = "it ended"
                if error:
                    stop()
                    pytest.fail(f"{work.__name__} on rank {pipes.index(pipe)}: {error}", pytrace=False)
            if not ready:
                late = [rank for rank, pipe in enumerate(pipes) if pipe not in answers]
                stop()
                pytest.fail(f"{work.__name__}: no answer from rank {late} within {LIMIT} seconds", pytrace=False)
        return [answers[pipe] for pipe in pipes]

    yield run
    stop()


# A small model with awkward shapes, and its training

def words(dtype=torch.float32):
    "Shapes that two ranks cannot halve: 7 rows, 9 rows, and 1 row, which leaves one rank without any."
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(15, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 1)).to(dtype)


def batch(step, dtype=torch.float32):
    "Eight examples; the first half is easy, the second is noise, so that the ranks see different losses."
    generator = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(7, (8, 3), generator=generator)
    noise = 2 * torch.randn(8, 1, generator=generator, dtype=torch.float64) * torch.arange(8).gt(3)[:, None]
    return ids, (ids[:, :1] / 3.0 + noise).to(dtype)


OPTIONS = {"weight_decay": 0.01, "trust": 0.2, "trust_clip": (1e-3, 1e3)} # limits so wide that every norm tells


def dals(model, foreach=None):
    return DALS(layer_groups(model), 0.1, total_steps=40, foreach=foreach, **OPTIONS)


def train(model, optimizer, steps, rank=None, way="observe"):
    "Phase and loss average after each step, with the half of each batch that belongs to the rank, or with all of it."
    rows = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    history = []
    for step in steps:
        ids, targets = batch(step, next(model.parameters()).dtype)
        ids, targets = ids[rows], targets[rows]

        def closure(ids=ids, targets=targets):
            optimizer.zero_grad()
            loss = F.mse_loss(model(ids), targets)
            loss.backward()
            return loss

        if way == "closure":
            optimizer.step(closure)
        elif way == "observe":
            optimizer.observe(closure())
            optimizer.step()
        else: # micro-batches of two examples, which the gradient is the mean of
            optimizer.zero_grad()
            for part in torch.arange(len(ids)).split(2):
                loss = F.mse_loss(model(ids[part]), targets[part])
                (loss * 2 / len(ids)).backward()
                optimizer.observe(loss)
            optimizer.step()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
    return history


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def values(model):
    "All parameters as one list of numbers."
    return torch.cat([whole(p.detach()).flatten() for p in model.parameters()]).tolist()


def meets(a, b, tolerance):
    "The same history and the same parameters."
    (history, params), (wanted, expected) = a, b
    assert [phase for phase, _ in history] == [phase for phase, _ in wanted]
    assert [ema for _, ema in history] == pytest.approx([ema for _, ema in wanted], rel=tolerance, abs=tolerance)
    assert params == pytest.approx(expected, rel=tolerance, abs=tolerance)


@functools.cache
def alone(dtype=torch.float32, rank=None):
    "The run of one process, with all of each batch or with half of it."
    model = words(dtype)
    return train(model, dals(model), range(1, 31), rank), values(model)


def test_the_run_visits_all_phases_and_half_of_the_data_would_take_others():
    "Else the tests below could pass without any exchange of losses."
    phases = [[phase for phase, _ in alone(torch.float64, rank)[0]] for rank in (None, 0, 1)]
    assert set(phases[0]) == {0, 1, 2} and phases[0] != phases[1] and phases[0] != phases[2]


# Data parallel

def ddp(rank, way):
    model = words(torch.float64)
    parallel = nn.parallel.DistributedDataParallel(model)
    return train(parallel, dals(parallel), range(1, 31), rank, way), values(model)


@pytest.mark.parametrize("way", ["observe", "closure", "micro-batches"])
def test_ddp_goes_where_one_process_goes_with_the_whole_batch(on_two_ranks, way):
    first, second = on_two_ranks(ddp, way)
    assert first == second
    meets(first, alone(torch.float64), 1e-10)


# Fully sharded

def shard(model):
    for layer in model:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer)
    return fully_shard(model)


def fsdp(rank, foreach):
    model = shard(words())
    rows = [p.to_local().shape[0] for p in model.parameters()]
    groups = [(group["name"], group["depth"], len(group["params"])) for group in layer_groups(model)]
    optimizer = dals(model, foreach)
    history = train(model, optimizer, range(1, 31), rank)
    kinds = [type(x) is DTensor and x.placements == p.placements and x.shape == p.shape
             for p in model.parameters() for x in optimizer.state[p].values() if x.ndim]
    return (history, values(model)), rows, groups, len(kinds) == 2 * len(rows) and all(kinds)


@pytest.mark.parametrize("foreach", [None, False])
def test_fsdp_goes_where_one_process_goes(on_two_ranks, foreach):
    results = on_two_ranks(fsdp, foreach)
    (first, rows, groups, sharded), (second, other_rows, _, _) = results
    assert first == second and sharded
    assert rows != other_rows and 0 in other_rows # uneven, and a tensor of which one rank holds nothing
    assert groups == [(group["name"], group["depth"], len(group["params"])) for group in layer_groups(words())]
    meets(first, alone(), 1e-5)


def overflow(rank):
    "As fsdp, with scaled losses; in step 7 the gradients overflow where only rank 1 holds them."
    model = shard(words())
    optimizer, scaler = dals(model), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    history, scales = [], []
    for step in range(1, 21):
        ids, targets = batch(step)
        loss = F.mse_loss(model(ids[4 * rank:4 * rank + 4]), targets[4 * rank:4 * rank + 4])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step == 7 and rank == 1:
            next(model.parameters()).grad.to_local().fill_(math.inf)
        optimizer.observe(loss)
        scaler.step(optimizer)
        scaler.update()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
        scales.append(scaler.get_scale())
    return (history, values(model)), scales


def test_fsdp_skips_a_step_with_its_loss_on_every_rank_when_one_overflows(on_two_ranks):
    (first, scales), (second, others) = on_two_ranks(overflow)
    assert first == second and scales == others == [2.0**8] * 6 + [2.0**7] * 14
    model = words()
    history = train(model, dals(model), [step for step in range(1, 21) if step != 7])
    meets(first, (history[:6] + history[5:], values(model)), 1e-5)


# Checkpoints

def save(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    found = {"model": weights, "optimizer": state}
    dcp.load(found, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])


def start(rank, folder):
    "The first half of the run; `rank` is None in a process that is alone."
    model = words() if rank is None else shard(words())
    optimizer = dals(model)
    history = train(model, optimizer, range(1, 16), rank)
    save(model, optimizer, folder)
    return history


def resume(rank, folder):
    "The second half, from a model and an optimizer that know nothing of the first."
    model = words() if rank is None else shard(words())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    optimizer = dals(model)
    load(model, optimizer, folder)
    before = optimizer.param_groups[0]["step"], optimizer.phase, float(optimizer.loss_ema)
    history = train(model, optimizer, range(16, 31), rank)
    return before, history, values(model)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("ranks, then", [(2, 1), (1, 2), (2, 2)])
def test_a_checkpoint_resumes_on_another_number_of_ranks(on_two_ranks, ranks, then, tmp_path):
    histories = on_two_ranks(start, tmp_path) if ranks == 2 else [start(None, tmp_path)]
    ends = on_two_ranks(resume, tmp_path) if then == 2 else [resume(None, tmp_path)]
    for before, history, params in ends:
        assert before == (15, *histories[0][-1])
        meets((histories[0] + history, params), alone(), 1e-5)


# Losses that some ranks lack

MIXED = [([1.0], [2.0]), ([0.5], []), ([], [0.4]), ([math.nan], [0.3]), ([0.4], [math.inf]), ([math.inf], [-math.inf]), ([0.1, 0.2], [9.0]),
         ([0.2], [math.nan]), ([], [1.3, 1.2]), ([0.39], [0.4])] # what rank 0 and rank 1 observe before each step


def observing(sides):
    "One parameter moved by the same gradients on every rank; `sides` are the columns of MIXED that are observed here."
    p = Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = DALS([p], total_steps=20)
    history = []
    for step, losses in enumerate(MIXED, 1):
        for side in sides:
            for loss in losses[side]:
                optimizer.observe(loss)
        p.grad = torch.tensor([0.1 * step, -0.2], dtype=torch.float64)
        optimizer.step()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
    return history, p.tolist()


def uneven(rank):
    return observing([rank])


def test_ranks_that_lack_a_loss_or_have_a_bad_one_take_the_phase_of_all(on_two_ranks):
    "The mean is over all losses of all ranks; one that is not finite leaves average and phase alone everywhere."
    first, second = on_two_ranks(uneven)
    assert first == second
    assert {phase for phase, _ in first[0]} == {0, 1, 2}
    meets(first, observing([0, 1]), 1e-12)


def nothing_seen(rank):
    p = Parameter(torch.tensor([3.0, 4.0]))
    p.grad = torch.ones(2)
    optimizer = DALS([p], total_steps=20)
    try:
        optimizer.step()
    except RuntimeError as error:
        message = str(error)
    optimizer.observe(float(rank))
    optimizer.step()
    return message, optimizer.param_groups[0]["step"], float(optimizer.loss_ema)


def test_no_loss_on_any_rank_is_an_error_on_every_rank(on_two_ranks):
    for message, step, ema in on_two_ranks(nothing_seen):
        assert "optimizer.observe(loss)" in message and step == 1 and ema == 0.5


def steps_alone(rank):
    p = Parameter(torch.tensor([3.0, 4.0]))
    p.grad = torch.ones(2)
    optimizer = DALS([p], total_steps=20, thresholds=None)
    for _ in range(3 * rank):
        optimizer.step()
    dist.barrier()
    return optimizer.param_groups[0]["step"]


def test_without_thresholds_nothing_is_exchanged(on_two_ranks):
    assert on_two_ranks(steps_alone) == [0, 3]


# Tensor parallel

def matrices():
    "Parameters in double precision, and how each is laid over the ranks; None: an ordinary tensor."
    torch.manual_seed(1)
    shapes = {"columns": ((4, 5), Shard(1)), "rows": ((5, 4), Shard(0)), "copies": ((3,), Replicate()), "short": ((1,), Shard(0)),
              "ordinary": ((2, 3), None), "twice": ((8, 2), _StridedShard(0, split_factor=2))} # the last as FSDP2 over tensor parallel does
    return {name: (torch.randn(shape, dtype=torch.float64), way) for name, (shape, way) in shapes.items()}


def laid(tensor, way, mesh):
    return tensor.clone() if mesh is None or way is None else distribute_tensor(tensor.clone(), mesh, [way])


def mixed(mesh, foreach):
    "Twenty steps with gradients made up from the number of the step."
    tensors = matrices()
    ps = {name: Parameter(laid(tensor, way, mesh)) for name, (tensor, way) in tensors.items()}
    optimizer = DALS([{"params": [p], "depth": i / 5} for i, p in enumerate(ps.values())], 0.1, total_steps=25, foreach=foreach,
                     **OPTIONS)
    history = []
    for step in range(1, 21):
        torch.manual_seed(step)
        for name, p in ps.items():
            p.grad = laid(torch.randn(p.shape, dtype=torch.float64), tensors[name][1], mesh)
        optimizer.observe(1 / step ** (step % 4))
        optimizer.step()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
    return history, torch.cat([whole(p.detach()).flatten() for p in ps.values()]).tolist()


def tensor_parallel(rank, foreach):
    return mixed(init_device_mesh("cpu", (2,)), foreach)


@pytest.mark.parametrize("foreach", [None, False])
def test_columns_rows_copies_and_ordinary_tensors_in_one_optimizer(on_two_ranks, foreach):
    first, second = on_two_ranks(tensor_parallel, foreach)
    assert first == second
    meets(first, mixed(None, False), 1e-10)


def backward(mesh, foreach):
    "A layer whose matrix is split by columns and a factor that every rank holds, with the gradients that autograd makes of them."
    torch.manual_seed(2)
    weight, factor = (Parameter(laid(torch.randn(shape, dtype=torch.float64), way, mesh)) for shape, way in
                      [((3, 5), Shard(0)), ((5,), Replicate())])
    optimizer = DALS([weight, factor], 0.1, total_steps=25, foreach=foreach, **OPTIONS)
    kinds, history = set(), []
    for _ in range(20):
        x = laid(torch.randn(6, 5, dtype=torch.float64), Shard(0), mesh) # the batch is split too
        optimizer.zero_grad()
        loss = ((x * factor) @ (weight if mesh is None else weight.redistribute(mesh, [Replicate()])).T - 1).square().mean()
        loss.backward()
        kinds |= {str(p.grad.placements) for p in (weight, factor) if mesh is not None}
        optimizer.observe(whole(loss.detach()))
        optimizer.step()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
    return (history, torch.cat([whole(p.detach()).flatten() for p in (weight, factor)]).tolist()), sorted(kinds)


def autograd(rank, foreach):
    return backward(init_device_mesh("cpu", (2,)), foreach)


@pytest.mark.parametrize("foreach", [None, False])
def test_gradients_that_lie_otherwise_than_their_parameter(on_two_ranks, foreach):
    "Autograd leaves the gradient of a replicated parameter as a sum that is still to be taken over the ranks."
    (first, kinds), (second, _) = on_two_ranks(autograd, foreach)
    assert any("Partial" in kind for kind in kinds)
    assert first == second
    meets(first, backward(None, False)[0], 1e-10)


def gradients(mesh, rank):
    "A column whose gradient lies in memory otherwise than its parameter on rank 0, and on rank 1, with one row, like it."
    torch.manual_seed(3)
    p, full = (torch.randn(3, 1, dtype=torch.float64) for _ in range(2))
    p = Parameter(laid(p, Shard(0), mesh))
    p.grad = full
    if mesh is not None:
        part = full[:2].clone().as_strided((2, 1), (1, 2)) if rank == 0 else full[2:]
        p.grad = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=p.shape, stride=p.stride())
    optimizer = DALS([p], total_steps=9, **OPTIONS)
    history = []
    for _ in range(3):
        optimizer.observe(1.0)
        optimizer.step()
        history.append((optimizer.phase, float(optimizer.loss_ema)))
    return history, whole(p.detach()).flatten().tolist()


def strides(rank):
    return gradients(init_device_mesh("cpu", (2,)), rank)


def test_ranks_whose_gradients_lie_in_different_order_still_meet(on_two_ranks):
    "Else one waits for a norm that the other never sends."
    first, second = on_two_ranks(strides)
    assert first == second
    meets(first, gradients(None, 0), 1e-10)


def partial_loss(rank):
    p = Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = DALS([p], total_steps=5)
    optimizer.observe(DTensor.from_local(torch.tensor(0.25 + rank, dtype=torch.float64), init_device_mesh("cpu", (2,)), [Partial()]))
    optimizer.step()
    return float(optimizer.loss_ema)


def test_a_loss_that_is_a_sum_over_ranks_is_read_whole(on_two_ranks):
    assert on_two_ranks(partial_loss) == [1.5, 1.5]


# The other classes

CLASSES = {
    "SAM": lambda model: SAM(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 0.3),
    "LARS": lambda model: LARS(model.parameters(), 1.0, trust=0.05, weight_decay=0.1),
    "AdaBound": lambda model: AdaBound(model.parameters(), 0.02),
    "Lion": lambda model: Lion(model.parameters(), 0.01),
    "Lookahead": lambda model: Lookahead(torch.optim.AdamW(model.parameters(), 0.02), 3),
    "Grokfast": lambda model: Grokfast(torch.optim.SGD(model.parameters(), 0.05), 0.8),
    "nested": lambda model: Lookahead(SAM(Grokfast(dals(model))), 2),
}
LAYOUTS = {"plain": {}, "flat": {"flatten_optimizer_state_dict": True}, "full": {"full_state_dict": True}}


def walk(model, optimizer, steps, rank=None):
    "Train with closures; what an optimizer keeps of the loss is its own affair."
    rows = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    for step in steps:
        ids, targets = (x[rows] for x in batch(step))

        def closure(ids=ids, targets=targets):
            optimizer.zero_grad()
            loss = F.mse_loss(model(ids), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    return values(model)


def others(rank, name):
    "Half of a run in shards, then its other half by new optimizers that were given the state in each of torch's layouts."
    model = shard(words())
    optimizer = CLASSES[name](model)
    walk(model, optimizer, range(1, 8), rank)
    weights, states = copy.deepcopy(model.state_dict()), {}
    layouts = {layout: options for layout, options in LAYOUTS.items() if layout != "flat" or not hasattr(optimizer, "base") or flattens()}
    for layout, options in layouts.items():
        states[layout] = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options)))
    ends = []
    for layout, options in layouts.items():
        model.load_state_dict(weights)
        model.zero_grad()
        optimizer = CLASSES[name](model)
        set_optimizer_state_dict(model, optimizer, states[layout], options=StateDictOptions(**options))
        ends.append(walk(model, optimizer, range(8, 15), rank))
    return ends


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_goes_in_shards_and_over_checkpoints_where_one_process_goes(on_two_ranks, name):
    "Its norms are those of the whole, and a wrapper's checkpoint holds what its base keeps."
    first, second = on_two_ranks(others, name)
    assert first == second
    model = words()
    expected = walk(model, CLASSES[name](model), range(1, 15))
    for end in first:
        assert end == pytest.approx(expected, rel=1e-5, abs=1e-5)


def climbed(rank):
    "How far SAM goes uphill: rho, whatever part of the weights a rank holds, and a gradient that is still a sum over ranks."
    mesh = init_device_mesh("cpu", (2,))
    ps = [Parameter(laid(torch.zeros(5, 2), way, mesh)) for way in (Shard(0), Shard(1), Replicate(), None)]
    for p in ps:
        p.grad = torch.ones(5, 2) if not isinstance(p, DTensor) else distribute_tensor(torch.ones(5, 2), mesh, p.placements)
    ps[2].grad = DTensor.from_local(torch.full((5, 2), 0.5), mesh, [Partial()])
    with SAM(torch.optim.SGD(ps, 0.1), rho=2.0).uphill():
        return [whole(p.detach()).flatten().tolist() for p in ps]


def test_sam_climbs_by_the_whole_norm(on_two_ranks):
    first, second = on_two_ranks(climbed)
    assert first == second
    for found in first:
        assert found == pytest.approx([2.0 / math.sqrt(40)] * 10)


def old_shards(rank, original):
    "What each class says of FSDP1's pieces: in parameters that it is given, and in parameters that were whole when it was built."
    said = {}
    for name, make in {**CLASSES, "DALS": dals}.items():
        for late in (False, True):
            model = words()
            optimizer = make(model) if late else None
            parallel = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
            try:
                optimizer = optimizer or make(parallel)
                walk(parallel, optimizer, range(1, 3), rank)
                optimizer.state_dict()
                said[name, late] = "went on"
            except (ValueError, RuntimeError) as error:
                said[name, late] = str(error)
    return said


def test_pieces_of_fsdp1_are_refused_where_norms_or_states_would_be_wrong(on_two_ranks):
    first, second = on_two_ranks(old_shards, True)
    assert first == second
    for (name, _), said in first.items():
        if name in ("AdaBound", "Lion"):  # each weight for itself: a piece is as good as the whole
            assert said == "went on"
        else:
            assert said.endswith("use fully_shard."), (name, said)
    flat, _ = on_two_ranks(old_shards, False)
    assert all(said.endswith("use fully_shard.") for (name, late), said in flat.items() if name in ("SAM", "LARS", "DALS") and not late)


# ZeroRedundancyOptimizer

def zero(rank):
    "Each rank steps its share of the parameters and hears all losses; the state is gathered, and a new optimizer goes on."
    model = nn.parallel.DistributedDataParallel(words(torch.float64))
    optimizers = [ZeroRedundancyOptimizer(layer_groups(model), DALS, lr=0.1, total_steps=40, **OPTIONS) for _ in range(2)]
    history = train_zero(model, optimizers[0], range(1, 16), rank)
    optimizers[0].consolidate_state_dict()
    box = [optimizers[0].state_dict() if rank == 0 else None]
    dist.broadcast_object_list(box, 0)
    optimizers[1].load_state_dict(box[0])
    return history + train_zero(model, optimizers[1], range(16, 31), rank), values(model)


def train_zero(model, optimizer, steps, rank):
    history = []
    for step in steps:
        walk_once(model, optimizer, step, rank)
        history.append((optimizer.optim.phase, float(optimizer.optim.loss_ema)))
    return history


def walk_once(model, optimizer, step, rank):
    ids, targets = (x[4 * rank:4 * rank + 4] for x in batch(step, torch.float64))
    optimizer.zero_grad()
    loss = F.mse_loss(model(ids), targets)
    loss.backward()
    optimizer.optim.observe(loss)
    optimizer.step()


def test_zero_redundancy_takes_dals_with_its_options(on_two_ranks):
    first, second = on_two_ranks(zero)
    assert first == second
    meets(first, alone(torch.float64), 1e-10)


def lone(rank):
    "One parameter for two ranks: one of them has nothing to move, and must still take part."
    p = Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ZeroRedundancyOptimizer([p], DALS, lr=0.1, total_steps=20)
    for loss in (2.0, 1.0):
        p.grad = torch.ones(2)
        optimizer.optim.observe(loss + rank)
        optimizer.step()
    return p.tolist(), optimizer.optim.param_groups[0]["step"], optimizer.optim.loss_ema


def test_a_rank_without_parameters_takes_part(on_two_ranks):
    p = Parameter(torch.tensor([3.0, 4.0]))
    optimizer = DALS([p], 0.1, total_steps=20)
    for loss in (2.5, 1.5):
        p.grad = torch.ones(2)
        optimizer.step(lambda loss=loss: loss)
    for found, step, average in on_two_ranks(lone):
        assert found == pytest.approx(p.tolist()) and (step, average) == (2, optimizer.loss_ema)


def idle(rank):
    "A batch that no rank has, and one that only rank 1 has."
    p = Parameter(torch.tensor([3.0, 4.0]))
    optimizer = DALS([p], total_steps=20)
    optimizer.step(lambda: None)
    before = optimizer.param_groups[0]["step"]
    p.grad = torch.ones(2)
    optimizer.step(lambda: 1.0 if rank else None)
    return before, optimizer.param_groups[0]["step"], p.tolist()


def test_a_step_that_no_rank_has_is_none(on_two_ranks):
    first, second = on_two_ranks(idle)
    assert first == second and first[:2] == (0, 1)
