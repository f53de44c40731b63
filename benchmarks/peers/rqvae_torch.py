"""An RQ-VAE training step in PyTorch, timed: the peer of `rqvae_step.py`.

    python benchmarks/peers/rqvae_torch.py --rows 640 --width 768 --latent 32 --levels 3 \
        --codes 256 --hidden 512,256,128 --steps 50 --json -

Own code after the description of TIGER (Rajput et al., arXiv:2305.05065) and the choices of the
widespread PyTorch version (class of EdoardoBotta/RQ-VAE-Recommender): perceptrons with ReLU,
squared distances to the whole codebook, a straight-through gradient at every level, squared errors
summed over dimensions, commitment .25, AdamW. It keeps no averages, resets no codes and clips
nothing: less than what ours does in a step.

Imports torch and numpy only, so it runs in an environment without jaxrec. `--compile` puts the
model through `torch.compile`; batches are drawn from rows in memory, as ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time

import torch
from torch import nn

WARM_UPS = 5


def perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class RqVae(nn.Module):
    """Encoder, one codebook a level, decoder; the loss of a batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        widths = [options.width, *map(int, options.hidden.split(",")), options.latent]
        self.encoder = perceptron(widths)
        self.decoder = perceptron(widths[::-1])
        self.codebooks = nn.ParameterList(
            torch.randn(options.codes, options.latent) / (level + 1)
            for level in range(options.levels)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss of the rows."""
        residual = self.encoder(rows)
        summed = torch.zeros_like(residual)
        quantization = torch.zeros(len(rows))
        for book in self.codebooks:
            distances = (
                (residual**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * residual @ book.T
            )
            codeword = book[distances.argmin(1)]
            gap = (residual.detach() - codeword) ** 2
            quantization = quantization + gap.sum(1)
            quantization = quantization + 0.25 * ((residual - codeword.detach()) ** 2).sum(1)
            passed = residual + (codeword - residual).detach()
            summed = summed + passed
            residual = residual - passed
        reconstruction = ((rows - self.decoder(summed)) ** 2).sum(1)
        return (reconstruction + quantization).mean()


def measure(options: argparse.Namespace) -> dict:
    """Times of single steps, each on a batch of its own."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = RqVae(options).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    points = torch.randn(options.items, options.width)
    step = torch.compile(model) if options.compile else model
    times, work, loss = [], [], torch.zeros(())
    for _ in range(WARM_UPS + options.steps):
        start, busy = time.perf_counter(), time.process_time()
        rows = points[torch.randint(0, options.items, (options.rows,))]
        loss = step(rows)
        adam.zero_grad()
        loss.backward()
        adam.step()
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    first, times, work = times[0], times[WARM_UPS:], work[WARM_UPS:]
    return {
        "seconds": statistics.median(times),
        "fastest": min(times),
        "cpu_seconds": statistics.median(work),
        "compile": first,
        "parameters": sum(each.numel() for each in model.parameters()),
        "loss": loss.item(),
        "torch": torch.__version__,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="An RQ-VAE training step in PyTorch, timed.")
    arguments.add_argument("--rows", type=int, default=640)
    arguments.add_argument("--items", type=int, default=12101)
    arguments.add_argument("--width", type=int, default=768)
    arguments.add_argument("--hidden", default="512,256,128")
    arguments.add_argument("--latent", type=int, default=32)
    arguments.add_argument("--levels", type=int, default=3)
    arguments.add_argument("--codes", type=int, default=256)
    arguments.add_argument("--steps", type=int, default=50)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--compile", action="store_true")
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
