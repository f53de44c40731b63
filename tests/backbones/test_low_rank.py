"""Low-rank adaptation: it starts as nothing, merges exactly, and trains only what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoder_world import check_slopes, random_params

from jaxrec import parallel
from jaxrec.backbones.decoder import Decoder
from jaxrec.backbones.low_rank import LowRank, NewRows, trainable
from jaxrec.types import TokenSpace

SPACE = TokenSpace((7, 5, 3))
DECODER = Decoder(layers=2, width=16, heads=4, kv_heads=2, feedforward=24, dropout=0.0)
BASE, AXES = random_params(DECODER, space=SPACE), DECODER.axes(SPACE)
LORA = LowRank(
    rank=3,
    alpha=6.0,
    targets=("attention/query", "attention/output", "feedforward/*", "head/output/kernel"),
    unfreeze=(NewRows("tokens/table", 14, 3), NewRows("output/kernel", 4, 2)),
)


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree):
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def random_deltas(lora=LORA, params=BASE, axes=AXES, scale=0.3):
    random = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(lambda: lora.init(jax.random.key(0), params, axes)),
    )


@functools.partial(jax.jit, static_argnums=0)
def start_of(lora, key):
    """Compiled once; axis names are no arrays."""
    return lora.init(key, BASE, AXES)


@pytest.fixture(scope="module")
def deltas():
    return random_deltas()


def test_at_the_start_nothing_is_changed():
    start = start_of(LORA, jax.random.key(0))
    changed = LORA.apply(BASE, start)
    assert jax.tree.structure(changed) == jax.tree.structure(BASE)
    jax.tree.map(np.testing.assert_array_equal, changed, BASE)
    flat = leaves(start)
    for path, leaf in flat.items():
        assert leaf.dtype == jnp.float32
        assert np.any(leaf) == path.endswith("/down"), path
    # A is normal of deviation in^-1/2.
    down = np.concatenate([
        np.ravel(leaf) * leaf.shape[-2] ** 0.5 for path, leaf in flat.items() if "down" in path
    ])  # fmt: skip
    assert abs(down.std() - 1) < 4 / np.sqrt(2 * len(down))
    assert abs(down.mean()) < 4 / np.sqrt(len(down))
    again = start_of(LORA, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, start, again)
    drawn = [leaf for path, leaf in flat.items() if "gate/down" in path or "up/down" in path]
    assert not np.array_equal(*drawn)  # every matrix draws its own


def test_every_changed_matrix_is_its_formula(deltas):
    """Layers one by one, heads side by side, levels as a stack, rows and columns of new tokens."""
    merged = leaves(LORA.merge(BASE, deltas))
    base, flat = leaves(BASE), leaves(deltas)
    wide = {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}
    flattened = {
        "history/blocks/attention/query": (16, 16),
        "history/blocks/attention/output": (16, 16),
        "history/blocks/feedforward/gate": (16, 24),
        "history/blocks/feedforward/up": (16, 24),
        "history/blocks/feedforward/down": (24, 16),
        "head/output/kernel": (16, 7),
    }  # fmt: skip
    changed = {*flattened, "tokens/table"}
    assert {path.rpartition("/")[0] for path in flat} == changed
    for path, leaf in base.items():
        expected = np.asarray(leaf, np.float64).copy()
        if path in flattened:
            for index in range(len(expected)):
                product = 2.0 * wide[f"{path}/down"][index] @ wide[f"{path}/up"][index]
                assert product.shape == flattened[path]
                expected[index] += product.reshape(expected.shape[1:])
        if path == "tokens/table":
            expected[14:17] += wide[f"{path}/rows"]
        if path == "head/output/kernel":
            expected[:, :, 4:6] += wide[f"{path}/rows"]
        tolerance = 1e-6 if path in changed else 0
        np.testing.assert_allclose(merged[path], expected, rtol=0, atol=tolerance)


def test_merged_is_applied(deltas):
    jax.tree.map(np.testing.assert_array_equal, LORA.apply(BASE, deltas), LORA.merge(BASE, deltas))


def test_a_linear_map_with_a_changed_matrix_is_two_maps():
    """x W' = x W + alpha/r (x A) B, for a plain matrix without a stack."""
    random = np.random.default_rng(0)
    params = {"map": jnp.asarray(random.normal(size=(5, 4)), jnp.float32)}
    axes, lora = {"map": ("embed", "mlp")}, LowRank(2, 3.0, ("map",))
    part = random_deltas(lora, params, axes)
    x = jnp.asarray(random.normal(size=(3, 5)), jnp.float32)
    down, up = part["map"]["down"], part["map"]["up"]
    expected = x @ params["map"] + 1.5 * (x @ down) @ up
    np.testing.assert_allclose(x @ lora.apply(params, part)["map"], expected, atol=1e-5)


ROWS = LowRank(2, 4.0, ("attention/query", "attention/output"), (NewRows("tokens/table", 3, 5),))


@jax.jit
def loss_and_slope(tree):
    """A loss that every number of the changed parameters matters to."""

    def loss(tree):
        changed = ROWS.apply(tree["base"], tree["deltas"])
        return sum(jnp.sum(jnp.sin(3.0 * leaf)) for leaf in jax.tree.leaves(changed)) / 100

    return jax.value_and_grad(loss)(tree)


def test_only_the_deltas_have_a_gradient():
    def of_deltas(part):
        value, slope = loss_and_slope({"base": BASE, "deltas": part})
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope["base"]))
        return value, slope["deltas"]

    check_slopes(of_deltas, random_deltas(ROWS))
    # At the start B learns first, A only once B is there.
    for path, slope in leaves(of_deltas(start_of(ROWS, jax.random.key(0)))[1]).items():
        assert np.any(slope) == (not path.endswith("/down")), path


