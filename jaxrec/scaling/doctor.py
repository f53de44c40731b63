"""What this machine has, what is missing, and what a recipe will cost on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time

import jax

from jaxrec.parallel import make_mesh, partition_spec
from jaxrec.recipe import Recipe
from jaxrec.scaling.forecast import (
    expected_space,
    forecast,
    lower_decoding,
    lower_training,
    memory_of,
)

REQUIRED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "einops", "polars",
    "tyro", "jaxtyping", "safetensors", "tokenizers", "tqdm", "wordllama",
)  # fmt: skip
OPTIONAL = {
    "matplotlib": "figures in reports: pip install 'jaxrec[plots]'",
    "tensorboardX": "TensorBoard: pip install 'jaxrec[tensorboard]'",
    "wandb": "Weights & Biases: pip install 'jaxrec[wandb]'",
    "libtpu": "TPUs: pip install 'jaxrec[tpu]'",
}
MEBIBYTE = 1 << 20


def machine_lines() -> list[str]:
    """Devices, memory and versions of this machine, and what is missing."""
    devices = jax.devices()
    lines = [
        f"jaxrec {version_of('jaxrec')}, Python {platform.python_version()}, {platform.platform()}",
        f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
        f"{jax.process_count()} process(es)",
        f"host: {len(os.sched_getaffinity(0))} cores, {host_memory() / 2**30:.1f} GiB memory",
    ]
    for device in devices[:8]:
        stats = device.memory_stats()
        if stats and "bytes_limit" in stats:
            lines.append(f"  {device}: {stats['bytes_limit'] / 2**30:.1f} GiB")
    if devices[0].platform == "cpu" and os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:
        lines.append(
            "advice: on CPU set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 "
            "MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1; "
            "large arrays are otherwise faulted in again every step"
        )
    found = {name: version_of(name) for name in REQUIRED}
    lines.append("versions: " + ", ".join(f"{name} {each}" for name, each in found.items()))
    lines += [
        f"MISSING: {name}; pip install jaxrec brings it"
        for name, each in found.items()
        if each == "missing"
    ]
    lines += [
        f"not installed: {name} ({use})"
        for name, use in OPTIONAL.items()
        if importlib.util.find_spec(name) is None
    ]
    return lines


def recipe_lines(recipe: Recipe, items: int) -> list[str]:
    """What a recipe costs on this machine's devices.

    Args:
        recipe: what to foretell.
        items: size of the catalogue that is assumed.
    """
    space, mesh = expected_space(recipe, items), make_mesh(recipe.mesh)
    costs = forecast(recipe, space)
    rows, length = recipe.stages[0].feed.batch_shape
    lines = [
        f"recipe {recipe.name}: token space {space.sizes}"
        f"{' (the last is an extra digit)' if space.has_extra_digit else ''}, {items:,} items",
        f"parameters: {costs['parameters']:,.0f}; state with moments and gradient "
        f"{costs['state_bytes'] / MEBIBYTE:.1f} MiB",
        f"a step: {rows} rows x {length} events, {costs['flops_per_step'] / 1e9:.2f} GFLOP",
        "mesh: " + ", ".join(f"{name} {size}" for name, size in mesh.shape.items()),
    ]
    for name, lower in (("training step", lower_training), ("answering a batch", lower_decoding)):
        start = time.perf_counter()
        memory = memory_of(lower(recipe, space, items, mesh).compile())
        parts = ", ".join(f"{part} {size / MEBIBYTE:.1f}" for part, size in memory.items())
        lines.append(
            f"{name}, MiB a device: {parts} (compiled in {time.perf_counter() - start:.1f} s)"
        )
    return lines + sharding_lines(recipe, space, mesh)


def sharding_lines(recipe: Recipe, space: object, mesh: jax.sharding.Mesh) -> list[str]:
    """How each parameter lies on the mesh; nothing to say on a mesh of one device."""
    if mesh.size == 1:
        return []
    generator = recipe.generator
    shapes = jax.eval_shape(lambda: generator.init(jax.random.key(0), space))
    axes = generator.axes(space)
    lines = ["parameters on the mesh:"]
    for (path, leaf), names in zip(
        jax.tree_util.tree_leaves_with_path(shapes),
        jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)),
    ):
        spec = partition_spec(names, leaf.shape, mesh)
        lines.append(f"  {jax.tree_util.keystr(path)} {leaf.shape}: {spec}")
    return lines


def version_of(package: str) -> str:
    """Version of an installed package, or "missing"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def host_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
