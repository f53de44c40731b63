"""Training steps of HSTU in PyTorch, timed: the peer of `train_speed.py`.

    python benchmarks/peers/hstu_torch.py --rows 128 --length 200 --width 50 --heads 1 --layers 2 \
        --items 3416 --steps 20 --threads 2

The published layer (arXiv:2402.17152) on padded rows: SiLU attention with relative biases of
position and of time, sampled softmax over 128 shared negatives, cosine scores at temperature .05,
Adam. Meta's own code needs kernels that CPUs do not have, so this is the same arithmetic in plain
torch. Prints the seconds of a step.

Imports torch only, so it runs in an environment without jaxrec.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

WARM_UPS = 3
BUCKETS = 129


class Layer(nn.Module):
    """One HSTU layer."""

    def __init__(self, width: int, heads: int, length: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.mixed = nn.Parameter(torch.randn(width, 4 * width) * 0.02)
        self.output = nn.Linear(width, width)
        self.positions = nn.Parameter(torch.randn(2 * length - 1) * 0.02)
        self.times = nn.Parameter(torch.randn(BUCKETS) * 0.02)

    def forward(
        self, x: torch.Tensor, gap: torch.Tensor, bucket: torch.Tensor, causal: torch.Tensor
    ) -> torch.Tensor:
        """One layer; `gap` and `bucket` are rows of the two bias tables."""
        rows, length, width = x.shape
        normed = functional.layer_norm(x, (width,))
        u, v, q, k = functional.silu(normed @ self.mixed).chunk(4, dim=-1)
        split = (rows, length, self.heads, width // self.heads)
        scores = torch.einsum("bqhd,bkhd->bhqk", q.reshape(split), k.reshape(split))
        scores = scores + (self.positions[gap] + self.times[bucket])[:, None]
        shares = functional.silu(scores) / length * causal
        mixed = torch.einsum("bhqk,bkhd->bqhd", shares, v.reshape(split)).reshape(x.shape)
        mixed = u * functional.layer_norm(mixed, (width,))
        return self.output(functional.dropout(mixed, self.dropout)) + x


def main() -> None:
    """Trains on random items and says how long a step took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("rows", "length", "width", "heads", "layers", "items", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--negatives", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows, length, width = options.rows, options.length, options.width
    table = nn.Embedding(options.items, width)
    places = nn.Embedding(length, width)
    layers = nn.ModuleList(
        Layer(width, options.heads, length, options.dropout) for _ in range(options.layers)
    )
    params = [*table.parameters(), *places.parameters(), *layers.parameters()]
    optimizer = torch.optim.Adam(params, lr=1e-3)
    index = torch.arange(length)
    gap = index[None, :] - index[:, None] + length - 1
    causal = (index[:, None] >= index[None, :]).float()
    times, work, loss = [], [], torch.zeros(())
    for _ in range(WARM_UPS + options.steps):
        item = torch.randint(options.items, (rows, length + 1))
        stamp = 60.0 * torch.arange(length + 1).expand(rows, -1)
        start, busy = time.perf_counter(), time.process_time()
        seconds = (stamp[:, 1:, None] - stamp[:, None, :-1]).abs().clamp(min=1)
        bucket = (seconds.log() / 0.301).floor().clamp(max=BUCKETS - 1).long()
        x = table(item[:, :-1]) * math.sqrt(width) + places(index)
        x = functional.dropout(x, options.dropout)
        for layer in layers:
            x = layer(x, gap, bucket, causal)
        states = functional.normalize(x, dim=-1)
        negative = torch.randint(options.items, (rows, options.negatives))
        good = (states * functional.normalize(table(item[:, 1:]), dim=-1)).sum(-1, keepdim=True)
        bad = states @ functional.normalize(table(negative), dim=-1).transpose(1, 2)
        bad = bad.masked_fill(negative[:, None] == item[:, 1:, None], -math.inf)
        scores = torch.cat([good, bad], dim=-1) / 0.05
        loss = -functional.log_softmax(scores, dim=-1)[..., 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    print(
        json.dumps(
            {
                "seconds": statistics.median(times[WARM_UPS:]),
                "fastest": min(times[WARM_UPS:]),
                "cpu_seconds": statistics.median(work[WARM_UPS:]),
                "parameters": sum(each.numel() for each in params),
                "loss": loss.item(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
