"""Five generations of learning-rate strategies, and DALS, as torch optimizers."""

__version__ = "0.1.0"

from dals.optim.layers import layer_groups
from dals.optim.dals import DALS, DALSAcc, DALSFast
from dals.recipes.strategies import STRATEGIES
import dals.recipes.ablation  # registers its protocol
import dals.recipes.released  # registers its protocol
import dals.lab.texts  # registers its tasks
import dals.lab.pictures  # registers its tasks
from dals.lab.training import fit
from dals.lab.compare import benchmark, own_task

__all__ = ["DALS", "DALSAcc", "DALSFast", "STRATEGIES", "benchmark", "fit", "layer_groups", "own_task"]
