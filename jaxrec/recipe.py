"""A recipe is data: one frozen dataclass whose fields are components, one a stage.

The same object is the configuration file (`configs/*.py` define `recipe = Recipe(...)`), what the
command line overrides, what a sweep is a product of, and the record of a run (`recipe.json`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import importlib.util
import math
import pkgutil
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrec.files import json_hash, read_json
from jaxrec.parallel import MeshShape

ENTRY_POINTS = "jaxrec.components"


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the log comes from, and how it becomes histories and cases."""

    source: Any
    """A component of jaxrec.data that writes a canonical dataset folder."""
    split: Any
    """What is held out: LeaveOneOut(), TemporalSplit(...), UserRatio(...)."""
    min_user: int = 0
    """Users with fewer events are dropped (k-core filter, repeated until stable); 0 keeps all."""
    min_item: int = 0
    """Items with fewer events are dropped likewise; 0 keeps all."""
    ties: str = "file"
    """Order of one user's events at one time: `file` (as logged), `item`, or `shuffle:SEED`."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a finished run is judged. Every choice is printed with the result."""

    cutoffs: tuple[int, ...] = (1, 5, 10, 50)
    """K of recall@K, ndcg@K, mrr@K."""
    history: int = 50
    """Events of a history that the generator reads, the newest ones."""
    rows: int = 256
    """Histories decoded at once."""
    max_cases: int = 0
    """Judge this many test cases, drawn with the recipe's seed; 0 judges all."""
    bootstrap: int = 1000
    """Resamples behind the 95 % intervals."""
    examples: int = 10
    """Users shown with titles in the report."""
    mix_transitions: bool = False
    """Also judge a convex mix with counted transitions, its weight chosen on validation; for
    retrievers, which score every item."""

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ValueError(f"evaluation.cutoffs must be positive numbers, got {self.cutoffs}.")
        if self.history < 1 or self.rows < 1:
            raise ValueError(
                f"evaluation.history and evaluation.rows must be positive, got {self.history} "
                f"and {self.rows}."
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole system, from the log to judged recommendations."""

    name: str
    """Name of the run's folder below the runs folder."""
    data: Data
    """The log, its filters and its split."""
    items: Any
    """Items to vectors: jaxrec.representation.ItemVectors."""
    tokenizer: Any
    """Vectors to semantic IDs: jaxrec.tokenization.Tokenizer."""
    generator: Any
    """The network: a component of jaxrec.backbones that obeys the Generator contract."""
    stages: tuple[Any, ...]
    """Training stages in order, for example (Supervised(NextToken()),)."""
    decoding: Any
    """How answers are written: BeamSearch(...) or ExactScoring(...)."""
    evaluation: Evaluation = Evaluation()
    """How the run is judged."""
    mesh: MeshShape = MeshShape()
    """Devices per axis of parallelism."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name {self.name!r} cannot be a folder: use letters, digits, '.', '_' and '-'."
            )
        _check_finite(self, "")


def load_recipe(path: Path | str) -> Recipe:
    """Reads a recipe: a Python file that defines `recipe`, or the `recipe.json` of a run.

    Raises:
        ValueError: no such file, or it defines no Recipe.
    """
    path = Path(path)
    if not path.is_file():
        others = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), others, n=1)
        hint = f" Perhaps you meant {close[0]}." if close else ""
        raise ValueError(f"there is no recipe at {path}.{hint}")
    if path.suffix == ".json":
        return _from_record(path)
    recipe = runpy.run_path(str(path)).get("recipe")
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path} defines no `recipe = Recipe(...)`; see configs/quickstart.py.")
    return recipe


def _from_record(path: Path) -> Recipe:
    try:
        recipe = from_json(read_json(path))
    except (ValueError, RecursionError) as error:
        reason = str(error)[:1000]
        raise ValueError(reason if str(path) in reason else f"{path}: {reason}") from None
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path} is no recipe: it is damaged, or of another program.")
    return recipe


def replace(component: Any, path: str, value: Any) -> Any:
    """A copy of nested frozen dataclasses with one field changed.

    Args:
        component: the outermost dataclass.
        path: dotted field names; a number picks an element of a tuple.
        value: the new value.

    Raises:
        ValueError: there is no such field; the message names the nearest.

    >>> replace(Evaluation(), "history", 20).history
    20
    """
    head, _, rest = path.partition(".")
    if isinstance(component, tuple):
        index = int(head) if head.isdigit() else -1
        if not 0 <= index < len(component):
            raise ValueError(f"{head!r} is not one of 0..{len(component) - 1} in {path!r}.")
        new = replace(component[index], rest, value) if rest else value
        return (*component[:index], new, *component[index + 1 :])
    names = [field.name for field in dataclasses.fields(component)]
    if head not in names:
        close = difflib.get_close_matches(head, names, n=1)
        raise ValueError(
            f"{type(component).__name__} has no field {head!r}; it has {', '.join(names)}."
            + (f" Perhaps you meant {close[0]!r}." if close else "")
        )
    new = replace(getattr(component, head), rest, value) if rest else value
    return dataclasses.replace(component, **{head: new})


def to_json(value: Any, *, only_changed: bool = False) -> Any:
    """A component as JSON: its class as `wing:Class`, then its fields.

    Args:
        value: a component, or a field of one.
        only_changed: leave out fields that have their default, for hashes that a new field with
            a default does not change.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {"class": _class_name(type(value))}
        version = getattr(type(value), "schema_version", 1)
        if only_changed:
            content["schema"] = version
        for field in dataclasses.fields(value):
            here = getattr(value, field.name)
            # A component counts even where it is the default: its schema version may change.
            if only_changed and _is_default(field, here) and not _holds_component(here):
                continue
            content[field.name] = to_json(here, only_changed=only_changed)
        return content
    if isinstance(value, tuple | list):
        return [to_json(each, only_changed=only_changed) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(content: Any) -> Any:
    """The component that `to_json` wrote.

    Raises:
        ValueError: a class that is not jaxrec's or a declared entry point's, or unknown fields.
    """
    if isinstance(content, list):
        return tuple(from_json(each) for each in content)
    if not isinstance(content, dict):
        return content
    if not isinstance(content.get("class"), str):
        raise ValueError(f"{str(content)[:60]} is no component: it names no class.")
    cls = resolve(content["class"])
    fields = {name: from_json(value) for name, value in content.items() if name != "class"}
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"{content['class']} has no field {', '.join(unknown)}; the recipe was written by "
            "another version of jaxrec."
        )
    _check_kinds(cls, content["class"], fields)
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"{content['class']}: {error}.") from None


