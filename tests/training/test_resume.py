"""The law: however a run ends, starting it again gives bitwise what an undisturbed run gives."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrec.checkpoint import Checkpoints
from jaxrec.tracking import JsonLines
from jaxrec.training.interruption import Interruption, Preempted
from training.toys import Stream, run, same, timeless, validation


@pytest.fixture(scope="module")
def calm(tmp_path_factory, one):
    return run(tmp_path_factory.mktemp("calm"), one)


def assert_equal(result, calm, folder):
    assert same(result.state, calm.state)
    assert same(result.params, calm.params)
    assert (result.best_step, result.stopped) == (calm.best_step, calm.stopped)
    assert timeless(result.history) == timeless(calm.history)
    assert result.history == JsonLines(folder / "metrics.jsonl").rows()
    assert Checkpoints(folder / "checkpoints").steps() == [25, 30]
    assert Checkpoints(folder / "best").steps() == [result.best_step]


class Acts(Stream):
    """Does something while a batch is fetched."""

    def __init__(self, act, *at):
        super().__init__()
        self.act, self.moments = act, set(at)

    def __next__(self):
        if self.at in self.moments:
            self.moments.remove(self.at)
            self.act()
        return super().__next__()


def die():
    raise InterruptedError


@pytest.mark.parametrize("moments", [(3,), (5, 14), (12, 19, 29)])
def test_a_run_that_broke_goes_on(tmp_path, one, calm, moments):
    for moment in moments:
        with pytest.raises(InterruptedError):
            run(tmp_path, one, batches=Acts(die, moment))
    assert_equal(run(tmp_path, one), calm, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_zero(tmp_path, one, calm, number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, one, batches=Acts(lambda: os.kill(os.getpid(), number), 16))
    assert isinstance(stop.value, Preempted)
    assert stop.value.code == 0
    assert stop.value.step == 17  # the step under way is finished
    assert Checkpoints(tmp_path / "checkpoints").latest() == 17
    assert signal.getsignal(number) is before
    assert "step 17 is saved" in capsys.readouterr().err
    result = run(tmp_path, one)
    assert_equal(result, calm, tmp_path)


def test_a_signal_when_validation_is_due_does_not_wait_for_it(tmp_path, one, calm):
    calls = []

    def validate(params, step):
        calls.append(step)
        if len(calls) == 3:
            # The second session has validated step 12; the third must not write its row twice.
            assert len(JsonLines(tmp_path / "metrics.jsonl").rows()) == 5
        return validation(params, step)

    stream = Acts(lambda: os.kill(os.getpid(), signal.SIGTERM), 11)
    with pytest.raises(Preempted) as stop:
        run(tmp_path, one, batches=stream, validate=validate)
    assert stop.value.step == 12
    assert calls == [6]
    with pytest.raises(InterruptedError):
        run(tmp_path, one, batches=Acts(die, 13), validate=validate)
    assert calls == [6, 12]
    result = run(tmp_path, one)
    assert_equal(result, calm, tmp_path)


def test_a_death_between_best_and_checkpoint_keeps_the_old_best(tmp_path, one, calm):
    # Best at 6 and 12 (rising), checkpoints at 10 and 20: at 14 the newest checkpoint names 6.
    values = {6: 0.1, 12: 0.2, 18: 0.3, 24: 0.0, 30: 0.0}
    seen = {}

    def validate(params, step):
        seen[step] = jax.tree.map(np.array, params)
        return {"ndcg@10": values[step]}

    options = {"validate": validate, "checkpoint_every": 10}
    with pytest.raises(InterruptedError):
        run(tmp_path, one, batches=Acts(die, 14), **options)
    assert Checkpoints(tmp_path / "checkpoints").latest() == 10
    assert Checkpoints(tmp_path / "best").steps() == [6, 12]
    # Suppose that the second time, on other hardware, step 12 is not better.
    values[12] = values[18] = 0.0
    result = run(tmp_path, one, **options)
    assert result.best_step == 6
    assert same(result.params, seen[6])
    assert Checkpoints(tmp_path / "best").steps() == [6]


def test_resuming_between_the_boundaries_of_a_call(tmp_path, one, calm):
    stream = Acts(lambda: os.kill(os.getpid(), signal.SIGTERM), 8)
    with pytest.raises(Preempted) as stop:
        run(tmp_path, one, batches=stream)
    assert stop.value.step == 9
    # Calls of two steps begin at even steps: the first call of this session has one step.
    result = run(tmp_path, one, steps_per_call=2, checkpoint_every=6)
    for mine, theirs in zip(timeless(result.history), timeless(calm.history), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_kill_minus_nine_at_any_moment(tmp_path):
    script = Path(__file__).with_name("kill_job.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = int(re.fullmatch(r"killed (\d+) times\n", done.stdout)[1])
    assert kills >= 3
    rows, states, bests = [], [], []
    for name in ("calm", "killed"):
        folder = tmp_path / name
        rows.append(timeless(JsonLines(folder / "metrics.jsonl").rows()))
        checkpoints, best = Checkpoints(folder / "checkpoints"), Checkpoints(folder / "best")
        assert checkpoints.steps() == [25, 30]
        assert len(best.steps()) == 1
        assert not list(folder.rglob("*tmp*"))
        states.append(read(checkpoints, 30))
        bests.append((best.steps(), read(best, best.latest())))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 12
    assert same(*states)
    assert bests[0][0] == bests[1][0]
    assert same(bests[0][1], bests[1][1])


def read(checkpoints, step):
    """A checkpoint without knowing its shape."""
    record = checkpoints._record(step)
    template = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, (shape, dtype) in record["leaves"].items()
    }
    return checkpoints.restore(step, template)[0]


def test_second_interrupt_is_immediate():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
