"A small language model: the next token of a text, in batches that are dictionaries."
import torch
from torch import nn

from dals import own_task


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(13, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 13)

    def forward(self, input_ids):
        return self.head(self.mix(self.embed(input_ids))[0]) # logits, [examples, places, tokens]


texts = (torch.randint(13, (96, 1)) + torch.arange(9) * torch.randint(1, 3, (96, 1))) % 13
batches = [{"input_ids": part[:, :-1], "labels": part[:, 1:]} for part in texts.split(24)]
task = own_task("counting", Model, batches[:3], batches[3:], epochs=1, batch_size=12, metric="perplexity")
