"""Steps of GRPO on Hugging Face's T5 in the style of TRL, timed: the peer of `alignment.py`.

    python benchmarks/peers/alignment_trl_style.py --given given.npz --batches batches.npz \
        --found found.npz --rollouts beams --histories repeated

What TRL's GRPOTrainer and MiniOneRec's do in a step, without what they spend on anything else:
`generate` under a dictionary of prefixes writes 16 items for each history, a Python function
rewards them, the reference and the policy score them in a forward pass each, and AdamW follows the
loss. There is no tokenizer, no text, no Accelerate and no logging.

`--histories repeated` gives both scoring passes a copy of the history with each rollout, as TRL
does; `shared` encodes each history once and copies the states of the encoder, which no trainer does
but a careful reader could. Writes rollouts, rewards, log-probabilities and the norm of the gradient
of the first step; prints the seconds of a step.

Imports torch, transformers and numpy only, so it runs in an environment without jaxrec.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers
from t5_generate import BOS, build, trie_of
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

Path = tuple[int, ...]
SPECIAL = BOS + 1
"""Tokens before the codes."""


class Clock:
    """Seconds of each phase of a step, and of the step."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.start, self.busy = time.perf_counter(), time.process_time()
        self.last = self.start

    def stop(self, phase: str) -> None:
        """What went by since the phase before belongs to this one."""
        now = time.perf_counter()
        self.phases[phase], self.last = now - self.last, now


def write(
    model: T5ForConditionalGeneration, histories: torch.Tensor, allowed: Any, given: Any
) -> torch.Tensor:
    """A group of semantic IDs for each history, `[b * g, l]`."""
    how: dict[str, Any] = {"num_beams": given.group, "do_sample": False, "length_penalty": 0.0}
    if given.rollouts == "sample":
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
        sentences = model.generate(
            input_ids=histories,
            attention_mask=torch.ones_like(histories),
            num_return_sequences=given.group,
            max_new_tokens=given.levels,
            prefix_allowed_tokens_fn=allowed,
            **how,
        )
    return sentences[:, 1:].clone()


def prefix_rewards(completions: list[Path], targets: list[Path], values: list[float]) -> list:
    """What each completion is worth by the number of leading codes that it has of its target."""
    rewards = []
    for completion, target in zip(completions, targets):
        depth = 0
        while depth < len(target) and completion[depth] == target[depth]:
            depth += 1
        rewards.append(values[depth])
    return rewards


def log_probs(
    model: T5ForConditionalGeneration, histories: torch.Tensor, paths: torch.Tensor, shared: bool
) -> torch.Tensor:
    """Log-probability of every code, over the codes of its level, `[b * g, l]`."""
    group, levels = len(paths) // len(histories), paths.shape[1]
    written = torch.cat([torch.full_like(paths[:, :1], BOS), paths[:, :-1]], dim=1)
    if shared:
        states = model.encoder(histories, torch.ones_like(histories)).last_hidden_state
        states = states.repeat_interleave(group, dim=0)
        read: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        rows = states[..., 0]
    else:
        rows = histories.repeat_interleave(group, dim=0)
        read = {"input_ids": rows}
    mask = torch.ones(rows.shape, dtype=torch.long)
    logits = model(**read, attention_mask=mask, decoder_input_ids=written, use_cache=False).logits
    chosen = torch.gather(logits, -1, paths[..., None])[..., 0]
    codes = logits[..., SPECIAL:].unflatten(-1, (levels, -1)).diagonal(dim1=1, dim2=2)
    return chosen - torch.logsumexp(codes, dim=1)


def grpo(
    ours: torch.Tensor, reference: torch.Tensor, advantages: torch.Tensor, kl: float
) -> torch.Tensor:
    """Loss of each rollout: the ratio is 1, as rollouts are the policy's own."""
    gap = reference - ours
    terms = torch.exp(ours - ours.detach()) * advantages[:, None]
    return (kl * (torch.exp(gap) - gap - 1) - terms).mean(dim=-1)


