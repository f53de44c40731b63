"""The house stands: every import points down, and heavy libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "jaxrec"

FLOORS = [
    {"types", "files", "parallel", "checkpoint", "tracking"},
    {"objectives", "decoding", "evaluation", "data"},
    {"backbones"},
    {"training"},
    {"representation", "tokenization", "alignment"},
    {"recipe"},
    {"pipeline", "scaling", "interop"},
    {"commands"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {"flax": "backbones", "orbax": "checkpoint"}
LAZY = {
    "polars",
    "tyro",
    "wordllama",
    "matplotlib",
    "tensorboardX",
    "wandb",
    "safetensors",
    "scipy",
}


def sources():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if module_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the full name"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports_of(path)]
    return {
        part[1] for part in parts if part[0] == "jaxrec" and len(part) > 1 and part[1] in HEIGHT
    }


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in HEIGHT, f"{room} is not a room of the house; give it a floor"
    for other in rooms_imported(path) - {room}:
        grounded = HEIGHT[room] == 0 and HEIGHT[other] == 0
        assert HEIGHT[other] < HEIGHT[room] or grounded, f"{path}: {room} may not import {other}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_rooms(path):
    for name in imports_of(path):
        library = name.split(".")[0]
        if library in ONLY_IN:
            assert room_of(path) == ONLY_IN[library], f"{path} may not import {library}"
    at_import = {name.split(".")[0] for name in imports_of(path, module_level=True)}
    assert not at_import & LAZY, f"{path}: import {at_import & LAZY} inside the function using it"


def test_only_parallel_builds_a_mesh():
    for path in sources():
        called = {
            getattr(node.func, "attr", getattr(node.func, "id", ""))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        if room_of(path) != "parallel":
            source = path.read_text(encoding="utf-8")
            assert "Mesh" not in called, f"{path} builds a mesh"
            assert "jax.make_mesh" not in source, f"{path} builds a mesh"
