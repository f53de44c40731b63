"""Training: state, optimizers, one compiled step, the loop."""

from jaxrec.training.book import Batches, FitResult
from jaxrec.training.interruption import Preempted
from jaxrec.training.loop import FitOptions, fit
from jaxrec.training.optimizers import AdamW, Optimizer
from jaxrec.training.record import RunMismatch, TrainingDiverged
from jaxrec.training.state import TrainState, abstract_state, create_state, state_shardings
from jaxrec.training.step import (
    LossFunction,
    StepReport,
    accumulate_gradients,
    lower_train_step,
    make_train_step,
)

__all__ = [
    "AdamW",
    "Batches",
    "FitOptions",
    "FitResult",
    "LossFunction",
    "Optimizer",
    "Preempted",
    "RunMismatch",
    "StepReport",
    "TrainState",
    "TrainingDiverged",
    "abstract_state",
    "accumulate_gradients",
    "create_state",
    "fit",
    "lower_train_step",
    "make_train_step",
    "state_shardings",
]
