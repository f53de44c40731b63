"""Beam search against exhaustive enumeration and against a search with Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_toys import (
    QUICK,
    TableModel,
    check_ranked,
    decode,
    example,
    random_codes,
    ranked_reference,
    reference_beam,
    reference_scores,
    roomy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.decoding import (
    BeamSearch,
    DiverseBeams,
    ExactScoring,
    Filters,
    StepFunctions,
    beam_search,
    build_catalogue,
    score_items,
    shard_catalogue,
)
from jaxrec.decoding.beam import chain_start
from jaxrec.decoding.interface import check_mask
from jaxrec.parallel import MeshShape, make_mesh, replicated, rows_sharding
from jaxrec.types import Ranked, TokenSpace

MASKS = ("after_softmax", "before_softmax")
ROWS = (3, 17, 1234567)


def everything(codes):
    return set(range(len(codes)))


def assert_equal(one, two, tolerance=0.0):
    np.testing.assert_array_equal(one.items, two.items)
    np.testing.assert_array_equal(one.valid, two.valid)
    np.testing.assert_allclose(one.scores, two.scores, rtol=0, atol=tolerance)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from(["uniform", "chain", "skewed", "full"]),
    mask=st.sampled_from(MASKS),
    seed=st.integers(0, 10**6),
)
def test_wide_beams_equal_exhaustive_search(shape, mask, seed):
    sizes, items, rng = (2, 3, 1, 4), 25, np.random.default_rng(seed)
    codes = random_codes(rng, sizes, items, shape)
    order = rng.integers(0, 3, items)
    model = TableModel(TokenSpace(sizes))
    catalogue = roomy(codes, model.space, order)
    k = items + 3  # more than there are
    ranked = decode(BeamSearch(300, k, mask), model, ROWS[:2], catalogue)
    for row in range(2):
        scores = reference_scores(model, ROWS[row], codes, everything(codes), mask)
        check_ranked(ranked, row, ranked_reference(scores, codes, order), k)
        if mask == "before_softmax":
            leaves = {tuple(codes[i]): score for i, score in scores.items()}
            assert np.exp(list(leaves.values())).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "items", "shape"),
    [((4,), 6, "uniform"), ((3, 5), 1, "uniform"), ((3, 3, 3), 30, "chain"), ((4, 5), 30, "full")],
)
def test_wide_beams_without_room_to_grow(sizes, items, shape):
    codes = random_codes(np.random.default_rng(0), sizes, items, shape)
    model = TableModel(TokenSpace(sizes))
    catalogue = build_catalogue(codes, model.space)
    ranked = decode(BeamSearch(300, 50), model, ROWS[:1], catalogue)
    scores = reference_scores(model, ROWS[0], codes, everything(codes), "after_softmax")
    check_ranked(ranked, 0, ranked_reference(scores, codes), 50)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(["uniform", "chain", "skewed"]),
    mask=st.sampled_from(MASKS),
    seed=st.integers(0, 10**6),
)
def test_narrow_beams_equal_a_search_with_lists(shape, mask, seed):
    sizes, width = (5, 4, 3, 4), 4
    codes = random_codes(np.random.default_rng(seed), sizes, 60, shape)
    model = TableModel(TokenSpace(sizes))
    catalogue = roomy(codes, model.space)
    ranked = decode(BeamSearch(width, 12, mask), model, ROWS[:2], catalogue)
    for row in range(2):
        expected = reference_beam(model, ROWS[row], codes, everything(codes), mask, width)
        check_ranked(ranked, row, expected, 12)


def test_one_beam_is_greedy():
    catalogue, codes, model = example(items=200)
    ranked = decode(BeamSearch(1, 1), model, ROWS, catalogue)
    for row, history in enumerate(ROWS):
        prefix: tuple[int, ...] = ()
        for depth in range(4):
            legal = {int(c[depth]) for c in codes if tuple(c[:depth]) == prefix}
            logits = model.logits(history, prefix)
            prefix = (*prefix, max(legal, key=lambda code: logits[code]))
        assert tuple(codes[int(ranked.items[row, 0])]) == prefix


def test_scores_are_teacher_forced_log_probabilities():
    catalogue, codes, model = example(items=200)
    ranked = decode(BeamSearch(7, 10), model, ROWS, catalogue)
    for row, history in enumerate(ROWS):
        for item, score in zip(ranked.items[row].tolist(), ranked.scores[row].tolist()):
            total = 0.0
            for depth, code in enumerate(codes[item]):
                logits = model.logits(history, tuple(codes[item, :depth].tolist()))
                total += logits[code] - np.log(np.exp(logits).sum())
            assert score == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(("width", "mask"), [(1, MASKS[0]), (6, MASKS[1]), (6, MASKS[0])])
def test_a_scanned_chain_equals_unrolled_levels(mask, width):
    catalogue, _, model = example(1, sizes=(4, 5, 4, 4, 3, 3), items=30)
    assert chain_start(catalogue) < 5, "nothing would be scanned"

    def unrolled(functions, catalogue, filters):
        return beam_search(functions, catalogue, filters, width=width, k=20, mask=mask, unroll=True)

    denied = jnp.asarray(np.random.default_rng(0).integers(0, 30, (3, 9)), jnp.int32)
    for filters in (None, Filters(denied=denied)):
        scanned = decode(BeamSearch(width, 20, mask), model, ROWS, catalogue, filters)
        assert_equal(scanned, decode(unrolled, model, ROWS, catalogue, filters), 1e-6)


def test_where_a_chain_begins():
    def start(*rows):
        codes = np.array(rows)
        return chain_start(build_catalogue(codes, TokenSpace((3,) * codes.shape[1])))

    assert start([0, 1, 2, 0], [1, 1, 0, 0]) == 1
    assert start([0, 1, 2, 0], [0, 2, 0, 0]) == 2
    assert start([0, 1, 2, 0], [0, 1, 2, 1]) == 4
    assert start([0, 1, 2, 0]) == 1
    assert start([0], [2]) == 1


def test_a_constant_schedule_is_a_width_and_the_last_number_goes_on():
    catalogue, _, model = example(items=200)
    plain = decode(BeamSearch(6, 8), model, ROWS, catalogue)
    for schedule in ((6,), (6, 6, 6, 6), (6, 6)):
        assert_equal(
            decode(BeamSearch(99, 8, schedule=schedule), model, ROWS, catalogue), plain, 1e-6
        )


@pytest.mark.parametrize("schedule", [(2, 4, 8, 16), (9, 3, 5, 2)])
def test_a_schedule_equals_a_search_with_lists(schedule):
    catalogue, codes, model = example(items=200)
    ranked = decode(BeamSearch(1, 20, schedule=schedule), model, ROWS, catalogue)
    for row, history in enumerate(ROWS):
        expected = reference_beam(model, history, codes, everything(codes), MASKS[0], schedule)
        check_ranked(ranked, row, expected, 20)


def test_a_schedule_may_drop_beams_inside_a_chain():
    catalogue, codes, model = example(1, sizes=(4, 5, 4, 4, 3, 3), items=30)
    assert chain_start(catalogue) < 5
    schedule = (4, 9, 9, 9, 9, 3)
    ranked = decode(BeamSearch(1, 20, schedule=schedule), model, ROWS, catalogue)
    for row, history in enumerate(ROWS):
        expected = reference_beam(model, history, codes, everything(codes), MASKS[0], schedule)
        check_ranked(ranked, row, expected, 20)


def test_batch_equals_one_by_one():
    catalogue, _, model = example(items=200)
    decoder = BeamSearch(6, 8)
    batch = decode(decoder, model, ROWS, catalogue)
    alone = [decode(decoder, model, (history,), catalogue) for history in ROWS]
    assert_equal(batch, jax.tree.map(lambda *rows: jnp.concatenate(rows), *alone), 1e-6)


def test_jit_equals_eager():
    catalogue, _, model = example(sizes=(4,), items=6)
    eager = BeamSearch(5, 8)(model.functions(model.prefill(ROWS)), catalogue)
    assert_equal(decode(BeamSearch(5, 8), model, ROWS, catalogue), eager, 1e-6)


def test_sharded_batch_equals_one_device():
    catalogue, _, model = example(items=200)
    decoder, rows = BeamSearch(6, 8), np.arange(16)
    denied = jnp.asarray(np.random.default_rng(0).integers(0, 200, (16, 90)), jnp.int32)
    expected = decode(decoder, model, rows, catalogue, Filters(denied=denied))
    mesh = make_mesh(MeshShape(data=4, tensor=2))
    cache, denied = jax.device_put((model.prefill(rows), denied), rows_sharding(mesh))
    arrays, tree = jax.tree.flatten(jax.device_put(catalogue, replicated(mesh)))

    def run(cache, arrays, denied):
        whole = jax.tree.unflatten(tree, arrays)
        return jax.tree.leaves(decoder(model.functions(cache), whole, Filters(denied=denied)))

    with jax.set_mesh(mesh):
        program = jax.jit(run).lower(cache, arrays, denied).compile(QUICK)
        items, scores, valid = program(cache, arrays, denied)
    assert_equal(expected, Ranked(items, scores, valid), 1e-6)
    assert items.sharding.is_equivalent_to(rows_sharding(mesh), 2)
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in program.as_text()


@pytest.mark.parametrize("decoder", [BeamSearch(6, 8), ExactScoring(8, 16)])
def test_a_sharded_trie_equals_one_device(decoder):
    catalogue, _, model = example(sizes=(5, 6, 7, 4), items=400, shape="uniform")
    rows, random = np.arange(16), np.random.default_rng(0)
    filters = Filters(
        jnp.asarray(random.random(400) < 0.8),
        jnp.asarray(random.integers(0, 400, (16, 20)), jnp.int32),
    )
    expected = decode(decoder, model, rows, catalogue, filters)
    mesh = make_mesh(MeshShape(data=2, tensor=4))
    spread = shard_catalogue(catalogue, mesh, smallest=64)
    assert spread.code.sharding.shard_shape(spread.code.shape)[0] <= -(-catalogue.code.size // 4)
    cache = jax.device_put(model.prefill(rows), rows_sharding(mesh))
    with jax.set_mesh(mesh):
        run = jax.jit(
            lambda cache, catalogue, filters: decoder(model.functions(cache), catalogue, filters)
        )
        ranked = run(cache, spread, filters)
    assert_equal(expected, ranked, 1e-6)


def test_equal_scores_go_to_the_lowest_id():
    space = TokenSpace((3, 3, 3))
    codes = random_codes(np.random.default_rng(5), space.sizes, 27, "full")
    catalogue = build_catalogue(codes, space)

    flat = TableModel(space, 0.0)  # all logits are equal
    for decoder in (BeamSearch(50, 27), ExactScoring(27)):
        ranked = decode(decoder, flat, ROWS[:2], catalogue)
        np.testing.assert_array_equal(ranked.items, [list(range(27))] * 2)
    # Selection goes by lowest (beam, code), so to the first IDs in sorted order.
    ranked = decode(BeamSearch(4, 4), flat, ROWS[:2], catalogue)
    assert sorted(map(tuple, codes[np.asarray(ranked.items[0])].tolist())) == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 2),
        (0, 1, 0),
    ]
    assert ranked.items[0].tolist() == sorted(ranked.items[0].tolist())


def test_groups_share_a_score_and_follow_catalogue_order():
    codes = np.array([[0, 1], [1, 0], [0, 1], [0, 1], [1, 1]])
    space = TokenSpace((2, 2))
    catalogue = build_catalogue(codes, space, np.array([3, 0, 1, 2, 0]))
    for decoder in (BeamSearch(4, 7), ExactScoring(7)):
        ranked = decode(decoder, TableModel(space), ROWS[:1], catalogue)
        items, scores = ranked.items[0].tolist(), ranked.scores[0]
        assert sorted(items[:5]) == [0, 1, 2, 3, 4]
        assert items[5:] == [-1, -1]
        at = items.index(2)
        assert items[at : at + 3] == [2, 3, 0]
        assert scores[at] == scores[at + 1] == scores[at + 2]
    cut = decode(BeamSearch(4, at + 2), TableModel(space), ROWS[:1], catalogue)
    assert cut.items[0].tolist() == items[: at + 2]


def test_an_item_without_probability_is_still_an_item():
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    catalogue = build_catalogue(codes, TokenSpace((2, 2)))

    def step(cache, codes, parents, level):
        return jnp.broadcast_to(jnp.array([0.0, -jnp.inf]), (*codes.shape, 2)), cache

    for decoder in (BeamSearch(3, 4), ExactScoring(4)):
        ranked = jax.jit(lambda cat, run=decoder: run(StepFunctions((), step, 1), cat))(catalogue)
        assert ranked.items.tolist() == [[0, 1, 2, -1]]
        assert ranked.valid.tolist() == [[True, True, True, False]]
        assert np.isfinite(ranked.scores[0, :3]).all()
        assert ranked.scores[0, 0] == 0


@pytest.mark.parametrize("mask", MASKS)
def test_a_model_without_any_probability_still_names_items(mask):
    catalogue = build_catalogue(np.array([[0, 0], [0, 1], [1, 0]]), TokenSpace((2, 2)))

    def step(cache, codes, parents, level):
        return jnp.full((*codes.shape, 2), -jnp.inf), cache

    for decoder in (BeamSearch(3, 4, mask), ExactScoring(4, mask=mask)):
        ranked = jax.jit(lambda cat, run=decoder: run(StepFunctions((), step, 1), cat))(catalogue)
        assert ranked.items.tolist() == [[0, 1, 2, -1]]
        assert np.isfinite(ranked.scores[0, :3]).all()


@pytest.mark.parametrize("shape", ["uniform", "chain"])
def test_log_probabilities_are_taken_as_given(shape):
    """Normalised by the model and taken as given, or normalised by the decoder: one answer."""
    catalogue, _, model = example(items=40, shape=shape, sizes=(5, 4, 3, 4))

    def normalised(functions):
        def step(cache, codes, parents, level):
            logits, cache = functions.step(cache, codes, parents, level)
            return jax.nn.log_softmax(logits), cache

        return functions._replace(step=step)

    items = jnp.arange(40, dtype=jnp.int32)[None]
    answers = []
    for mask in ("after_softmax", "as_given"):
        decoders = (
            BeamSearch(9, 12, mask),
            DiverseBeams(4, 2, 0.5, 12, mask),
            ExactScoring(12, 8, mask),
        )

        def answer(functions, catalogue, _, decoders=decoders, mask=mask):
            functions = normalised(functions) if mask == "as_given" else functions
            lists = [each(functions, catalogue) for each in decoders]
            return lists, score_items(functions, catalogue, items, mask=mask)

        answers.append(decode(answer, model, ROWS[:1], catalogue))
    for one, other in zip(*map(jax.tree.leaves, answers)):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_codes_beyond_a_level_have_no_mass():
    space = TokenSpace((4, 2))
    catalogue = build_catalogue(np.array([[0, 0], [0, 1], [3, 1]]), space)
    ranked = decode(BeamSearch(10, 3), TableModel(space, 0.0), (1,), catalogue)  # flat logits
    np.testing.assert_allclose(ranked.scores[0], [np.log(1 / 8)] * 3, atol=1e-6)


def test_bad_arguments_name_the_cure():
    catalogue, _, _ = example()
    with pytest.raises(ValueError, match="width=0"):
        BeamSearch(width=0)
    with pytest.raises(ValueError, match="k=0"):
        BeamSearch(k=0)
    with pytest.raises(ValueError, match="schedule=0"):
        BeamSearch(schedule=(5, 0))
    with pytest.raises(ValueError, match="choose one of after_softmax, before_softmax"):
        check_mask("none")
    for decoder in (BeamSearch(2, 2), ExactScoring(2)):
        with pytest.raises(ValueError, match="same token space"):
            decode(decoder, TableModel(TokenSpace((9, 4, 3, 4))), ROWS, catalogue)
