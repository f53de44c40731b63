"""The loop: its rows, its result, early stopping, divergence, other meshes, refusals."""

import itertools
import json
import threading

import jax
import numpy as np
import pytest

from jaxrec.checkpoint import CheckpointError, Checkpoints
from jaxrec.parallel import replicated, shard_rows
from jaxrec.tracking import JsonLines
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.record import RunMismatch, TrainingDiverged
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import make_train_step
from training.toys import AXES, Stream, batch, init, make_loss, run, same, tables, timeless


def from_list(values):
    """A validation that reads its numbers off a list and remembers the parameters it saw."""
    seen, numbers = {}, iter(values)

    def validate(params, step):
        seen[step] = jax.tree.map(np.array, params)
        return {"ndcg@10": next(numbers)}

    return validate, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory, one):
    folder = tmp_path_factory.mktemp("plain")
    return folder, run(folder, one)


def test_rows_are_the_means_of_the_steps(plain, one):
    _, result = plain
    adam = AdamW(learning_rate=0.03, warmup_steps=5)
    transformation = adam.build(30)
    abstract = abstract_state(init, transformation, AXES, one)
    init_key, key = jax.random.split(jax.random.key(3))
    state = create_state(init, transformation, init_key, abstract)
    step = make_train_step(
        make_loss(), transformation, mesh=one, shardings=state_shardings(abstract)
    )
    table, key = jax.device_put((tables(), key), replicated(one))
    rows = {row["step"]: row for row in result.history if "loss" in row}
    assert sorted(rows) == [4, 8, 12, 16, 20, 24, 28]
    reports = []
    for index in range(8):
        state, report = step(state, table, shard_rows(batch(index), one), key)
        reports.append(jax.device_get(report.metrics))
    for last in (4, 8):
        for name in ("loss", "accuracy", "gradient_norm"):
            pairs = np.array([report[name] for report in reports[last - 4 : last]], np.float64)
            total, weight = pairs.sum(0)
            assert rows[last][name] == pytest.approx(total / weight, rel=1e-12)
        assert rows[last]["learning_rate"] == pytest.approx(float(adam.rate(last - 1, 30)))


def test_order_and_names_of_rows(plain):
    folder, result = plain
    assert [(row["step"], "loss" in row) for row in result.history] == [
        *((4, True), (6, False), (8, True), (12, True), (12, False), (16, True), (18, False)),
        *((20, True), (24, True), (24, False), (28, True), (30, False)),
    ]
    assert set(result.history[1]) == {
        *("step", "validation/ndcg@10", "validation/recall@10", "seconds_validation"),
    }
    assert result.history == JsonLines(folder / "metrics.jsonl").rows()
    assert result.stopped == "finished"
    assert int(result.state.step) == 30


def test_a_finished_folder_does_no_work(plain, one):
    folder, result = plain

    def never(*arguments):
        raise AssertionError("a finished run must not work")

    files = sorted(path for path in folder.rglob("*"))
    again = run(folder, one, loss=never, validate=never)
    assert same(again.params, result.params)
    assert same(again.state, result.state)
    assert (again.best_step, again.stopped, again.seconds) == (
        *(result.best_step, result.stopped, result.seconds),
    )
    assert again.history == result.history
    assert sorted(path for path in folder.rglob("*")) == files


def test_best_parameters_are_those_of_the_best_validation(tmp_path, one):
    validate, seen = from_list([0.1, 0.5, 0.5, np.nan, 0.4])
    result = run(tmp_path, one, validate=validate)
    assert list(seen) == [6, 12, 18, 24, 30]
    assert result.best_step == 12  # equal is not better, NaN never is
    assert same(result.params, seen[12])
    assert same(result.state.params, seen[30])
    assert Checkpoints(tmp_path / "best").steps() == [12]
    # NaN is null in strict JSON.
    assert [row for row in result.history if row["step"] == 24][1]["validation/ndcg@10"] is None


def test_early_stopping_and_smaller_is_better(tmp_path, one):
    validate, seen = from_list([3.0, 2.0, 2.5, 2.5])
    result = run(tmp_path, one, validate=validate, monitor="-ndcg@10", patience=2)
    assert result.stopped == "early"
    assert int(result.state.step) == 24
    assert result.best_step == 12
    assert same(result.params, seen[12])
    again = run(tmp_path, one, validate=validate, monitor="-ndcg@10", patience=2)
    assert again.stopped == "early"
    assert same(again.params, seen[12])


def test_without_validation_the_last_parameters_count(tmp_path, one):
    result = run(tmp_path, one, validate=None)
    assert result.best_step == 30
    assert same(result.params, result.state.params)
    assert not (tmp_path / "best").exists()
    off = run(tmp_path / "off", one, validate_every=0)
    assert timeless(off.history) == timeless(result.history)


def test_divergence_keeps_the_last_good_state(tmp_path, one, plain):
    with pytest.raises(TrainingDiverged, match=r"not finite in step 14 \(noticed at step") as error:
        run(tmp_path, one, batches=Stream(poison=(13,)))
    assert error.value.first == 14
    assert 14 <= error.value.last <= 17
    assert error.value.saved == 10
    assert str(tmp_path) in str(error.value)
    assert Checkpoints(tmp_path / "checkpoints").latest() == 10
    assert max(row["step"] for row in JsonLines(tmp_path / "metrics.jsonl").rows()) == 12
    # The state that was kept is a good one: with sound data it leads where it should.
    result = run(tmp_path, one)
    assert same(result.state, plain[1].state)
    assert timeless(result.history) == timeless(plain[1].history)


