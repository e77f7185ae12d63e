"A regression: the price of a thing from four measurements, the epoch chosen on a validation split."
import torch
from torch import nn
from torch.nn import functional as F

from dals import own_task

x = torch.randn(160, 4)
y = 20 + x @ torch.tensor([4.0, -3.0, 2.0, 0.0]) + torch.randn(160) # prices, [examples]


def model():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0)) # [examples]


task = own_task("price", model, (x[:96], y[:96]), (x[128:], y[128:]), valid=(x[96:128], y[96:128]), epochs=2, batch_size=16,
                loss=F.mse_loss, metric="rmse", lr={"AdamW": 3e-3})
