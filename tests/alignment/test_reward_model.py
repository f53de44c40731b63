"""The reward model: learns a planted taste, is measured honestly, resumes, and is frozen."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feedback_logs import graded_log, poisoned

from jaxrec.alignment import reward_model
from jaxrec.alignment.calibration import Scaling, fit_platt, identity
from jaxrec.alignment.feedback import Graded, Implicit, part_users
from jaxrec.alignment.reward_model import (
    RewardModel,
    content_hash,
    preference_loss,
    reward_scores,
    sparse_items,
    tree_hash,
)
from jaxrec.alignment.reward_quality import (
    Judged,
    judge_candidates,
    mixed_labels,
    task_report,
    validation_numbers,
)
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut, UserRatio
from jaxrec.evaluation.classification import auc
from jaxrec.parallel import MeshShape, make_mesh
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.record import RunMismatch
from jaxrec.types import Events

ITEMS, USERS, LIKED, ASKED = 40, 320, 10, 14
TEXT = np.random.default_rng(0).normal(size=(ITEMS, 3)).astype(np.float32)
MODEL = RewardModel(
    network=PreferenceModel(
        tasks=("like", "love"), width=16, heads=2, tower=8, features=(("text", 3),), actions=3
    ),
    feedback=Graded(tasks=("like", "love"), length=24, candidates=12, rows=64, min_history=LIKED),
    optimizer=AdamW(learning_rate=0.01, warmup_steps=5, weight_decay=0.0),
    fit=FitOptions(steps=60, validate_every=20, checkpoint_every=20, log_every=10, monitor="-loss"),
    held_out=0.4,
)


def planted():
    """Users who first read what they like, then judge items at random by a linear taste."""
    random = np.random.default_rng(1)
    taste = random.normal(size=(USERS, 3))
    liking = taste / np.linalg.norm(taste, axis=1, keepdims=True) @ TEXT.T
    first = np.argsort(-(liking + 0.3 * random.gumbel(size=liking.shape)), axis=1)[:, :LIKED]
    then = np.argsort(random.random(liking.shape), axis=1)[:, :ASKED]
    item = np.concatenate([first, then], axis=1)
    likes = np.take_along_axis(liking, item, axis=1)
    action = (likes > 0).astype(int) + (likes > 1)
    action[:, :LIKED] = 1
    return Histories(
        offsets=np.arange(USERS + 1, dtype=np.int64) * (LIKED + ASKED),
        item=item.ravel().astype(np.int32),
        time=np.tile(np.arange(LIKED + ASKED, dtype=np.int64), USERS),
        action=action.ravel().astype(np.int32),
        users=np.arange(USERS).astype(str),
        items=np.arange(ITEMS).astype(str),
        actions=("exposed", "like", "love"),
    )


LOG = planted()
SPLIT = LeaveOneOut()(LOG)


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshShape(1), jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def cheap_parameters():
    """One draw for all: every random operation costs the tests a second of compilation."""
    plain = PreferenceModel.init

    def init(network, key, space):
        shapes = jax.eval_shape(lambda: plain(network, key, space))
        leaves, tree = jax.tree.flatten(shapes)
        draw, made = jax.random.normal(key, (sum(leaf.size for leaf in leaves),)), []
        for leaf in leaves:
            scale = 0.3 if len(leaf.shape) > 1 else 0.0
            made.append(scale * draw[: leaf.size].reshape(leaf.shape))
            draw = draw[leaf.size :]
        return jax.tree.unflatten(tree, made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceModel, "init", init)
        yield


def train(folder, mesh, model=MODEL, histories=LOG, **changes):
    return model.train(
        histories, SPLIT, mesh=mesh, folder=folder, features={"text": TEXT}, seed=2, **changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reward")


@pytest.fixture(scope="module")
def reward(folder, one):
    return train(folder, one)


def test_a_planted_taste_is_recovered_and_reported(reward, folder):
    report = reward.report
    assert report["users"] == {"train": 192, "calibration": 64, "report": 64}
    assert report["split"] == "leave-one-out"
    assert (report["steps"], report["seed"], report["calibration"]) == (60, 2, "platt")
    for task in ("like", "love"):
        row = report["tasks"][task]
        assert row["cases"] == 64 * 12
        assert row["auc"] > 0.95
        assert row["gauc"] > 0.95
        assert row["p_score_auc"] > 0.9
        assert row["ece_after"] < 0.06
        assert row["ratio_after"] == pytest.approx(1, abs=0.2)
    assert json.loads((folder / "reward.json").read_text()) == {**report, "hash": reward.hash}


def test_the_report_is_of_users_that_did_nothing_else(reward, one):
    """Counted from the log, and measured again by hand from the rewards."""
    part = part_users(LOG, SPLIT, share=0.4, seed=2).report
    users = np.flatnonzero(part.train_end > LOG.offsets[:-1])
    action = LOG.action.reshape(USERS, -1)[users, LIKED:-2]
    items = LOG.item.reshape(USERS, -1)[users]
    assert reward.report["tasks"]["love"]["positives"] == (action == 2).sum()
    scores = []
    for at in range(LIKED, LIKED + 12):
        shown = np.arange(24)[None] < at
        events = events_of(items, LOG.action.reshape(USERS, -1)[users], shown)
        asked = np.repeat(items[:, at : at + 1], 6, axis=1)
        scores.append(judge(reward, events, asked)["love"][:, 5])
    scores = np.stack(scores, axis=1)
    expected = reward.report["tasks"]["love"]["auc"]
    assert auc(scores.ravel(), (action == 2).ravel()) == pytest.approx(expected, abs=1e-4)


def test_the_users_that_calibrate_are_others(reward, one):
    part = part_users(LOG, SPLIT, share=0.4, seed=2).calibration
    held = MODEL.feedback.once(LOG, part, seed=2)
    judged = judge_candidates(
        reward.network, reward.space, reward.arrays.params, held, tables=reward.tables, mesh=one
    )
    for k in range(2):
        fitted = fit_platt(judged.logits[:, k], judged.labels[:, k], judged.weight[:, k])
        found = [reward.arrays.scaling.slope[k], reward.arrays.scaling.offset[k]]
        np.testing.assert_allclose(found, fitted, rtol=1e-4)
    both = fit_platt(judged.logits[:, 2], judged.labels.mean(1), judged.weight.sum(1))
    np.testing.assert_allclose([each[2] for each in reward.arrays.scaling], both, rtol=1e-4)


def events_of(items, action, shown):
    """Histories from their first events on."""
    shown = np.broadcast_to(shown, items.shape)
    position = np.broadcast_to(np.arange(items.shape[1]), items.shape)
    arrays = (items, shown, position, 0 * items, action, shown)
    kinds = (np.int32,) * 5 + (np.float32,)
    return Events(*(jnp.asarray(each.astype(kind)) for each, kind in zip(arrays, kinds)))


@functools.partial(jax.jit, static_argnums=(0, 5))
def scores_of(network, arrays, tables, events, items, space):
    return reward_scores(network, arrays, tables, events, items, space)


def judge(reward, events, items):
    found = scores_of(
        reward.network, reward.arrays, reward.tables, events, jnp.asarray(items), reward.space
    )
    return {name: np.asarray(array) for name, array in found.items()}


def some_events(users=64):
    items = LOG.item.reshape(USERS, -1)[:users]
    return events_of(items, LOG.action.reshape(USERS, -1)[:users], np.arange(24) < 15)


def test_scores_are_calibrated_probabilities_of_each_item_alone(reward):
    events, group = some_events(), np.array([[3, 9, -1, 3, 39, ITEMS]] * 64, np.int32)
    found = judge(reward, events, group)
    assert list(found) == ["like", "love", "p_score"]
    plain = dataclasses.replace(reward, arrays=reward.arrays._replace(scaling=identity(3)))
    slope, offset = reward.arrays.scaling
    chance = np.stack([*judge(plain, events, group).values()], axis=-1)[:, :2]
    logits = np.log(chance) - np.log1p(-chance)
    expected = 1 / (1 + np.exp(-(logits * np.asarray(slope) + np.asarray(offset))))
    assert np.abs(expected - chance).max() > 1e-3
    for k, array in enumerate(found.values()):
        np.testing.assert_allclose(array[:, :2], expected[..., k], rtol=1e-3)
        np.testing.assert_array_equal(array[:, 2], 0)
        np.testing.assert_array_equal(array[:, 5], 0)
        np.testing.assert_array_equal(array[:, 3], array[:, 0])
        assert ((array[:, [0, 1, 4]] > 0) & (array[:, [0, 1, 4]] < 1)).all()
        assert array[:, [0, 1, 4]].std() > 0.01
    alone = judge(reward, events, np.full((64, 6), 39, np.int32))
    np.testing.assert_allclose(alone["love"][:, 0], found["love"][:, 4], rtol=1e-5)
    # What everybody likes more than loves, and the score for both together between them.
    assert (
        found["like"][:, :2].mean() > found["p_score"][:, :2].mean() > found["love"][:, :2].mean()
    )


def test_nothing_moves_a_frozen_reward(reward):
    items, events = jnp.asarray([[3, 9]] * 64, jnp.int32), some_events()

    @jax.jit
    @jax.grad
    def slope(given):
        arrays, features = given
        tables = dataclasses.replace(reward.tables, features=features)
        found = reward_scores(reward.network, arrays, tables, events, items, reward.space)
        return sum(each.sum() for each in found.values())

    slopes = jax.tree.leaves(slope((reward.arrays, reward.tables.features)))
    assert len(slopes) > 10
    assert all(not np.any(leaf) for leaf in slopes)


class Breaks:
    """A writer whose disk fails once, at a step."""

    def __init__(self, step):
        self.step = step

    def write(self, step, row):
        if step == self.step:
            self.step = None
            raise InterruptedError

    def rewind(self, step, rows=None):
        pass

    def close(self):
        pass


def test_a_run_that_broke_gives_the_same_reward(reward, tmp_path, one):
    with pytest.raises(InterruptedError):
        train(tmp_path, one, writers=(Breaks(50),))
    assert not (tmp_path / "reward.json").exists()
    again = train(tmp_path, one)
    jax.tree.map(np.testing.assert_array_equal, again.arrays, reward.arrays)
    assert again.hash == reward.hash
    assert again.report == reward.report
    finished = train(tmp_path, one)  # reads what is there
    assert finished.hash == reward.hash
    with pytest.raises(RunMismatch, match=r"run\.reward_model\.windows = 4096, asked for is 9"):
        train(tmp_path, one, dataclasses.replace(MODEL, windows=9))
    with pytest.raises(RunMismatch, match=r"run\.features"):
        MODEL.train(LOG, SPLIT, mesh=one, folder=tmp_path, features={"text": 2 * TEXT}, seed=2)


def test_what_is_held_out_is_not_read(reward, tmp_path, one):
    """With other validation and test events the reward is the same, bit for bit."""
    assert train(tmp_path, one, histories=poisoned(LOG, SPLIT)).hash == reward.hash


def test_the_hash_reads_every_number_and_the_component(reward):
    sources = {"reward_model": MODEL.described, "actions": list(LOG.actions)}
    found = {content_hash(sources, reward.space, reward.arrays)}
    leaves, tree = jax.tree.flatten(reward.arrays)
    for index, leaf in enumerate(leaves):
        changed = np.array(leaf)
        changed.ravel()[-1] = np.nextafter(changed.ravel()[-1], np.float32(9))
        arrays = jax.tree.unflatten(tree, [*leaves[:index], changed, *leaves[index + 1 :]])
        found.add(content_hash(sources, reward.space, arrays))
    for other in (
        dataclasses.replace(MODEL, held_out=0.3),
        dataclasses.replace(MODEL, network=dataclasses.replace(MODEL.network, age_buckets=8)),
        dataclasses.replace(MODEL, feedback=dataclasses.replace(MODEL.feedback, rows=32)),
    ):
        found.add(
            content_hash({**sources, "reward_model": other.described}, reward.space, reward.arrays)
        )
    found.add(content_hash({**sources, "actions": ["a"]}, reward.space, reward.arrays))
    found.add(content_hash(sources, sparse_items(41)[0], reward.arrays))
    assert len(found) == 1 + len(leaves) + 5
    saving = dataclasses.replace(MODEL.fit, checkpoint_every=40)
    assert dataclasses.replace(MODEL, fit=saving).described == MODEL.described
    one, two = ({"x": np.zeros(4, kind)} for kind in (np.float32, np.int32))
    hashes = {tree_hash(one), tree_hash(two), tree_hash({"x": np.zeros((2, 2), np.float32)})}
    assert len({*hashes, tree_hash({"y": one["x"]})}) == 4


def test_what_says_too_much_is_brought_back():
    logits = np.random.default_rng(0).normal(size=(4000, 3)) - 1
    labels = np.random.default_rng(1).random((4000, 2)) < 1 / (1 + np.exp(-logits[:, :2]))
    judged = Judged(3 * logits + 2, labels.astype(np.float32), np.ones((4000, 2), np.float32),
                    np.arange(4000) % 7)  # fmt: skip
    scaling = MODEL._calibrate(judged)
    np.testing.assert_allclose(scaling.slope[:2], 1 / 3, atol=0.06)
    np.testing.assert_allclose(scaling.offset[:2], -2 / 3, atol=0.1)
    rows = task_report(judged, scaling, MODEL.network.tasks)
    plain = task_report(judged, dataclasses.replace(MODEL, calibration="none")._calibrate(judged),
                        MODEL.network.tasks)  # fmt: skip
    for task, row in rows.items():
        assert row["ece_before"] > 0.15 > 0.03 > row["ece_after"]
        assert row["ratio_after"] == pytest.approx(1, abs=0.01)
        assert plain[task]["ece_after"] == row["ece_before"] == plain[task]["ece_before"]
        assert row["auc"] == plain[task]["auc"]


def test_the_report_leaves_out_what_is_not_known_or_not_defined():
    logits = np.array([[0.0, 1, 2], [1, 0, 1], [2, 5, 0], [9, 9, 9]])
    labels = np.array([[0.0, 1], [1, 1], [0, 1], [1, 0]], np.float32)
    weight = np.array([[1.0, 1], [1, 1], [1, 1], [0, 0]], np.float32)
    judged = Judged(logits, labels, weight, np.array([5, 5, 6, 6]))
    rows = task_report(
        judged, Scaling(np.zeros(3, np.float32), np.zeros(3, np.float32)), ("a", "b")
    )
    half = 1 / (1 + np.exp(-np.arange(3)))
    assert rows["a"] == {
        "cases": 3, "positives": 1, "auc": 0.5, "gauc": 1.0, "p_score_auc": 0.5,
        "p_score_gauc": 0.0, "ratio_after": 1.5, "ece_after": pytest.approx(0.5 / 3),
        "ece_before": pytest.approx(np.abs(half - [0, 1, 0]).mean(), abs=1e-6),
        "ratio_before": pytest.approx(half.sum(), abs=1e-6),
    }  # fmt: skip
    assert (rows["b"]["auc"], rows["b"]["gauc"], rows["b"]["p_score_auc"]) == (None, None, None)
    assert rows["b"]["ratio_after"] == 0.5
    numbers = validation_numbers(judged, ("a", "b"), (1.0, 3.0))
    assert (numbers["auc"], numbers["auc_a"], "auc_b" in numbers) == (0.5, 0.5, False)
    total = sum(
        weight * (np.logaddexp(0, z) - y * z)
        for row, (a, b) in zip(logits[:3], labels[:3])
        for weight, z, y in ((1, row[0], a), (3, row[1], b), (1, row[2], a), (3, row[2], b))
    )
    assert numbers["loss"] == pytest.approx(total / 12)
    mixed, mass = mixed_labels(judged, (1.0, 3.0))
    np.testing.assert_allclose(mixed, [0.75, 1, 0.75, 0])
    np.testing.assert_allclose(mass, [4, 4, 4, 0])


def test_the_loss_is_the_loop_over_labels():
    random = np.random.default_rng(0)
    logits, score = random.normal(size=(2, 3, 2)), random.normal(size=(2, 3))
    labels, weight = random.random((2, 3, 2)) < 0.5, random.integers(0, 3, (2, 3, 2)) / 2
    tasks, towers, fused, mass, by_task = (1.0, 0.25), 0.0, 0.0, 0.0, np.zeros((2, 2))
    for b, c, k in np.ndindex(2, 3, 2):
        for z, here in ((logits[b, c, k], "towers"), (score[b, c], "fused")):
            p = 1 / (1 + np.exp(-z))
            loss = -np.log(p if labels[b, c, k] else 1 - p)
            towers += weight[b, c, k] * tasks[k] * loss * (here == "towers")
            fused += weight[b, c, k] * tasks[k] * loss * (here == "fused")
            by_task[k] += np.array([loss, 1]) * weight[b, c, k] * (here == "towers")
        mass += weight[b, c, k] * tasks[k]
    masked = np.where(weight > 0, labels, np.nan)
    broken = np.where(weight > 0, logits, np.inf)
    given = [jnp.asarray(each, jnp.float32) for each in (broken, score, masked, weight)]
    call = jax.jit(lambda *arrays: preference_loss(*arrays, tasks, ("a", "b")))
    total, count, metrics = call(*given)
    np.testing.assert_allclose([total, count], [towers + fused, mass], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_a"], by_task[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_b"], by_task[1], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_p_score"], [fused, mass], rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda z: call(z, *given[1:])[0]))(given[0])
    expected = (1 / (1 + np.exp(-logits)) - labels) * weight * np.asarray(tasks)
    np.testing.assert_allclose(slopes, expected, atol=1e-6)


def test_implicit_feedback_teaches_who_comes_next(tmp_path, one):
    """Everybody stays among the even or the odd items."""
    random = np.random.default_rng(0)
    item = 2 * random.integers(0, 20, (150, 16)) + np.arange(150)[:, None] % 2
    histories = dataclasses.replace(
        graded_log((16,) * 150, distinct=False, items=40, actions=("interaction",)),
        item=item.ravel().astype(np.int32),
    )
    model = RewardModel(
        network=PreferenceModel(tasks=("next",), width=16, heads=2, tower=8),
        feedback=Implicit(length=16, questions=8, rows=32, negatives=3, min_history=4),
        optimizer=AdamW(learning_rate=0.02, warmup_steps=5),
        fit=FitOptions(steps=60, validate_every=60, checkpoint_every=60, monitor="auc"),
        held_out=0.3,
    )
    split = UserRatio()(histories)
    found = model.train(histories, split, mesh=one, folder=tmp_path)
    # A drawn item that the user never had is still of the right half now and then.
    assert found.report["tasks"]["next"]["auc"] > 0.75


def test_bad_settings_are_explained(tmp_path, one):
    network, change = MODEL.network, functools.partial(dataclasses.replace, MODEL)
    for message, wrong in (
        ("give both the same", {"feedback": Graded()}),
        (
            "depend on the other candidates",
            {"network": dataclasses.replace(network, list_layers=1)},
        ),
        ("needs one number for each", {"task_weight": (1.0,)}),
        ("none negative and not all 0", {"task_weight": (0.0, 0.0)}),
        ("lies in", {"held_out": 1.0}),
        ("is not negative", {"windows": -1}),
        ("choose one of platt, none", {"calibration": "isotonic"}),
    ):
        with pytest.raises(ValueError, match=message):
            change(**wrong)
    with pytest.raises(ValueError, match="names the score for everything"):
        RewardModel(PreferenceModel(tasks=("p_score",)), feedback=Graded(tasks=("p_score",)))
    with pytest.raises(ValueError, match=r"actions=2, but the log has 3 kinds of events \(exposed"):
        train(tmp_path, one, change(network=dataclasses.replace(network, actions=2)))
    late = change(feedback=dataclasses.replace(MODEL.feedback, since=1000))
    with pytest.raises(DataError, match="calibration users can be asked about"):
        train(tmp_path, one, late)
    assert reward_model.RewardModel().weights == (1.0, 1.0, 1.0)