def test_an_optimizer_step_leaves_the_base_and_all_other_rows():
    """Also with weight decay and moments, which a masked gradient would not stop."""
    tree = {"base": BASE, "deltas": start_of(ROWS, jax.random.key(0))}
    optimizer = optax.multi_transform(
        {"trained": optax.adamw(0.03, weight_decay=0.1), "frozen": optax.set_to_zero()},
        trainable(tree["base"], tree["deltas"]),
    )

    @jax.jit
    def step(tree, state):
        updates, state = optimizer.update(loss_and_slope(tree)[1], state, tree)
        return optax.apply_updates(tree, updates), state

    state, before = optimizer.init(tree), loss_and_slope(tree)[0]
    for _ in range(3):
        tree, state = step(tree, state)
    jax.tree.map(np.testing.assert_array_equal, tree["base"], BASE)
    assert loss_and_slope(tree)[0] < before
    merged = ROWS.merge(tree["base"], tree["deltas"])
    moved = np.any(np.asarray(merged["tokens"]["table"] != BASE["tokens"]["table"]), axis=1)
    assert np.flatnonzero(moved).tolist() == [3, 4, 5, 6, 7]
    held = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert (5, 16) in held
    assert (17, 16) not in held  # no moments of the base


def test_count_axes_and_shapes_agree():
    start = start_of(LORA, jax.random.key(0))
    assert LORA.parameters(BASE, AXES) == sum(leaf.size for leaf in jax.tree.leaves(start))
    axes = LORA.axes(BASE, AXES)
    query = axes["history"]["blocks"]["attention"]["query"]
    assert query == {"down": ("layers", "embed", None), "up": ("layers", None, "heads")}
    output = axes["history"]["blocks"]["attention"]["output"]
    assert output == {"down": ("layers", "heads", None), "up": ("layers", None, "embed")}
    kernel = axes["head"]["output"]["kernel"]
    assert kernel == {
        "down": (None, "embed", None), "up": (None, None, "vocab"), "rows": (None, "embed", None),
    }  # fmt: skip
    assert axes["tokens"]["table"] == {"rows": (None, "embed")}
    mesh = parallel.make_mesh(parallel.MeshShape(2, 2, 2))
    shardings = parallel.shardings(axes, start, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(start)


def test_the_published_count():
    """r (in + out) a matrix: GPT-2's query and value of 12 layers of 768 at rank 4."""
    shapes = {"query": jax.ShapeDtypeStruct((12, 768, 12, 64), jnp.float32)}
    axes = {"query": ("layers", "embed", "heads", None)}
    assert LowRank(4, 32.0, ("query",)).parameters(shapes, axes) == 12 * 4 * (768 + 768)


def test_half_precision_is_rounded_once():
    params = {"map": jnp.full((4, 4), 256.0, jnp.bfloat16)}
    lora = LowRank(1, 1.0, ("map",))
    # 256 + 1.5 rounds up to 258 (bfloat16 knows 256 and 258); 1.5 added twice by halves would not.
    part = {"map": {"down": jnp.full((4, 1), 1.5), "up": jnp.ones((1, 4))}}
    merged = lora.merge(params, part)["map"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(merged, np.float32), 258.0)


def test_any_tree_will_do():
    """Lists are walked by their index, a matrix needs no stack, experts are one."""
    params = [{"wide": jnp.ones((2, 6, 3)), "b": jnp.ones(3)}, {"wide": jnp.ones((4, 3))}]
    axes = [{"wide": ("experts", "embed", "mlp"), "b": ("mlp",)}, {"wide": ("embed", "mlp")}]
    part = random_deltas(LowRank(2, 1.0, ("wide",)), params, axes)
    assert part["0"]["wide"]["down"].shape == (2, 6, 2)
    assert part["1"]["wide"]["up"].shape == (2, 3)
    only = random_deltas(LowRank(2, 1.0, ("1/wide",)), params, axes)
    changed = LowRank(2, 1.0, ("1/wide",)).apply(params, only)
    np.testing.assert_array_equal(changed[0]["wide"], params[0]["wide"])
    assert np.any(np.asarray(changed[1]["wide"]) != 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(rank=0), "rank >= 1"),
        (lambda: LowRank(alpha=0.0), "alpha > 0"),
        (lambda: LowRank(targets=()), "trains nothing"),
        (lambda: NewRows("tokens/table", -1, 2), "first >= 0"),
        (lambda: LowRank(targets=("attention/qeury",)), r"'attention/qeury' matches no parameter"),
        (lambda: LowRank(targets=("tention/query",)), r"matches no parameter.*attention/query"),
        (lambda: LowRank(targets=("norm/scale",)), "is no matrix"),
        (lambda: LowRank(targets=("attention_norm/scale",)), "is no matrix"),
        (lambda: LowRank(targets=(), unfreeze=(NewRows("tabel", 0, 1),)), "matches no parameter"),
        (lambda: LowRank(unfreeze=(NewRows("attention/query", 0, 1),)), "none of them vocab"),
        (lambda: LowRank(unfreeze=(NewRows("tokens/table", 15, 3),)), "grow the table first"),
        (lambda: LowRank(unfreeze=(NewRows("table", 1, 1), NewRows("table", 3, 1))), "one range"),
    ],
)
def test_what_cannot_be_adapted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), BASE, AXES)


def test_deltas_of_another_network_are_refused(deltas):
    with pytest.raises(ValueError, match=r"deltas of head/output/kernel"):
        LORA.merge({"tokens": BASE["tokens"]}, deltas)
