"""The objectives of alignment by name, each as the stage that a recipe would hold."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from jaxrec.alignment.align import Align
from jaxrec.alignment.contexts import Contexts
from jaxrec.alignment.feedback import Implicit
from jaxrec.alignment.pairs import (
    BestAgainstAll,
    BestAndWorst,
    PrefixRejected,
    RandomRejected,
    SelfPlay,
)
from jaxrec.alignment.prefer import Prefer
from jaxrec.alignment.reward_model import RewardModel
from jaxrec.alignment.rollouts import Beams
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.ecpo import ECPO
from jaxrec.objectives.gbpo import GBPO
from jaxrec.objectives.gflownet import TrajectoryBalance
from jaxrec.objectives.grpo import GRPO, MINIONEREC
from jaxrec.objectives.grpo_sr import GRPOSR
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rewards import (
    MINI_ONE_REC,
    Calibrated,
    Gated,
    ModelScore,
    Reward,
    SignedScore,
)
from jaxrec.objectives.rose_po import RosePO
from jaxrec.objectives.s_dpo import SDPO
from jaxrec.objectives.weighted_dpo import ListDPO, WeightedDPO
from jaxrec.training.loop import FitOptions
from jaxrec.training.step import Follow

Stage = Align | Prefer

SCORE = "next"
"""Task of the reward model that learns from logs with one kind of event."""

NLL = 0.1
"""Weight of the likelihood of what users did, where an objective was published without: a learnt
reward is only right near what it was learnt from."""

MODEL = RewardModel(
    network=PreferenceModel(tasks=(SCORE,), width=32, heads=2, tower=16),
    feedback=Implicit(negatives=4, length=50),
    fit=FitOptions(
        steps=600, validate_every=100, checkpoint_every=100, patience=3, monitor="-loss"
    ),
)
"""Would the user have taken this item rather than a drawn one? Trained on training events only."""

REWARDS: dict[str, tuple[Reward, RewardModel | None]] = {
    "model": (ModelScore(SCORE), MODEL),
    "signed": (SignedScore(SCORE), MODEL),
    "gated": (Calibrated(Gated(ModelScore(SCORE), SCORE, 0.5)), MODEL),
    "exact": (MINI_ONE_REC, None),
}
"""By name: a learnt preference; its signs; GenRec's gate and calibration; MiniOneRec's rule."""

OWN_REWARD = {"gbpo": "signed", "grpo-sr": "gated", "minionerec": "exact"}
"""Objectives that were published with another reward than a score."""

OBJECTIVES: dict[str, Callable[[], Stage]] = {
    "dpo": lambda: Prefer(DPO(), pairs=RandomRejected(1)),
    "s-dpo": lambda: Prefer(SDPO(), pairs=RandomRejected(3)),
    "rose-po": lambda: Prefer(RosePO(), pairs=RandomRejected(1), smoothing=0.1),
    "sprec": lambda: Prefer(DPO(), pairs=SelfPlay(), reference=Follow(60), nll=1.0),
    "ipa": lambda: Prefer(DPO(), pairs=BestAndWorst(), reference=Follow(60), nll=1.0),
    "weighted-dpo": lambda: Prefer(WeightedDPO(), pairs=BestAgainstAll()),
    "list-dpo": lambda: Prefer(ListDPO(), pairs=BestAgainstAll()),
    "sp-dpo": lambda: Prefer(SDPO(), pairs=PrefixRejected(shared=1)),
    "reinforce": lambda: Align(Reinforce()),
    "grpo": lambda: Align(GRPO()),
    "minionerec": lambda: Align(MINIONEREC, rollouts=Beams(), reference=Follow(512, 0.6)),
    "ecpo": lambda: Align(ECPO(), behaviour=Follow(100)),
    "gbpo": lambda: Align(GBPO()),
    "grpo-sr": lambda: Align(GRPOSR(), include_target=True),
    "gflownet": lambda: Align(TrajectoryBalance()),
}
"""Name -> a stage with the published settings where there are any."""


def stage_of(objective: str, reward: str | None, *, length: int, rows: int) -> Stage:
    """The stage of an objective, on histories of a length.

    Args:
        objective: one of `OBJECTIVES`.
        reward: one of `REWARDS`; None takes the objective's own, `model` for most.
        length: events of a history.
        rows: histories of a step.

    Raises:
        ValueError: an unknown objective or reward; the message names the nearest.
    """
    named = _named("objective", objective, OBJECTIVES)()
    chosen, model = _named("reward", reward or OWN_REWARD.get(objective, "model"), REWARDS)
    feed = Contexts(length=length, rows=rows)
    return dataclasses.replace(
        named,
        reward=chosen,
        measured=None if model is None else ModelScore(SCORE),
        model=model,
        feed=feed,
        nll=named.nll or NLL,
    )


def _named[Value](kind: str, name: str, known: dict[str, Value]) -> Value:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"--{kind} {name!r} is unknown; choose one of {', '.join(known)}."
            + (f" Perhaps you meant {close[0]!r}." if close else "")
        )
    return known[name]
