"""Five generations of learning-rate strategies, and DALS, as torch optimizers."""

__version__ = "0.1.0"

from dals.layerwise import layer_groups
from dals.optimizer import DALS, DALSAcc, DALSFast
from dals.strategies import STRATEGIES
import dals.ablation  # registers its protocol
import dals.released  # registers its protocol
from dals.training import fit
from dals.benchmark import benchmark, own_task

__all__ = ["DALS", "DALSAcc", "DALSFast", "STRATEGIES", "benchmark", "fit", "layer_groups", "own_task"]
