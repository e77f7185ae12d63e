"A class for every pixel: background, bar, or crossing of bars; the left column counts for nothing."
import torch
from torch import nn

from dals import own_task

columns, rows = torch.rand(64, 1, 8) < 0.3, torch.rand(64, 8, 1) < 0.3
masks = columns.long() + rows.long() # [examples, 8, 8]
pictures = masks[:, None] + 0.3 * torch.randn(64, 1, 8, 8)
masks[:, :, 0] = -100 # this is left out of loss and metric


def model():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)) # [examples, 3, 8, 8]


task = own_task("bars", model, (pictures[:48], masks[:48]), (pictures[48:], masks[48:]), epochs=1, batch_size=12, metric="iou")
