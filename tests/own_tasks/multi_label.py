"Several yes-or-no labels for each example: which of five marks does a text have?"
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dals import own_task

words = torch.randint(1, 50, (128, 6))
marks = torch.stack([(words % (2 + i) == 0).any(1) for i in range(5)], 1).float() # 0 or 1, [examples, 5]


def model():
    return nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 5)) # logits, [examples, 5]


train, test = (DataLoader(TensorDataset(words[part], marks[part]), batch_size=32) for part in (slice(96), slice(96, None)))
task = own_task("marks", model, train, test, epochs=2, batch_size=16, loss=F.binary_cross_entropy_with_logits, metric="f1")
