"""Even assignment at the least cost: every code gets its share of the rows, exactly (METHODS T5).

    min_c sum_i D[i, c_i]   with   low <= #{i: c_i = k} <= high   for every code k

A transportation problem, which LETTER (arXiv:2405.07314) and MiniOneRec (arXiv:2510.24431) give to
a general solver of minimum-cost flows over n x k arcs. Codes are few and rows many, so here the
flow runs between codes: moving a row from code a to code b costs the least difference
D[i, b] - D[i, a] over the rows of a, and k x k such numbers hold all that matters. Cheapest codes
under any prices are of least cost for the sizes they have; shortest paths (Ford and Fulkerson,
"Flows in networks", 1962) then carry rows from crowded codes to those that lack some, and keep it
so. Costs are whole numbers, 2^-40 of their range: finer than fp32, and no comparison is rounded.

The least cost comes with prices: the code of row i is the argmin of D[i, k] + price[k]. For squared
distances this is a power diagram, which assigns new points as well.

Runs on the host, in numpy: it holds n x k costs, and its steps are many and small.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Int64

_RANGE = 2**40
"""What the largest difference of a row's costs becomes."""
_FEW = 0.05
"""Share of the rows that is moved faster along paths than by a search for better prices."""
_TURNS = 10
_NEVER = 2**60
"""Length of an arc that is not there: above that of any path, and two of them fit int64."""


class Balanced(NamedTuple):
    """An even assignment of least cost."""

    codes: Int32[np.ndarray, " n"]
    prices: Float[np.ndarray, " k"]
    """In the unit of the costs, float64, of mean 0: no row has `costs[i, k] + prices[k]` lower
    than under its code."""