def test_several_steps_per_call_write_the_same_rows(tmp_path, one, plain):
    result = run(tmp_path, one, steps_per_call=2, checkpoint_every=10)
    for mine, theirs in itertools.zip_longest(timeless(result.history), timeless(plain[1].history)):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_cube_gives_the_curve_of_one_device(tmp_path, cube, plain):
    result = run(tmp_path, cube, validate_every=0)
    losses = [row["loss"] for row in result.history]
    expected = [row["loss"] for row in plain[1].history if "loss" in row]
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    kernel = result.params["dense"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 8)}


def test_another_mesh_continues_the_data_and_the_arithmetic(tmp_path, one, cube, plain):
    class Dies(Stream):
        def __next__(self):
            if self.at == 17:
                raise InterruptedError
            return super().__next__()

    with pytest.raises(InterruptedError):
        run(tmp_path, one, batches=Dies())
    stream = Stream()
    result = run(tmp_path, cube, batches=stream)
    assert stream.at == 30
    assert result.params["embedding"].sharding.mesh.size == 8
    for mine, theirs in zip(result.history, plain[1].history, strict=True):
        assert mine["step"] == theirs["step"]
        if "loss" in theirs:
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        *map(jax.device_get, (result.state.params, plain[1].state.params)),
    )


def test_another_run_is_refused(plain, one):
    folder, _ = plain
    with pytest.raises(RunMismatch, match=r"run\.toy = 1, asked for is 2"):
        run(folder, one, manifest={"toy": 2})
    with pytest.raises(RunMismatch, match=r"data\.rows = 8, asked for is 16"):
        run(folder, one, batches=Stream(rows=16))
    with pytest.raises(RunMismatch, match=r"training\.seed = 3, asked for is 4"):
        run(folder, one, seed=4)
    with pytest.raises(RunMismatch, match=r"training\.steps = 30, asked for is 60"):
        run(folder, one, steps=60)


def test_another_model_is_refused(plain, one, monkeypatch):
    folder, _ = plain
    monkeypatch.setattr("training.toys.AXES", {**AXES, "more": ("embed",)})
    monkeypatch.setattr("training.toys.init", lambda key: {**init(key), "more": np.ones(3)})
    with pytest.raises(CheckpointError, match="'params/more' is missing there"):
        run(folder, one)


def test_a_truncated_checkpoint_says_what_to_do(tmp_path, one, plain):
    run(tmp_path, one)
    (tmp_path / "finished.json").unlink()
    victim = max(
        (tmp_path / "checkpoints/000000030/state/d").iterdir(), key=lambda f: f.stat().st_size
    )
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is truncated") as error:
        run(tmp_path, one)
    first, second = str(error.value).splitlines()
    assert "000000030" in first
    assert second == "Delete that folder; the run then goes on from step 25."
    for path in sorted((tmp_path / "checkpoints/000000030").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "checkpoints/000000030").rmdir()
    result = run(tmp_path, one)
    assert same(result.state, plain[1].state)
    assert timeless(result.history) == timeless(plain[1].history)


def test_monitor_must_be_returned(tmp_path, one):
    with pytest.raises(ValueError, match=r"'mrr'.*ndcg@10, recall@10"):
        run(tmp_path, one, monitor="mrr")


def test_batches_must_go_on(tmp_path, one):
    class Ends(Stream):
        def __next__(self):
            if self.at == 3:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="ended at step 3 of 30"):
        run(tmp_path, one, batches=Ends())


class Widths(Stream):
    """Batches of two widths in turn, as a feed with buckets gives them."""

    def __next__(self):
        made = super().__next__()
        made["item"] = made["item"][:, : 2 + self.at % 2]
        return made


def test_batches_of_several_widths(tmp_path, one):
    assert run(tmp_path / "one", one, batches=Widths()).state.step == 30
    with pytest.raises(ValueError, match=r"one dispatch of 2 steps .*steps_per_call=1"):
        run(tmp_path / "two", one, batches=Widths(), steps_per_call=2, checkpoint_every=10)


def test_more_writers_and_labels(tmp_path, one, plain):
    shared = JsonLines(tmp_path / "all.jsonl", stage=1)
    JsonLines(tmp_path / "all.jsonl", stage=0).write(7, {"loss": 1.0})
    run(tmp_path / "run", one, writers=shared)
    rows = [{**row} for row in shared.rows()]
    assert all(row.pop("stage") == 1 for row in rows)
    assert timeless(rows) == timeless(plain[1].history)
    assert len(JsonLines(tmp_path / "all.jsonl").rows()) == len(rows) + 1


def test_runs_in_a_thread(tmp_path, one):
    # Signal handlers belong to the main thread; elsewhere there are none to set.
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, one)))
    thread.start()
    thread.join()
    assert results[0].stopped == "finished"


def test_marker_is_json(plain):
    marker = json.loads((plain[0] / "finished.json").read_text())
    assert marker["step"] == 30
    assert marker["best_step"] == plain[1].best_step


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log_every": 5, "steps_per_call": 2}, r"log_every.*steps_per_call \(2\), got 5"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"patience": -1}, "patience"),
    ],
)
def test_impossible_options_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        FitOptions(**change)
