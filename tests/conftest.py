"""Test-wide set-up: eight fake CPU devices, and runtime checks of every annotated shape."""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAXREC_PROGRESS", "0")  # no progress among the dots
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests compile the same programs many times, in subprocesses too: compile once.
    compiled = tempfile.mkdtemp(prefix="jaxrec-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # jax writes an entry in place: a worker may read what another one has half written.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
        os.environ["JAX_COMPILATION_CACHE_DIR"], worker
    )

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Must run before any jaxrec module is imported: it wraps what is imported afterwards.
install_import_hook("jaxrec", "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("JAXREC_DATA", ROOT.parent / "shared" / "data"))


MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Linux gives a process some 65,000 mappings of memory, every compiled program takes a few, and jax
keeps programs for ever: a worker that runs half of the tests would die in the middle of one."""


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets go of compiled programs between modules, when there are many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


@contextlib.contextmanager
def fast_compiler():
    """Turns most of XLA's optimisations off, in this process and in those that it starts."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")
        jax.config.update(name, True)
        yield
        jax.config.update(name, before)


@pytest.fixture(scope="module")
def compile_fast():
    """For modules whose time would go into optimising programs that run for a moment."""
    with fast_compiler():
        yield


@pytest.fixture(scope="module")
def one_device():
    """For modules that run recipes and ask nothing of the mesh: one device of the eight.

    `finished` and tests/pipeline have all eight; tests/pipeline/test_sharded.py compares.
    """
    import jax

    from jaxrec.parallel import make_mesh

    alone = functools.partial(make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        for module in ("run", "checks"):
            patch.setattr(f"jaxrec.pipeline.{module}.make_mesh", alone)
        # Of commands in a pipe.
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data sets are not at {DATA}; set JAXREC_DATA to their folder")
    return DATA


@pytest.fixture(scope="session")
def small(root):
    """The synthetic recipe, small enough for a test."""
    from jaxrec.data.synthetic import SyntheticWorld
    from jaxrec.recipe import load_recipe, replace

    recipe = load_recipe(root / "configs/synthetic.py")
    for field, value in {
        "name": "small",
        "data.source": SyntheticWorld(items=120, users=300),
        "stages.0.fit.steps": 60,
        "stages.0.fit.validate_every": 30,
        "stages.0.fit.checkpoint_every": 30,
        "stages.0.fit.log_every": 10,
    }.items():
        recipe = replace(recipe, field, value)
    return recipe


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder that is only read: the first worker fills it, the others wait for it."""
    from jaxrec.files import lock, publish

    session = tmp_path_factory.getbasetemp()
    if worker:
        session = session.parent

    def make(name, fill):
        with lock(session / f"{name}.lock", wait=True):
            if not (session / name).is_dir():
                publish(session / name, fill)
        return session / name

    return make


@pytest.fixture(scope="session")
def finished(small, made_once, tmp_path_factory):
    """The folder of a finished run of `small`, this worker's own copy."""
    from jaxrec.pipeline.run import run

    def fill(folder):
        with fast_compiler():
            run(small, runs=folder)

    mine = tmp_path_factory.mktemp("runs") / small.name
    shutil.copytree(made_once("finished", fill) / small.name, mine)
    return mine