def balanced_assign(
    costs: Float[np.ndarray, "n k"],
    *,
    bounds: tuple[int, int] | None = None,
    live: Bool[np.ndarray, " n"] | None = None,
    prices: Float[np.ndarray, " k"] | None = None,
) -> Balanced:
    """Codes of least total cost with as many rows each as the bounds allow.

    Args:
        costs: of every row under every code, such as squared distances; what is added to all
            costs of a row does not matter.
        bounds: least and most rows of a code; n / k rounded down and up by default.
        live: rows that count. The others (padding) get the cheapest code under the prices.
        prices: where to start, such as those of similar costs. They change the time, and the
            codes only between assignments of equal cost.

    Raises:
        ValueError: costs that are not finite, or bounds that the rows cannot meet.
    """
    live = np.ones(len(costs), bool) if live is None else live
    rows, codes = int(live.sum()), costs.shape[1]
    low, high = bounds or (rows // codes, -(-rows // codes))
    if not 0 <= codes * low <= rows <= codes * high:
        raise ValueError(
            f"{rows} rows do not fit {codes} codes of {low} to {high} rows each; give bounds on "
            f"both sides of {rows / codes:.6g}."
        )
    whole, unit = _whole_numbers(costs[live])
    start = np.zeros(codes) if prices is None else np.clip(prices / unit, -_RANGE, _RANGE)
    near = _near_prices(whole, np.rint(start).astype(np.int64), high)
    flow = _Flow.begin(whole, near, low, high)
    while flow.move_rows():
        pass
    found = _centred(flow.prices * unit)
    every = np.argmin(costs + found, 1).astype(np.int32) if rows < len(costs) else flow.codes
    every[live] = flow.codes
    return Balanced(every, found)


def separating_prices(
    costs: Float[np.ndarray, "n k"], codes: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " k"]:
    """The prices under which every row is as far as can be from a change of code.

    An assignment of least cost has many prices. Those of `balanced_assign` leave some rows on the
    border of two codes, where rounding decides; these have the largest possible least difference
    between a row's cost under another code and under its own. It is the least mean cost of a cycle
    of moves (Karp, "A characterization of the minimum cycle mean in a digraph", 1978).

    Args:
        costs: as of `balanced_assign`.
        codes: of least cost among those with as many rows of each code.
    """
    whole, unit = _whole_numbers(costs)
    gain = _gains(whole, codes)
    # Rounded down, so that no cycle is negative.
    return _centred(-_potentials(gain - _least_cycle_mean(gain)) * unit)


def greedy_assign(
    costs: Float[np.ndarray, "n k"], *, live: Bool[np.ndarray, " n"] | None = None
) -> Int32[np.ndarray, " n"]:
    """Code after code takes its share of the cheapest rows that are left: OneRec's Algorithm 1.

    The first codes choose and the last get what is left, so another order of the codes gives
    another assignment, and the total is above the least. Where k does not divide the rows, the
    first n mod k codes take one more, which the paper leaves open.

    Source: OneRec (arXiv:2502.18965). Ties go to the lowest row.

    Args:
        costs: of every row under every code, such as squared distances; unlike in
            `balanced_assign`, what is added to all costs of a row matters.
        live: rows that count. The others (padding) get their cheapest code.

    Raises:
        ValueError: costs that are not finite.
    """
    _check_finite(costs)
    codes = np.argmin(costs, 1).astype(np.int32)
    left = np.arange(len(costs)) if live is None else np.flatnonzero(live)
    share, more = divmod(len(left), costs.shape[1])
    for code in range(costs.shape[1]):
        order = np.argsort(costs[left, code], kind="stable")[: share + (code < more)]
        codes[left[order]] = code
        left = np.delete(left, order)
    return codes


def _check_finite(costs: np.ndarray) -> None:
    if not np.isfinite(costs).all():
        raise ValueError("costs must be finite numbers; look for overflow in the vectors.")


def _whole_numbers(costs: np.ndarray) -> tuple[Int64[np.ndarray, "n k"], float]:
    """Costs above the lowest of each row, and what 1 is worth."""
    _check_finite(costs)
    above = np.subtract(costs, costs.min(1, keepdims=True), dtype=np.float64)
    unit = float(above.max()) / _RANGE or 1.0
    above *= 1.0 / unit
    return np.rint(above, out=above).astype(np.int64), unit


def _near_prices(costs: np.ndarray, prices: np.ndarray, high: int) -> Int64[np.ndarray, " k"]:
    """Of given prices, none, and some turns of damped ascent of the dual, those that crowd least.

    Only the time depends on them. What moves one price by the gap between the cheapest codes of a
    row, for a code that has twice its share, is about right; the turns keep it from swinging.
    """
    rows, codes = costs.shape
    found = [(*_crowd(costs, each, high), each) for each in (prices, np.zeros_like(prices))]
    least, sizes, best = min(found, key=lambda each: each[0])
    if least <= _FEW * rows:
        return best
    some = np.partition(costs[:: -(-rows // 1024)], 1, axis=1)
    gap, trial = float((some[:, 1] - some[:, 0]).mean()), best
    for turn in range(_TURNS):
        step = gap * (1 - turn / _TURNS) * (sizes * codes / rows - 1)
        trial = trial + np.rint(step).astype(np.int64)
        crowd, sizes = _crowd(costs, trial, high)
        if crowd < least:
            least, best = crowd, trial
    return best


def _crowd(costs: np.ndarray, prices: np.ndarray, high: int) -> tuple[int, np.ndarray]:
    """How many rows are too many somewhere under prices, and the sizes of the codes."""
    sizes = np.bincount((costs + prices).argmin(1), minlength=len(prices))
    return int(np.maximum(sizes - high, 0).sum()), sizes


def _centred(prices: np.ndarray) -> np.ndarray:
    return prices - prices.mean()


@dataclasses.dataclass
class _Flow:
    """Codes of least cost for their sizes, on the way to sizes within the bounds.

    Every code is filled up with blanks, which cost the same everywhere, at most `high - low` of
    them: then all codes must hold `high` rows and blanks.
    """

    costs: Int64[np.ndarray, "n k"]
    prices: Int64[np.ndarray, " k"]
    """Codes, and places of blanks, are cheapest under these."""
    codes: Int32[np.ndarray, " n"]
    blanks: Int64[np.ndarray, " k"]
    excess: Int64[np.ndarray, " k"]
    """Rows and blanks above `high`."""
    spread: int
    """Blanks that a code may hold: high - low."""
    gain: Int64[np.ndarray, "k k"]
    """Least cost of moving a row of one code to another, `_NEVER` on the diagonal."""

    @classmethod
    def begin(cls, costs: np.ndarray, prices: np.ndarray, low: int, high: int) -> _Flow:
        """Cheapest codes under prices, and blanks where they are cheapest under the same."""
        codes = np.argmin(costs + prices, 1).astype(np.int32)
        left = len(prices) * high - len(costs)
        ranks = np.argsort(np.argsort(prices, kind="stable"))
        blanks = np.clip(left - ranks * (high - low), 0, high - low)
        excess = np.bincount(codes, minlength=len(prices)) + blanks - high
        return cls(costs, prices, codes, blanks, excess, high - low, _gains(costs, codes))

    def move_rows(self) -> bool:
        """Moves rows along shortest paths from crowded codes; False where no code is crowded."""
        if not (self.excess > 0).any():
            return False
        arcs, is_blank = self.gain, np.zeros(self.gain.shape, bool)
        if self.spread:
            is_blank = (self.blanks > 0)[:, None] & (self.blanks < self.spread) & (self.gain > 0)
            arcs = np.where(is_blank, 0, self.gain)
        needy, before = self.search(arcs)
        walked: set[tuple[int, int]] = set()
        moves: dict[int, tuple[int, int]] = {}
        for target in needy.tolist():
            path = _path_to(target, before)
            start = path[0][0]
            if self.excess[start] <= 0 or not walked.isdisjoint(path):
                continue
            steps = {self.mover(*arc, bool(is_blank[arc])): arc for arc in path}
            # Paths without slack that share no row may all be walked at once.
            if moves.keys().isdisjoint(steps):
                moves |= steps
                walked.update(path)
                self.excess[[start, target]] += (-1, 1)
        self.settle(moves)
        return True

    def search(self, arcs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shortest paths from crowded codes to the nearer half of those that lack rows.

        Returns:
            Those codes, nearest first, and the code before each on its path, -1 at a start. The
            prices have changed so that no arc of the paths has slack, and none is below 0.
        """
        needy = np.flatnonzero(self.excess < 0)
        length = np.where(self.excess > 0, -self.prices, _NEVER)
        before = np.full(len(length), -1)
        fresh, turns = np.flatnonzero(self.excess > 0), 0
        while len(fresh):
            turns += 1
            assert turns <= len(arcs), "a cycle is negative"
            better = _relax(arcs, fresh, length, before)
            slack = length + self.prices
            limit = np.partition(slack[needy], len(needy) // 2)[len(needy) // 2]
            fresh = better[slack[better] < limit]
        self.prices = self.prices - np.minimum(slack, limit)
        needy = needy[np.argsort(slack[needy], kind="stable")]
        return needy[slack[needy] <= limit], before

    def mover(self, code: int, after: int, is_blank: bool) -> int:
        """The row that moves between two codes, the lowest among equals; -1 - code for a blank."""
        if is_blank:
            return -1 - code
        members = np.flatnonzero(self.codes == code)
        away = self.costs[members, after] - self.costs[members, code]
        return int(members[np.argmax(away == self.gain[code, after])])

    def settle(self, moves: dict[int, tuple[int, int]]) -> None:
        """Gives rows and blanks their new codes, and brings the arcs up to date."""
        for row, (code, after) in moves.items():
            if row < 0:
                self.blanks[[code, after]] += (-1, 1)
        rows = np.array([row for row in moves if row >= 0], np.int64)
        old, new = self.codes[rows], np.array([moves[row][1] for row in rows.tolist()], np.int32)
        away = self.costs[rows] - self.costs[rows, old][:, None]
        was_least = away == self.gain[old]
        self.codes[rows] = new
        for code in np.unique(old).tolist():
            targets = np.flatnonzero(was_least[old == code].any(0))
            self.gain[code, targets] = _gain(self.costs, self.codes, code, targets)
        away = self.costs[rows] - self.costs[rows, new][:, None]
        np.minimum.at(self.gain, new, away)
        np.fill_diagonal(self.gain, _NEVER)


def _gains(costs: np.ndarray, codes: np.ndarray) -> Int64[np.ndarray, "k k"]:
    """Least cost of moving a row of one code to another, `_NEVER` where there is no row."""
    size = costs.shape[1]
    gain = np.stack([_gain(costs, codes, code, slice(None)) for code in range(size)])
    np.fill_diagonal(gain, _NEVER)
    return gain


def _gain(
    costs: np.ndarray, codes: np.ndarray, code: int, targets: np.ndarray | slice
) -> np.ndarray:
    members = np.flatnonzero(codes == code)
    away = costs[members][:, targets] - costs[members, code][:, None]
    return away.min(0, initial=_NEVER)


def _path_to(target: int, before: np.ndarray) -> list[tuple[int, int]]:
    """The arcs from a start to a node."""
    path = []
    while before[target] >= 0:
        path.append((int(before[target]), target))
        target = path[-1][0]
    return path[::-1]


def _relax(
    arcs: np.ndarray, fresh: np.ndarray, length: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """Lengths in place by way of some nodes; returns the nodes that came nearer."""
    reach = length[fresh, None] + arcs[fresh]
    best = reach.min(0)
    better = np.flatnonzero(best < length)
    before[better] = fresh[reach[:, better].argmin(0)]
    length[better] = best[better]
    return better


def _potentials(gain: np.ndarray) -> np.ndarray:
    """Numbers with u[b] - u[a] <= gain[a, b] for all a and b; no cycle may be negative."""
    length, fresh = np.zeros(len(gain), np.int64), np.arange(len(gain))
    before, turns = np.full(len(gain), -1), 0
    while len(fresh):
        turns += 1
        assert turns <= len(gain), "a cycle is negative"
        fresh = _relax(gain, fresh, length, before)
    return length


def _least_cycle_mean(gain: np.ndarray) -> int:
    """Least mean length of a cycle, rounded down; 0 where there is none."""
    walks = [np.zeros(len(gain), np.int64)]
    """Least length of a walk of t arcs to each node."""
    for _ in gain:
        walks.append(np.minimum((walks[-1][:, None] + gain).min(0), _NEVER))
    left = len(gain) - np.arange(len(gain))
    means = (walks[-1] - np.stack(walks[:-1])) // left[:, None]
    means = means.max(0)[walks[-1] < _NEVER // 2]
    return int(means.min()) if len(means) else 0
