"""Compiled programs are kept for the tests of training, which compile the same few many times."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxrec.parallel import MeshShape, make_mesh

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def keep_compiled(compiled):
    """Looks programs up there before compiling them."""
    settings = {"jax_compilation_cache_dir": str(compiled), **SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No progress among the dots."""
    monkeypatch.setenv("JAXREC_PROGRESS", "0")


@pytest.fixture(scope="session")
def one():
    """A mesh of one device."""
    return make_mesh(MeshShape(1), jax.devices()[:1])


@pytest.fixture(scope="session")
def cube():
    """A mesh of eight devices: data 2, fsdp 2, tensor 2."""
    return make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
