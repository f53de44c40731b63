"""Whole stages of alignment: on a mesh, killed and resumed, idle, measured, and handed over."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_policy import TablePolicy, contexts, item_probabilities
from toy_stage import Known, Scored, toy_context, toy_log
from training.toys import same, timeless

from jaxrec.alignment import contexts as alignment_contexts
from jaxrec.alignment.align import Align
from jaxrec.alignment.calibration import Scaling
from jaxrec.alignment.contexts import Context, Contexts
from jaxrec.alignment.pairs import BestAgainstAll, SelfPlay
from jaxrec.alignment.policy import Given
from jaxrec.alignment.prefer import Prefer
from jaxrec.alignment.reward_model import FrozenReward, RewardArrays, RewardModel, sparse_items
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.alignment.rollouts import Sample
from jaxrec.alignment.stage import NothingToLearn, Start, Watch
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.data.splits import LeaveOneOut
from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.grpo import GRPO
from jaxrec.objectives.grpo_sr import GRPOSR
from jaxrec.objectives.reinforce import Reinforce
from jaxrec.objectives.rewards.model_scores import Gated, ModelScore
from jaxrec.objectives.s_dpo import SDPO
from jaxrec.parallel import MeshShape, make_mesh, replicated, shard_rows
from jaxrec.tracking import JsonLines
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.record import RunMismatch
from jaxrec.training.state import abstract_state, create_state, state_shardings
from jaxrec.training.step import Follow, make_train_step

pytestmark = pytest.mark.usefixtures("compile_fast")
ITEMS = 64
GAIN = np.random.default_rng(0).uniform(size=ITEMS).astype(np.float32)
ADAM = AdamW(learning_rate=0.1, warmup_steps=2, schedule="constant", weight_decay=0.0)
FIT = FitOptions(steps=8, validate_every=4, checkpoint_every=4, log_every=2, monitor="reward")
STAGE = Align(
    GRPO(kl=0.1),
    reward=Known("gain"),
    nll=0.05,
    rollouts=Sample(8),
    feed=Contexts(length=3, rows=8),
    reference=Follow(every=3, mix=0.5),
    behaviour=Follow(every=2),
    optimizer=ADAM,
    fit=FIT,
)


@dataclasses.dataclass(frozen=True)
class ShardedPolicy(TablePolicy):
    """A table whose rows and columns lie on the mesh where they divide."""

    def axes(self, space):
        return {f"level_{level}": ("embed", "vocab") for level in range(space.levels)}


def one_device():
    return make_mesh(MeshShape(1), jax.devices()[:1])


def context_of(folder, mesh=None, **changes):
    return toy_context(folder, mesh or one_device(), features={"gain": GAIN}, scale=0.5, **changes)


class Steps:
    """The compiled step of a stage, one step at a time."""

    def __init__(self, stage, mesh):
        context = context_of(Path(), mesh, generator=ShardedPolicy(0.5))
        self.mesh, self.start = mesh, Start(context, None)
        optimizer = stage.optimizer.build(10)
        abstract = abstract_state(self.start.init, optimizer, self.start.axes(), mesh, stage.copies)
        policy = stage.policy(context.generator, context.space)
        self.step = make_train_step(
            stage.loss(policy, self.start, Rewarding(stage.reward)),
            optimizer,
            mesh=mesh,
            shardings=state_shardings(abstract),
            copies=stage.copies,
        )
        self.given, self.key = jax.device_put(
            (Given(context.tables, context.catalogue), jax.random.key(3)), replicated(mesh)
        )
        self.state = create_state(self.start.init, optimizer, jax.random.key(2), abstract)

    def __call__(self, index):
        batch = shard_rows(Context(*contexts(8, ITEMS, seed=index)), self.mesh)
        with jax.set_mesh(self.mesh):
            self.state, report = self.step(self.state, self.given, batch, self.key)
        return {name: float(s / w) for name, (s, w) in report.metrics.items() if float(w)}


def numpy_of(tree):
    return jax.tree.map(np.array, tree)


PAIRED = Prefer(
    SDPO(beta=0.5),
    pairs=BestAgainstAll(),
    reward=Known("gain"),
    rollouts=Sample(8),
    reference=Follow(every=2),
    optimizer=ADAM,
)


@functools.cache
def followed(stage, steps):
    """States and metrics of a stage on one device: at the start and after every step."""
    one = Steps(stage, one_device())
    states, told = [numpy_of(one.state)], []
    for index in range(steps):
        told.append(one(index))
        states.append(numpy_of(one.state))
    return states, told


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        pytest.param(STAGE, 6, id="align"),
        # The same loop around another objective.
        pytest.param(PAIRED, 3, id="prefer", marks=pytest.mark.slow),
    ],
)
def test_a_step_does_not_depend_on_the_mesh(stage, steps):
    states, told = followed(stage, steps)
    sharded = Steps(stage, make_mesh(MeshShape(data=2, fsdp=2, tensor=2)))
    for index in range(3):
        theirs = sharded(index)
        assert theirs.keys() == told[index].keys()
        for name, value in told[index].items():
            assert theirs[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    table = sharded.state.params["level_2"]
    assert len({str(shard.index) for shard in table.addressable_shards}) == 4
    for one, other in zip(jax.tree.leaves(states[3]), jax.tree.leaves(sharded.state), strict=True):
        np.testing.assert_allclose(np.asarray(other), one, atol=1e-5, rtol=1e-5)
    moved = states[3].params["level_0"] - states[0].params["level_0"]
    assert np.abs(moved).max() > 0.05


def test_copies_lag_as_told_and_rollouts_come_from_the_older_one():
    states, told = followed(STAGE, 6)
    params = [state.params for state in states]
    for step, state in enumerate(states):
        assert same(state.copies["behaviour"], params[step // 2 * 2]), step
    half = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, params[0], params[3])
    for step, expected in {0: params[0], 2: params[0], 3: half, 5: half}.items():
        assert same(states[step].copies["reference"], expected), step
    # Freshly copied, the writer is the policy; a step later it is not.
    assert [row["ratio"] for row in told[::2]] == [1, 1, 1]
    assert all(abs(row["ratio"] - 1) > 1e-4 for row in told[1::2])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    context = context_of(tmp_path_factory.mktemp("calm"))
    return context, STAGE.run(context)


def assert_equal(result, folder, calm):
    _, expected = calm
    assert same(result.state, expected.state)
    assert same(result.params, expected.params)
    assert result.best_step == expected.best_step
    assert timeless(result.history) == timeless(expected.history)
    assert timeless(JsonLines(folder / "metrics.jsonl").rows()) == timeless(expected.history)
    for name in ("before.json", "after.json"):
        assert (folder / name).read_bytes() == (calm[0].folder / name).read_bytes()


@pytest.fixture
def breaking(monkeypatch):
    """Makes the feed of an alignment stage raise, or do something else, at its n-th batch."""
    plain = alignment_contexts.lay_contexts

    def arm(number, act):
        made = []

        def lay(*arguments):
            made.append(arguments)
            if len(made) == number:
                act()
            return plain(*arguments)

        monkeypatch.setattr(alignment_contexts, "lay_contexts", lay)

    yield arm
    monkeypatch.undo()


def fail():
    raise InterruptedError


def test_a_run_that_broke_goes_on(tmp_path, breaking, calm):
    breaking(3, fail)  # no checkpoint yet
    with pytest.raises(InterruptedError):
        STAGE.run(context_of(tmp_path))
    breaking(0, fail)
    assert_equal(STAGE.run(context_of(tmp_path)), tmp_path, calm)


def test_kill_minus_nine_and_go_on(tmp_path, calm):
    script = Path(__file__).with_name("kill_align.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "7"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "before.json").is_file()
    assert not (tmp_path / "finished.json").is_file()
    assert_equal(STAGE.run(context_of(tmp_path)), tmp_path, calm)


def test_the_parameters_it_started_from_are_left_alone(calm):
    context, result = calm
    assert not same(context.params, result.params)
    drawn = context.generator.init(jax.random.key(0), context.space)
    assert same(context.params, drawn)


def test_what_is_measured_before_and_afterwards(calm):
    context, result = calm
    codes, found = np.asarray(context.tables.codes), {}
    assert result.best_step == 8
    for name, params in {"before": context.params, "after": result.params}.items():
        told = json.loads((context.folder / f"{name}.json").read_text())
        chances = item_probabilities(params, codes, context.space)
        found[name] = chances @ GAIN
        assert set(told["rewards"]) == {"validation", "test"}
        for part, rewards in told["rewards"].items():
            assert len(rewards) == len(getattr(context.split, part)) == 40
            # 40 groups of 8 draws: the mean is off by about std / sqrt(320).
            error = 4 * np.sqrt(chances @ np.square(GAIN - found[name]) / 320)
            assert abs(np.mean(rewards) - found[name]) < error
        # A table looks at no history: its list is all items by chance, seen ones left out.
        order = np.argsort(-chances, kind="stable")
        assert told["positions"] == context.split.test[:8].tolist()
        for position, listed in zip(told["positions"], told["lists"], strict=True):
            user = position // 6
            seen = context.histories.item[user * 6 : position]
            assert listed == [item for item in order.tolist() if item not in seen][:10]
    assert found["after"] > found["before"] + 0.1


def test_validation_rewards_are_those_of_the_policy(calm):
    context, result = calm
    rows = {row["step"]: row for row in result.history if "validation/reward" in row}
    assert sorted(rows) == [4, 8]
    told = json.loads((context.folder / "after.json").read_text())["rewards"]["validation"]
    assert rows[8]["validation/reward"] == pytest.approx(np.mean(told), rel=1e-5)
    assert "validation/ndcg@10" in rows[8]


def test_a_finished_stage_only_hands_over(calm, monkeypatch):
    context, expected = calm
    files = {path: path.stat().st_mtime_ns for path in context.folder.glob("*.json*")}
    monkeypatch.setattr("jaxrec.training.loop.create_state", fail)
    monkeypatch.setattr("jaxrec.training.loop._Run.until_stopped", fail)
    monkeypatch.setattr("jaxrec.alignment.measure.mean_rewards", fail)
    result = STAGE.run(context)
    assert same(result.params, expected.params)
    assert {path: path.stat().st_mtime_ns for path in context.folder.glob("*.json*")} == files


IDLE = Align(
    GRPOSR(),
    reward=Scored(Gated(ModelScore("score"), "relevance", 0.5), ("score", "relevance")),
    rollouts=Sample(4),
    feed=Contexts(length=4, rows=8, min_history=4),
    mask_seen=True,
    optimizer=ADAM,
    fit=FitOptions(steps=9, validate_every=0, checkpoint_every=3, log_every=1),
    validation_cases=8,
)
FEW = 4


def idle_context(folder, score, relevance, item):
    log = toy_log(FEW, users=16, events=8)
    histories = dataclasses.replace(log, item=np.resize(item, log.num_events).astype(np.int32))
    return toy_context(
        folder,
        one_device(),
        items=FEW,
        sizes=(2, 2),
        features={"score": np.float32(score), "relevance": np.full(FEW, relevance, np.float32)},
        histories=histories,
        split=LeaveOneOut()(histories),
    )


@pytest.mark.parametrize(
    ("score", "relevance", "item", "why"),
    [
        ([1, 1, 1, 1], 1.0, [0], "all rewards are equal.*rollouts.group"),
        ([1, 2, 3, 4], 0.0, [0], "gate sets every reward to 0; lower its threshold"),
        ([1, 2, 3, 4], 1.0, [0, 1, 2, 3], "everything is filtered. Set mask_seen=False"),
        ([np.nan] * 4, 1.0, [0], "every reward is NaN or infinite; look at the reward"),
    ],
    ids=["equal", "gated", "filtered", "nan"],
)
def test_a_run_with_nothing_to_learn_from_ends(tmp_path, score, relevance, item, why):
    context = idle_context(tmp_path, score, relevance, item)
    with pytest.raises(NothingToLearn, match=why):
        IDLE.run(context)
    rows = JsonLines(tmp_path / "metrics.jsonl").rows()
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_pairs_of_an_item_with_itself_are_no_lesson():
    # A policy that writes what the user did, and nothing else.
    context = idle_context(Path(), [1, 2, 3, 4], 1.0, [0])
    params = {
        "level_0": jnp.asarray([[50.0, 0.0]]),
        "level_1": jnp.asarray([[50.0, 0.0], [0.0, 0.0]]),
    }
    stage = Prefer(DPO(), pairs=SelfPlay(), rollouts=Sample(4))
    policy = stage.policy(context.generator, context.space)
    loss = stage.loss(policy, Start(context, None), Rewarding(stage.reward))
    events, target = contexts(8, FEW)
    batch = Context(events, np.where(np.arange(8) < 6, 0, target % 3 + 1).astype(np.int32))
    given = Given(context.tables, context.catalogue)
    _, weight, metrics = jax.jit(loss)(
        *(params, given, batch, jax.random.key(0)), copies={"reference": params}
    )
    assert float(weight) == 8
    assert tuple(map(float, metrics["pairs"])) == (2, 8)


def test_watch_forgets_after_a_lesson():
    watch = Watch(patience=2)
    idle, lesson = {"zero_advantage_groups": 1.0}, {"zero_advantage_groups": 0.9}
    for row in (idle, lesson, idle):
        watch(row)
    with pytest.raises(NothingToLearn, match="2 rows of metrics in a row"):
        watch(idle)


@pytest.fixture
def judge(monkeypatch):
    """A reward model that needs no training; tells how often it was asked for."""
    network = PreferenceModel(tasks=("like",), width=8, heads=2, tower=4, actions=1)
    asked = []

    def train(self, histories, split, *, folder, **settings):
        asked.append(self)
        space, tables = sparse_items(histories.num_items)
        params = jax.jit(lambda: network.init(jax.random.key(self.windows), space))()
        scaling = Scaling(jnp.ones(2), jnp.zeros(2))
        found = str(self.windows)
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "reward.json").write_text(json.dumps({"hash": found}))
        arrays = RewardArrays(params, scaling)
        return FrozenReward(network, space, arrays, tables, ("event",), {}, found)

    monkeypatch.setattr(RewardModel, "train", train)
    return asked


def test_the_reward_model_is_part_of_what_a_run_is(tmp_path, judge, breaking):
    stage = Align(
        Reinforce(),
        reward=ModelScore("p_score"),
        model=RewardModel(windows=1),
        rollouts=Sample(4),
        feed=Contexts(length=3, rows=8),
        fit=FitOptions(steps=4, validate_every=0, checkpoint_every=2, log_every=2),
    )
    breaking(4, fail)
    with pytest.raises(InterruptedError):
        stage.run(context_of(tmp_path))
    breaking(0, fail)
    other = dataclasses.replace(stage, model=RewardModel(windows=2))
    with pytest.raises(RunMismatch, match=r'run\.reward_model = "1", asked for is "2"'):
        other.run(context_of(tmp_path))
    result = stage.run(context_of(tmp_path))
    assert len(judge) == 3
    again = stage.run(context_of(tmp_path))
    assert same(again.params, result.params)
    assert len(judge) == 3
    # Killed between the last step and the last measurement.
    told = (tmp_path / "after.json").read_bytes()
    (tmp_path / "after.json").unlink()
    assert same(stage.run(context_of(tmp_path)).params, result.params)
    assert (tmp_path / "after.json").read_bytes() == told
