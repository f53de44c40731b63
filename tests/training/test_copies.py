"""Copies of the parameters in the state: how they follow, where they lie, what is saved."""

import jax
import numpy as np
import pytest

from jaxrec.checkpoint import Checkpoints
from jaxrec.parallel import replicated, shard_rows
from jaxrec.tracking import JsonLines
from jaxrec.training.optimizers import AdamW
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import Follow, make_train_step
from training.test_resume import Acts, die
from training.toys import AXES, batch, init, make_loss, run, same, tables

ADAM = AdamW(learning_rate=0.03, warmup_steps=2).build(20)
FOLLOW = {"still": Follow(), "often": Follow(2), "mixed": Follow(3, 0.25)}
PLAIN = make_loss(0.0)


def loss(params, tables, batch, key, copies=None):
    """The toy's loss, and how far each copy is: a pull towards one of them."""
    total, weight, metrics = PLAIN(params, tables, batch, key)
    gaps = {name: ((params["output"] - copy["output"]) ** 2).sum() for name, copy in copies.items()}
    total += 0.1 * gaps["mixed"] * weight
    return total, weight, {**metrics, **{name: (gap, 1.0) for name, gap in gaps.items()}}


def start(mesh, **settings):
    abstract = abstract_state(init, ADAM, AXES, mesh, FOLLOW)
    state = create_state(init, ADAM, jax.random.key(0), abstract)
    shardings = state_shardings(abstract)
    step = make_train_step(loss, ADAM, mesh=mesh, shardings=shardings, copies=FOLLOW, **settings)
    return step, state, *jax.device_put((tables(), jax.random.key(1)), replicated(mesh))


def slow(copies, step, params):
    """Every rule in plain numpy."""
    found = {}
    for name, follow in FOLLOW.items():
        old = copies[name]
        if follow.every and step % follow.every == 0:
            share = follow.mix
            moved = jax.tree.map(lambda leaf, share=share: share * leaf, params)
            stayed = jax.tree.map(lambda leaf, share=share: (1 - share) * leaf, old)
            old = jax.tree.map(np.add, stayed, moved)
        found[name] = old
    return found


def close(ours, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, expected)


@pytest.fixture(scope="module")
def walked(one):
    """States after each of seven steps, and the copies that the rules give."""
    step, state, table, key = start(one)
    copies = dict.fromkeys(FOLLOW, jax.device_get(state.params))
    states, reports = [jax.device_get(state)], []
    for number in range(7):
        state, report = step(state, table, shard_rows(batch(number), one), key)
        states.append(jax.device_get(state))
        reports.append(jax.device_get(report))
    rules = [copies]
    for number, after in enumerate(states[1:], start=1):
        rules.append(slow(rules[-1], number, after.params))
    return states, reports, rules


def test_copies_follow_as_a_slow_loop_does(walked):
    states, _, rules = walked
    for state, expected in zip(states, rules):
        close(state.copies, expected)
    last = states[-1]
    assert same(last.copies["still"], states[0].params)
    assert same(last.copies["often"], states[6].params)  # to the bit at a whole share
    assert not same(last.copies["often"], last.params)
    assert not same(last.copies["mixed"], states[3].params)
    assert not same(last.params, states[0].params)


def test_the_loss_reads_the_copies_of_before_the_step(walked):
    states, reports, _ = walked
    for before, report in zip(states, reports):
        for name, copy in before.copies.items():
            gap = ((before.params["output"] - copy["output"]) ** 2).sum()
            assert float(report.metrics[name][0]) == pytest.approx(gap, rel=1e-5, abs=1e-6)
    assert float(reports[-1].metrics["mixed"][0]) > 0


def test_several_steps_per_call_follow_alike(walked, one):
    step, state, table, key = start(one, steps_per_call=7)
    stacked = jax.tree.map(lambda *each: np.stack(each), *(batch(i) for i in range(7)))
    state, _ = step(state, table, shard_rows(stacked, one, axis=1), key)
    close(jax.device_get(state.copies), walked[0][-1].copies)


