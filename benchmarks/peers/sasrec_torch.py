"""A SASRec training step in PyTorch, timed: the peer of `sasrec_step.py`.

    python benchmarks/peers/sasrec_torch.py --rows 128 --length 200 --width 50 --heads 1 \
        --layers 2 --dropout 0.5 --items 3416 --steps 20 --json -

Own code after the description of SASRec (Kang and McAuley, arXiv:1808.09781) and the choices of the
widespread PyTorch version (class of pmixer/SASRec.pytorch): learned positions, item vectors times
sqrt(width), dropout on the input, on the attention and twice in the feed-forward; the norm before
attention is on the queries only and its result is what the residual adds to; 1x1 convolutions;
binary cross-entropy with one negative an event; Adam(1e-3, .9, .98); item 0 is padding.

Imports torch and numpy only, so it runs in an environment without jaxrec. `--weights` says whether
attention also returns its weights, which is what that version does by the default of
`nn.MultiheadAttention`; without them PyTorch takes `scaled_dot_product_attention`. Rows are full:
every position is trained on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch
from torch import nn

WARM_UPS = 3


class Block(nn.Module):
    """Attention with a norm on the queries only, then two 1x1 convolutions."""

    def __init__(self, width: int, heads: int, dropout: float, weights: bool) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(width, heads, dropout)
        self.norm = nn.LayerNorm(width, eps=1e-8)
        self.up = nn.Conv1d(width, width, 1)
        self.down = nn.Conv1d(width, width, 1)
        self.first_dropout = nn.Dropout(dropout)
        self.second_dropout = nn.Dropout(dropout)
        self.weights = weights

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """`x` is [time, rows, width]; `hidden` is True where a query may not look."""
        query = self.query_norm(x)
        mixed, _ = self.attention(query, x, x, attn_mask=hidden, need_weights=self.weights)
        x = self.norm(query + mixed)
        columns = x.permute(1, 2, 0)
        inner = torch.relu(self.first_dropout(self.up(columns)))
        return x + self.second_dropout(self.down(inner)).permute(2, 0, 1)


class SasRec(nn.Module):
    """States of a row of items, and their inner products with targets and negatives."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        width = options.width
        self.items = nn.Embedding(options.items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(options.length + 1, width, padding_idx=0)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(width, options.heads, options.dropout, options.weights)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-8)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
        with torch.no_grad():
            self.items.weight[0] = 0
            self.positions.weight[0] = 0

    def forward(
        self, items: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `[rows, time]` of the targets and of the negatives."""
        length = items.shape[1]
        places = torch.arange(1, length + 1) * (items != 0)
        x = self.items(items) * self.items.embedding_dim**0.5 + self.positions(places)
        x = self.dropout(x).transpose(0, 1)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, hidden)
        states = self.norm(x).transpose(0, 1)
        return (states * self.items(targets)).sum(-1), (states * self.items(negatives)).sum(-1)


def measure(options: argparse.Namespace) -> dict:
    """Times of single steps, each on a batch of its own."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    model = SasRec(options).train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    criterion = nn.BCEWithLogitsLoss()
    times, work, loss = [], [], torch.zeros(())
    for _ in range(WARM_UPS + options.steps):
        drawn = rng.integers(1, options.items + 1, (3, options.rows, options.length))
        start, busy = time.perf_counter(), time.process_time()
        items, targets, negatives = torch.from_numpy(drawn)
        liked, other = model(items, targets, negatives)
        real = targets != 0
        loss = criterion(liked[real], torch.ones_like(liked[real]))
        loss = loss + criterion(other[real], torch.zeros_like(other[real]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    times, work = times[WARM_UPS:], work[WARM_UPS:]
    return {
        "seconds": statistics.median(times),
        "fastest": min(times),
        "cpu_seconds": statistics.median(work),
        "steps": options.steps,
        "parameters": sum(each.numel() for each in model.parameters()),
        "loss": loss.item(),
        "weights": options.weights,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="A SASRec training step in PyTorch, timed.")
    arguments.add_argument("--rows", type=int, default=128)
    arguments.add_argument("--length", type=int, default=200)
    arguments.add_argument("--width", type=int, default=50)
    arguments.add_argument("--heads", type=int, default=1)
    arguments.add_argument("--layers", type=int, default=2)
    arguments.add_argument("--dropout", type=float, default=0.5)
    arguments.add_argument("--items", type=int, default=3416)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--weights", action=argparse.BooleanOptionalAction, default=True)
    arguments.add_argument("--json", default="-", help="file for the JSON line, - for the output")
    options = arguments.parse_args()
    line = json.dumps(measure(options))
    if options.json == "-":
        print(line)
        return
    with open(options.json, "w", encoding="utf-8") as file:
        print(line, file=file)


if __name__ == "__main__":
    sys.exit(main())