def component_hash(component: Any, **inputs: Any) -> str:
    """The key of a cached stage: class, schema version, non-default fields, and its inputs."""
    return json_hash({"component": to_json(component, only_changed=True), "inputs": inputs})


def resolve(name: str) -> Any:
    """The class that `wing:Class` names, inside jaxrec or a declared entry point.

    Other packages declare theirs in the entry-point group `jaxrec.components`, where an entry
    `wing_Class = package.module:Class` is named `wing:Class`.

    Raises:
        ValueError: no such class.
    """
    wing, _, class_name = name.partition(":")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == f"{wing}_{class_name}":
            return entry.load()
    if wing.isidentifier() and class_name.isidentifier():
        for module in _modules(wing, f"class {class_name}"):
            found = getattr(importlib.import_module(module), class_name, None)
            if dataclasses.is_dataclass(found) and isinstance(found, type):
                return found
    raise ValueError(
        f"{name!r} names no component: expected wing:Class, with the class inside jaxrec or in "
        f"the entry-point group {ENTRY_POINTS!r} of an installed package."
    )


def _class_name(cls: type) -> str:
    module = cls.__module__.split(".")
    if module[0] == "jaxrec":
        return f"{module[1]}:{cls.__name__}"
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.value == f"{cls.__module__}:{cls.__name__}":
            return entry.name.replace("_", ":", 1)
    raise ValueError(
        f"{cls.__name__} of {cls.__module__} cannot be recorded in a recipe: put it in a file of a "
        f"jaxrec wing, or declare it in the entry-point group {ENTRY_POINTS!r}."
    )


def _modules(wing: str, text: str) -> Iterator[str]:
    # Looks at sources before importing: resolving one tokenizer must not import every other.
    try:
        package = importlib.import_module(f"jaxrec.{wing}")
    except ModuleNotFoundError:
        return
    names = [f"jaxrec.{wing}"]
    names += [
        module.name
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"jaxrec.{wing}.")
    ]
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).read_text(encoding="utf-8")
        if re.search(rf"^{re.escape(text)}\b", source, re.MULTILINE):
            yield name


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "tuple[int, ...]": (int,),
    "tuple[str, ...]": (str,),
}
"""Annotations that a recorded value is held to; of a tuple, what is inside."""


def _check_kinds(cls: Any, name: str, fields: dict[str, Any]) -> None:
    """Holds what was read to the plain annotations: what is of another kind fails much later."""
    for field in dataclasses.fields(cls):
        parts = [part.strip() for part in str(field.type).split("|")]
        if field.name not in fields or not set(parts) <= _KINDS.keys():
            continue
        value = fields[field.name]
        if not any(_is_kind(value, part) for part in parts):
            raise ValueError(
                f"{name}: {field.name} is {str(value)[:60]!r}, which is no {field.type}."
            )


def _is_kind(value: Any, annotation: str) -> bool:
    kinds = _KINDS[annotation]
    if annotation.startswith("tuple"):
        return isinstance(value, tuple) and all(type(each) in kinds for each in value)
    return type(value) in kinds


def _check_finite(value: Any, path: str) -> None:
    """Refuses NaN and infinity anywhere in a component."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}; the numbers of a recipe are finite.")
    if isinstance(value, tuple):
        for index, each in enumerate(value):
            _check_finite(each, f"{path}.{index}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inside = f"{path}.{field.name}" if path else field.name
            _check_finite(getattr(value, field.name), inside)


def _holds_component(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds_component(each) for each in value)
    return dataclasses.is_dataclass(value)


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return False
