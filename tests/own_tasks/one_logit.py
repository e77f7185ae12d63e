"Yes or no with one logit, three times as many noes as yeses, and training that stops when validation does not improve."
import torch
from torch import nn

from dals import own_task

x = torch.randn(224, 6)
sick = (x[:, :2].sum(1) > 1).float()[:, None] # 0 or 1, [examples, 1]
parts = (x[:128], sick[:128]), (x[160:], sick[160:]), (x[128:160], sick[128:160])


def model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)) # [examples, 1]


task = own_task("sick", model, *parts[:2], valid=parts[2], patience=1, epochs=3, batch_size=16,
                loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), metric="accuracy")
