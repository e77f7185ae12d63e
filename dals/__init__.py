"""Five generations of learning-rate strategies, and DALS, as torch optimizers."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dals.lab.compare import benchmark, own_task
    from dals.lab.training import fit
    from dals.optim.dals import DALS, DALSAcc, DALSFast
    from dals.optim.layers import layer_groups
    from dals.recipes.strategies import STRATEGIES

__all__ = ["DALS", "DALSAcc", "DALSFast", "STRATEGIES", "benchmark", "fit", "layer_groups", "own_task"]

_HOMES = {  # where each name is made; imported when it is first asked for, so that `import dals` alone does not import torch
    "DALS": "optim.dals", "DALSAcc": "optim.dals", "DALSFast": "optim.dals", "STRATEGIES": "recipes.strategies",
    "benchmark": "lab.compare", "fit": "lab.training", "layer_groups": "optim.layers", "own_task": "lab.compare"}
_WINGS = ("cli", "lab", "lesson", "optim", "paper", "recipes")


def __getattr__(name: str) -> object:
    "A public name or a wing, imported at the first look (PEP 562)"
    from importlib import import_module
    if name in _WINGS:
        return import_module(f"dals.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dals' has no attribute {name!r}: it has {', '.join(__all__)}", name=name)
    value = globals()[name] = getattr(import_module(f"dals.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WINGS})