def test_a_step_that_is_not_made_moves_no_parameters_into_a_copy(one):
    step, state, table, key = start(one)
    before = jax.device_get(state)
    for number in range(2):
        bad = {**batch(number), "weight": np.full(8, np.nan, np.float32)}
        state, report = step(state, table, shard_rows(bad, one), key)
        assert report.finite.tolist() == [False]
    assert same(state.copies, before.copies)


def test_copies_lie_like_the_parameters_and_are_arrays_of_their_own(walked, cube):
    step, state, table, key = start(cube)
    for copy in state.copies.values():
        placed = jax.tree.map(lambda leaf: leaf.sharding, copy)
        assert placed == jax.tree.map(lambda leaf: leaf.sharding, state.params)
    assert state.copies["still"]["dense"]["kernel"].addressable_shards[0].data.shape == (4, 8)
    first = state
    for number in range(7):  # each step is given all arrays of the state before
        state, _ = step(state, table, shard_rows(batch(number), cube), key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.copies)))
    close(jax.device_get(state.copies), walked[0][-1].copies, atol=1e-4)


def test_parameters_that_existed_before_outlive_the_first_step(one):
    """A stage starts from arrays that its caller keeps."""
    abstract = abstract_state(init, ADAM, AXES, one, FOLLOW)
    params = jax.jit(init)(jax.random.key(5))
    state = create_state(init, ADAM, jax.random.key(0), abstract, lambda key, wanted: params)
    shardings = state_shardings(abstract)
    step = make_train_step(loss, ADAM, mesh=one, shardings=shardings, copies=FOLLOW)
    kept = jax.device_get(params)
    table, key = jax.device_put((tables(), jax.random.key(1)), replicated(one))
    step(state, table, shard_rows(batch(0), one), key)
    assert same(params, kept)


def test_a_broken_run_goes_on_with_its_copies(tmp_path, one):
    options = {"loss": loss, "copies": FOLLOW, "steps": 14, "validate": None}
    calm = run(tmp_path / "calm", one, **options)
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", one, batches=Acts(die, 8), **options)
    result = run(tmp_path / "broken", one, **options)
    assert same(result.state, calm.state)
    assert result.state.copies.keys() == FOLLOW.keys()
    assert same(run(tmp_path / "broken", one, **options).state, calm.state)  # read once more
    with Checkpoints(tmp_path / "calm" / "checkpoints") as checkpoints:
        names = checkpoints._record(14)["leaves"]
    assert {f"copies/{name}/dense/kernel" for name in FOLLOW} <= set(names)


def test_a_run_without_copies_is_saved_as_it_was_before_there_were_any(tmp_path, one):
    run(tmp_path, one, steps=1, validate=None, loss=PLAIN)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        names = sorted(checkpoints._record(1)["leaves"])
    paths = ("dense/bias", "dense/kernel", "embedding", "output")
    moments = [f"optimizer_state/1/{moment}/{path}" for moment in ("mu", "nu") for path in paths]
    assert [name for name in names if "/count" not in name] == sorted(
        [*moments, *(f"params/{path}" for path in paths), "step"]
    )


def test_a_watch_sees_every_training_row_and_may_end_the_run(tmp_path, one):
    seen = []

    def watch(row):
        seen.append(row)
        if len(seen) == 3:
            raise RuntimeError("nothing to learn")

    with pytest.raises(RuntimeError, match="nothing to learn"):
        run(tmp_path, one, steps=14, log_every=2, validate=None, loss=PLAIN, watch=watch)
    rows = JsonLines(tmp_path / "metrics.jsonl").rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["loss"] for row in seen] == [row["loss"] for row in rows]


@pytest.mark.parametrize("numbers", [{"every": -1}, {"mix": 0.0}, {"mix": 1.5}])
def test_impossible_numbers(numbers):
    with pytest.raises(ValueError, match="Follow needs every >= 0"):
        Follow(**numbers)
