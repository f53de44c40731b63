"""Small logs for encoders of behaviour."""

import numpy as np

from jaxrec.representation import TrainingSequences


def sequences_of(lists):
    """Training events from one list of items a user."""
    return TrainingSequences(
        np.cumsum([0, *map(len, lists)]).astype(np.int64),
        np.array([item for each in lists for item in each], np.int32),
    )


def random_lists(users=30, items=12, seed=0, longest=9):
    """Histories of different lengths, empty ones among them, with repeated items."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, items, rng.integers(0, longest)).tolist() for _ in range(users)]


def encode(encoder, lists, items, seed=0, texts=(), mask=None, table=None):
    """What an encoder makes of a log, with facts."""
    mask = np.ones(items, bool) if mask is None else mask
    return encoder.encode_with_facts(
        list(texts), table=table or {}, fit_mask=mask, seed=seed, sequences=sequences_of(lists)
    )
