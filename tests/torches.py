"What the torch at hand can do, found out by trying."
from functools import cache

import torch
from torch.nn import Linear


@cache
def flattens():
    "Whether `flatten_optimizer_state_dict` takes a state with dicts in it, as an optimizer around another has; else torch refuses."
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    model = Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for p in model.parameters():
        optimizer.state[p] = {"base": {"kept": torch.zeros(1)}}
    try:
        get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    except NotImplementedError:
        return False
    return True