class Trainer:
    """Policy, reference and optimizer."""

    def __init__(self, model: T5ForConditionalGeneration, paths: np.ndarray, options: Any) -> None:
        self.model, self.reference = model, copy.deepcopy(model).requires_grad_(False)
        self.allowed = trie_of(paths)
        self.item_of = {tuple(path): item for item, path in enumerate(paths.tolist())}
        self.options = options
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=0.0
        )

    def step(self, histories: torch.Tensor, targets: list[Path]) -> tuple[dict[str, Any], Clock]:
        """One step: what it found, and how long it took.

        Args:
            histories: tokens `[b, t * l]`.
            targets: the semantic ID of what each user did.
        """
        options, clock = self.options, Clock()
        group, shared = options.group, options.histories == "shared"
        paths = write(self.model, histories, self.allowed, options)
        clock.stop("rollout")
        completions = [tuple(path) for path in paths.tolist()]
        wanted = [target for target in targets for _ in range(group)]
        rewards = torch.tensor(prefix_rewards(completions, wanted, options.values))
        rows = rewards.view(-1, group)
        deviation = rows.std(dim=1, keepdim=True) + options.epsilon
        advantages = ((rows - rows.mean(dim=1, keepdim=True)) / deviation).view(-1)
        clock.stop("reward")
        many = options.users_at_once
        parts = [
            (slice(user, user + many), slice(user * group, (user + many) * group))
            for user in range(0, len(histories), many)
        ]
        with torch.no_grad():
            reference = [
                log_probs(self.reference, histories[some], paths[each], shared)
                for some, each in parts
            ]
        clock.stop("reference")
        self.optimizer.zero_grad()
        total, scores = torch.zeros(()), []
        for (some, each), there in zip(parts, reference):
            ours = log_probs(self.model, histories[some], paths[each], shared)
            loss = grpo(ours, there, advantages[each], options.kl).sum() / len(paths)
            loss.backward()
            total += loss.detach()
            scores.append(ours.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        found = {"loss": total.item(), "gradient_norm": norm.item()}
        clock.stop("update")
        items = [self.item_of.get(path, -1) for path in completions]
        found |= {
            "items": items,
            "rewards": rewards.numpy(),
            "log_probs": torch.cat(scores).numpy(),
        }
        return found, clock


def main() -> None:
    """Aligns a few steps and says how long a step took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("given", "batches", "found"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rollouts", choices=("sample", "beams"), required=True)
    parser.add_argument("--histories", choices=("repeated", "shared"), required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--users-at-once", type=int, required=True, help="in a scoring pass")
    parser.add_argument("--values", type=json.loads, required=True, help="rewards by depth")
    parser.add_argument("--kl", type=float, required=True)
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with np.load(options.given) as file, np.load(options.batches) as batches:
        given, drawn = dict(file), dict(batches)
    paths = given["paths"]
    options.levels = paths.shape[1]
    trainer = Trainer(build(given), paths, options)
    clocks, work, founds = [], [], []
    for histories, targets in zip(drawn["histories"], drawn["targets"]):
        tokens = torch.from_numpy(paths[histories].reshape(len(histories), -1))
        found, clock = trainer.step(tokens, [tuple(path) for path in paths[targets].tolist()])
        clocks.append(clock)
        work.append(time.process_time() - clock.busy)
        founds.append(found)
    first = founds[0]
    np.savez(options.found, **{name: np.asarray(value) for name, value in first.items()})
    counted = clocks[options.warm_ups :]
    times = [sum(clock.phases.values()) for clock in counted]
    legal = [item >= 0 for found in founds for item in found["items"]]
    print(
        json.dumps(
            {
                "seconds": statistics.median(times),
                "fastest": min(times),
                "cpu_seconds": statistics.median(work[options.warm_ups :]),
                "phases": {
                    name: statistics.median(clock.phases[name] for clock in counted)
                    for name in counted[0].phases
                },
                "legal": sum(legal) / len(legal),
                "losses": [found["loss"] for found in founds],
                "parameters": sum(each.numel() for each in trainer.model.parameters()),
                "versions": f"transformers {transformers.__version__}, torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
