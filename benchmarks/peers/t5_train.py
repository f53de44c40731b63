"""Training steps of Hugging Face's T5 at TIGER's sizes, timed: the peer of `train_speed.py`.

    python benchmarks/peers/t5_train.py --steps 3 --threads 2

`T5ForConditionalGeneration` with 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1024, dropout
.1, 1,026 tokens; rows of 80 tokens and 4 labels; Adam. Prints the seconds of a step.

Imports torch and transformers only, so it runs in an environment without jaxrec.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

WARM_UPS = 1


def main() -> None:
    """Trains on random codes and says how long a step took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--items", type=int, default=20, help="items of a history")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--codes", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=2 + options.levels * options.codes,
        d_model=128,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=6,
        dropout_rate=0.1,
        feed_forward_proj="relu",
        pad_token_id=0,
        decoder_start_token_id=1,
        use_cache=False,
    )
    model = T5ForConditionalGeneration(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    offsets = 2 + options.codes * torch.arange(options.levels)
    times, work, loss = [], [], torch.zeros(())
    for _ in range(WARM_UPS + options.steps):
        items = torch.randint(options.codes, (options.rows, options.items + 1, options.levels))
        tokens = items + offsets
        history, labels = tokens[:, :-1].flatten(1), tokens[:, -1].contiguous()
        start, busy = time.perf_counter(), time.process_time()
        loss = model(input_ids=history, attention_mask=torch.ones_like(history), labels=labels).loss
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
                "parameters": sum(each.numel() for each in model.parameters()),
                "loss": loss.item(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
