"""A small model with noise, and endless deterministic batches, for the tests of training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.parallel import constrain
from jaxrec.training.loop import FitOptions, fit
from jaxrec.training.optimizers import AdamW

ITEMS, WIDTH = 16, 8
AXES = {
    "embedding": ("vocab", "embed"),
    "dense": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "output": ("embed", "vocab"),
}


def init(key):
    # One draw: every random operation costs the tests a second of compilation.
    draw = jax.random.uniform(key, (WIDTH + 8 + 16, 16), minval=-0.7, maxval=0.7)
    return {
        "embedding": draw[:WIDTH].T,
        "dense": {"kernel": draw[WIDTH : WIDTH + 8], "bias": jnp.zeros(16)},
        "output": draw[WIDTH + 8 :],
    }


def make_loss(noise=0.4):
    """Cross-entropy of a target item given the mean of a history, with noise from the key."""

    def loss(params, tables, batch, key):
        x = params["embedding"][tables["code"][batch["item"]]].mean(1)
        x = constrain(x, "batch", None)
        x = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
        # Dropout would serve as well and takes longer to compile.
        x = x * (1 + noise * (jax.random.key_data(key)[-1] >> 8) / 2**24)
        logits = x @ params["output"]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["target"][:, None], 1)[:, 0]
        weight = batch["weight"]
        hits = (logits.argmax(-1) == batch["target"]) * weight
        return (losses * weight).sum(), weight.sum(), {"accuracy": (hits.sum(), weight.sum())}

    return loss


def tables():
    return {"code": np.arange(ITEMS, dtype=np.int32)[::-1].copy()}


def batch(index, rows=8, seed=0):
    generator = np.random.default_rng((seed, index))
    item = generator.integers(0, ITEMS, (rows, 5)).astype(np.int32)
    weight = generator.integers(0, 3, rows).astype(np.float32)
    return {"item": item, "target": (item[:, 0] + 1) % ITEMS, "weight": weight}


@dataclasses.dataclass
class Stream:
    """Endless batches; `poison` names the batches that make the loss infinite or NaN."""

    rows: int = 8
    seed: int = 0
    poison: tuple[int, ...] = ()
    at: int = 0

    @property
    def fingerprint(self):
        return {"rows": self.rows, "seed": self.seed, "host": 0}

    def __iter__(self):
        return self

    def __next__(self):
        made = batch(self.at, self.rows, self.seed)
        if self.at in self.poison:
            made["weight"] = np.full_like(made["weight"], np.nan)
        self.at += 1
        return made

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def validation(params, step):
    """A number that depends on the parameters alone, and goes up and down on the way."""
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])
    return {"ndcg@10": float(np.sin(40 * np.abs(flat).sum())), "recall@10": float(flat.std())}


def run(folder: Path, mesh, **changes):
    """`fit` on the toy; any argument or option may be changed."""
    options = {
        "steps": 30,
        "validate_every": 6,
        "checkpoint_every": 5,
        "log_every": 4,
    }
    for field in dataclasses.fields(FitOptions):
        if field.name in changes:
            options[field.name] = changes.pop(field.name)
    arguments = {
        "optimizer": AdamW(learning_rate=0.03, warmup_steps=5),
        "validate": validation,
        "seed": 3,
        "manifest": {"toy": 1},
    } | changes
    loss = arguments.pop("loss", make_loss())
    batches = arguments.pop("batches", Stream())
    return fit(
        loss,
        init,
        AXES,
        batches,
        tables(),
        mesh=mesh,
        folder=folder,
        options=FitOptions(**options),
        **arguments,
    )


def timeless(rows):
    """Metric rows without what measures time."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("seconds", "rate"))}
        for row in rows
    ]


def same(one, two):
    """Whether two trees are equal bit for bit."""
    one, two = jax.tree.leaves(one), jax.tree.leaves(two)
    return len(one) == len(two) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, two)
    )
