"""The network on which methods are compared with references that are written out."""

import torch
from torch import nn


class Two(nn.Module):
    """Two float64 linears of different shapes, `first` and `second`, with tanh between them."""

    def __init__(self, widths=(7, 9, 6)):
        super().__init__()
        d_in, hidden, d_out = widths
        self.first = nn.Linear(d_in, hidden, dtype=torch.float64)
        self.second = nn.Linear(hidden, d_out, dtype=torch.float64)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))
