"""The masks of published systems, by name: predicates over token metadata (METHODS B13).

Every mask here is complete: padding is never a key and sees nothing, and histories that share a row
do not see each other. What else a mask reads are labels of `TokenMetadata`, integers given beside
every token; each mask says which. Where a rule compares times, equal times are named in it. A query
that may attend to nothing is fine: attention then gives 0.
"""

from __future__ import annotations

from jaxtyping import Array, Bool

from jaxrec.backbones.masks import (
    Predicate,
    TokenMetadata,
    before,
    both,
    causal,
    either,
    packed,
    same,
    same_segment,
)

Answer = Bool[Array, "*any"]

STATIC, EVENT, CANDIDATE = 0, 1, 2
"""Values of the label `kind` of MTGR: features of the user, real-time events, candidates."""

CONTEXT, RETRIEVAL, RANKING = 0, 1, 2
"""Values of the label `task` of SynerGen: events, tokens that retrieve, tokens that rank."""

bidirectional: Predicate = same_segment
"""Everybody sees everybody (BERT4Rec, masked diffusion)."""

item_block = both(same_segment, either(before("item"), same("item")))
"""Causal between items, full inside an item (RecGPT, models of chunks).

Label `item`: number of the item inside its history, 0, 1, ...
"""

earlier_items = both(same_segment, before("item"))
"""Items before the token's own and nothing of its own: all codes of an item are predicted at once,
from the last token of the item before it (CAR, RPG). Label `item` as in `item_block`."""


def same_or_none(label: str) -> Predicate:
    """A token sees the tokens labelled 0, which are everybody's, and those of its own label."""

    def allow(query: TokenMetadata, key: TokenMetadata) -> Answer:
        return (key.labels[label] == 0) | (key.labels[label] == query.labels[label])

    return allow


candidate_diagonal = both(packed, same_or_none("candidate"))
"""Candidates beside each other after one history: each sees the history and itself (M-FALCON of
arXiv:2402.17152, GenRank). Permuting the candidates permutes what they get.

Label `candidate`: 0 for the history, 1, 2, ... for the candidates; tokens of one candidate share
its number and are causal among themselves. All candidates stand at the positions after the history.
"""

packed_groups = both(packed, same_or_none("group"))
"""Several questions packed after one history do not see each other (LUM).

Label `group`: 0 for the history, 1, 2, ... for the questions. Positions go on from the history in
every group anew.
"""


def _prefix(query: TokenMetadata, key: TokenMetadata) -> Answer:
    return key.position <= query.labels["prefix_end"]


prefix_lm = both(same_segment, either(causal, _prefix))
"""Full inside a prefix, causal after it.

Label `prefix_end`: position of the last token of the prefix, given beside every token of the
history; -1 where there is none.
"""


def _isolated_session(query: TokenMetadata, key: TokenMetadata) -> Answer:
    session, own = key.labels["session"], query.labels["session"]
    return (session < own) | ((session == own) & (key.labels["is_session"] > 0))


session_isolation = both(same_segment, _isolated_session)
"""Items of a session see earlier sessions and the token of their own, not each other (TBGRecall).

An item does not see itself either: its residual branch carries it. Labels `session`: number of the
session inside the history; `is_session`: 1 at the token that stands for a session, 0 at its items.
"""


def _mtgr(query: TokenMetadata, key: TokenMetadata) -> Answer:
    mine, other = query.labels["kind"], key.labels["kind"]
    now, then = query.labels["time"], key.labels["time"]
    event = (other == EVENT) & (mine == EVENT) & (then <= now)
    asked = (other == EVENT) & (mine == CANDIDATE) & (then < now)
    itself = (other == CANDIDATE) & (mine == CANDIDATE)
    itself &= key.labels["candidate"] == query.labels["candidate"]
    return (other == STATIC) | event | asked | itself


mtgr = both(same_segment, _mtgr)
"""Static features, real-time events and candidates in one row (MTGR).

Static tokens see each other; an event sees them and the events that are not later than itself, so
events of equal time see each other; a candidate sees static tokens, the events before its request,
without those of the same time, and itself. Labels `kind` (`STATIC`, `EVENT`, `CANDIDATE`); `time`:
of the event, of the candidate's request; `candidate`: number of the candidate, read there only.
"""


def _dual_flow(query: TokenMetadata, key: TokenMetadata) -> Answer:
    fake = query.labels["fake"] > 0
    real_key = key.labels["fake"] == 0
    earlier, here = key.position < query.position, key.position == query.position
    return (real_key & (earlier | (here & ~fake))) | (fake & ~real_key & here)


dual_flow = both(same_segment, _dual_flow)
"""A real flow, causal, and a fake one whose tokens see the real tokens strictly before them and
themselves (DFGR). A fake token stands at the position of its real twin.

Label `fake`: 0 in the real flow, 1 in the fake one.
"""


def _query_driven(query: TokenMetadata, key: TokenMetadata) -> Answer:
    mine, other = query.labels["placeholder"], key.labels["placeholder"]
    earlier, here = key.position < query.position, key.position == query.position
    of_history = (other == 0) & (earlier | (here & (mine == 0)))
    return of_history | ((mine > 0) & (other == mine))


query_driven = both(same_segment, _query_driven)
"""History never sees placeholders; a placeholder sees strictly earlier history and the tokens of
its own question, such as its query and scenario (IntSR).

Label `placeholder`: 0 for the history, 1, 2, ... for the questions, whose tokens share a number.
"""


def _compatible_tasks(query: TokenMetadata, key: TokenMetadata) -> Answer:
    session, own = key.labels["session"], query.labels["session"]
    context = (key.labels["task"] == CONTEXT) & (session < own)
    itself = (session == own) & (key.labels["task"] == query.labels["task"])
    itself &= key.labels["candidate"] == query.labels["candidate"]
    return (context | itself) & (key.labels["time"] <= query.labels["time"])


task_masks = both(same_segment, _compatible_tasks)
"""Retrieval and ranking in one row (SynerGen): causal in time, sessions isolated, tasks apart.

A token sees the events of earlier sessions that are not later than itself, equal times included,
and, of its own session, the tokens of its own task and candidate: ranking tokens their candidate,
retrieval tokens no item that could be their target. Labels `time`; `session`: number of the session
inside the history; `task` (`CONTEXT`, `RETRIEVAL`, `RANKING`); `candidate`: what a token belongs to
inside its session and task, so that an event or a retrieval token alone has a number of its own.
"""


def _one_list(query: TokenMetadata, key: TokenMetadata) -> Answer:
    mine, other = query.labels["list"], key.labels["list"]
    of_history = (other == 0) & (key.position <= query.position)
    return of_history | ((mine > 0) & (other == mine))


set_wise = both(same_segment, _one_list)
"""Items of a list see each other, all of them, and the history before them; the history is causal
(LiGR). Label `list`: 0 for the history, 1, 2, ... for the lists."""
