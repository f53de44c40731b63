"""The public functions of docs/api.md: its examples, and jit, vmap and grad as its table says."""

import doctest
import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import jaxrec
from jaxrec.decoding import StepFunctions, build_catalogue
from jaxrec.types import TokenSpace

pytestmark = pytest.mark.usefixtures("compile_fast")


def listed(root):
    page = (root / "docs/api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(jaxrec[\w.]+)` \|[^|]*\| (\w+) \| (\w+) \| (\w+) \|", page, re.M)
    return {name: {"jit": jit, "vmap": vmap, "grad": grad} for name, jit, vmap, grad in rows}


def table_model(logits):
    """Decoding with a table of logits by level, as a function of that table."""
    space = TokenSpace(sizes=(2, 3))
    catalogue = build_catalogue(np.array([[0, 0], [0, 2], [1, 1], [1, 2]]), space)

    def step(cache, codes, parents, level):
        return jnp.broadcast_to(logits[level], (*codes.shape, 3)), cache

    def extend(cache, codes, parents, items):
        return cache

    return StepFunctions(cache=(), step=step, batch=1, extend=extend), catalogue


def beams(function):
    return lambda logits: function(*table_model(logits), width=4, k=4).scores


NORMAL = jax.random.normal(jax.random.key(0), (2, 3))
QKV = jax.random.normal(jax.random.key(1), (3, 1, 4, 2, 8))
CODES = jnp.array([2, 0])

# Function of one float array, made from the public function, and that array.
EXAMPLES = {
    "code_losses": (lambda f: lambda z: f(z, CODES), NORMAL),
    "next_token_loss": (
        lambda f: lambda z: f(z, jnp.zeros((1, 2, 2), jnp.int32), jnp.ones((1, 2)))[0],
        jnp.stack([NORMAL, 2 * NORMAL])[None],
    ),
    "catalogue_cross_entropy": (
        lambda f: lambda z: f(z[:, :3], z[:, ::-1], CODES % 2, jnp.ones(2)),
        NORMAL,
    ),
    "sampled_softmax_losses": (
        lambda f: lambda z: f(z[:, 0], z, jnp.zeros((1, 3)), jnp.zeros((1, 3), bool)),
        NORMAL,
    ),
    "pairwise_losses": (
        lambda f: lambda z: f(z[:, 0], z, jnp.ones(z.shape, bool), "bpr_max", regularisation=0.1),
        NORMAL,
    ),
    "is_top_code": (lambda f: lambda z: f(z, CODES), NORMAL),
    "attention": (lambda f: lambda x: f(x[0], x[1], x[2]), QKV),
    "nearest": (lambda f: lambda x: f(x, NORMAL)[0], 3 * NORMAL),
    "beam_search": (beams, NORMAL),
    "exact_scores": (lambda f: lambda z: f(*table_model(z)), NORMAL),
    "score_items": (
        lambda f: lambda z: f(*table_model(z), jnp.array([[3, 0]], jnp.int32)),
        NORMAL,
    ),
    "item_log_probs": (
        lambda f: lambda z: f(*table_model(z), jnp.array([[3, 0]], jnp.int32), temperature=0.5),
        NORMAL,
    ),
    "list_beams": (lambda f: lambda z: f(*table_model(z), length=2).scores, NORMAL),
    "sample_items": (
        lambda f: lambda z: f(*table_model(z), key=jax.random.key(0), count=3).log_probs,
        NORMAL,
    ),
    "stochastic_beams": (
        lambda f: lambda z: f(*table_model(z), key=jax.random.key(0), count=3).keys,
        NORMAL,
    ),
}


@pytest.fixture(params=EXAMPLES)
def example(request, root):
    (name,) = [each for each in listed(root) if each.endswith(f".{request.param}")]
    module, _, function = name.rpartition(".")
    wrap, array = EXAMPLES[request.param]
    return wrap(getattr(importlib.import_module(module), function)), array, listed(root)[name]


def test_the_table_and_the_examples_agree(root):
    assert {name.rpartition(".")[2] for name in listed(root)} == set(EXAMPLES)


def test_jit_changes_nothing(example):
    function, array, says = example
    assert says["jit"] == "yes"
    np.testing.assert_allclose(jax.jit(function)(array), function(array), rtol=1e-5, atol=1e-6)


def test_vmap_equals_one_by_one(example):
    function, array, says = example
    if says["vmap"] != "yes":
        pytest.skip("the table does not promise vmap")
    stacked = jnp.stack([array, -array, 2 * array])
    one_by_one = jnp.stack([function(each) for each in stacked])
    np.testing.assert_allclose(jax.vmap(function)(stacked), one_by_one, rtol=1e-5, atol=1e-6)


def test_gradients_agree_with_differences(example):
    function, array, says = example
    if says["grad"] != "yes":
        pytest.skip("the table does not promise grad")
    # The checker hands numpy arrays over; the signatures promise jax arrays.
    jax.test_util.check_grads(
        lambda x: function(jnp.asarray(x)), (array,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2
    )


def test_the_examples_of_the_page_run(root):
    failed, run = doctest.testfile(
        str(root / "docs/api.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert run > 15
    assert failed == 0


MODULES = [
    module.name
    for module in pkgutil.walk_packages(jaxrec.__path__, "jaxrec.")
    if not module.ispkg and module.name != "jaxrec.cli"
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0
