"""A Hugging Face model as something of jaxrec's: checked, converted once, and ready to start from.

    FOLDER/
      imported.json        the component, what it was made of, hashes of its configuration
      checkpoints/         the parameters, as step 0 of a run (see jaxrec.checkpoint)
      tokenizer.json ...   copied where they are

The parameters are a checkpoint because every floor of the house can read one, onto any mesh, and
because it is checked before it is believed.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import jax
import numpy as np

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.t5 import T5
from jaxrec.checkpoint import Checkpoints
from jaxrec.data.text_tokenizer import TextTokenizer
from jaxrec.files import file_hash, publish, read_json, write_json
from jaxrec.interop.huggingface import (
    check_weights,
    flatten,
    import_weights,
    nest,
    place_all,
)
from jaxrec.interop.huggingface_config import CONFIG, TOKENIZER, read_config, read_settings
from jaxrec.interop.weight_names import sizes_of, weights_of
from jaxrec.recipe import from_json, to_json
from jaxrec.types import PyTree

IMPORTED, CHECKPOINTS = "imported.json", "checkpoints"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""What belongs to a tokenizer, in Hugging Face's names."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What a folder in Hugging Face's layout holds, found without reading numbers."""

    folder: Path
    component: LanguageModel | T5
    family: str
    vocabulary: int
    """Rows of the token table."""
    parameters: int
    dtypes: tuple[str, ...]
    """Types of the tensors in the files."""
    file_bytes: int
    """Bytes of the numbers that are read."""

    def bytes_of(self, dtype: str | None) -> int:
        """Bytes of the parameters in a type; as in the files without."""
        return self.file_bytes if dtype is None else self.parameters * np.dtype(dtype).itemsize


def inspect_source(folder: Path | str) -> Source:
    """Checks a folder in Hugging Face's layout: configuration, headers, keys and shapes.

    Raises:
        ValueError: what `import_weights` refuses.
    """
    folder = Path(folder)
    component = read_config(folder)
    weights, tensors, sizes = check_weights(folder, component)
    read = [tensors[key] for weight in weights for key in weight.keys(sizes)]
    counts = [math.prod(stored.shape) for stored in read]
    return Source(
        folder,
        component,
        read_settings(folder)["model_type"],
        sizes["vocab"],
        sum(counts),
        tuple(sorted({stored.dtype.name for stored in read})),
        sum(count * stored.dtype.itemsize for count, stored in zip(counts, read)),
    )


def write_imported(source: Source, out: Path, dtype: str | None = "float32") -> None:
    """Reads the weights and writes them as an import, all of it or nothing.

    Args:
        source: from `inspect_source`.
        out: folder to make; must not exist.
        dtype: of the parameters: "float32", which training starts from; "bfloat16"; or None, as in
            the files.

    Raises:
        ValueError: `out` exists, or what `import_weights` refuses.
    """
    if out.exists():
        raise ValueError(f"{out} exists; name a folder that does not.")
    params = import_weights(source.folder, source.component, dtype=dtype)
    about = {
        "component": to_json(_without_tokenizer(source.component)),
        "family": source.family,
        "vocabulary": source.vocabulary,
        "parameters": source.parameters,
        "dtypes": {path: leaf.dtype.name for path, leaf in flatten(params).items()},
        "config": file_hash(source.folder / CONFIG),
    }

    def fill(made: Path) -> None:
        for name in TOKENIZER_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, made / name)
        with Checkpoints(made / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, {"params": params}, data={}, manifest=about)
        write_json(made / IMPORTED, about)

    publish(out, fill)


def imported_component(folder: Path | str) -> LanguageModel | T5:
    """The component of an import, asking with the tokenizer of the folder; reads no numbers.

    Raises:
        ValueError: the folder is no import.
    """
    return _read_about(Path(folder))[0]


def load_imported(
    folder: Path | str, shardings: PyTree | None = None
) -> tuple[LanguageModel | T5, PyTree]:
    """The component and the parameters of an import.

    Args:
        folder: what `write_imported` or `jaxrec import hf` made.
        shardings: the tree of the parameters with a sharding at each leaf; the default device
            without.

    Raises:
        ValueError: the folder is no import, or its checkpoint is damaged.
    """
    folder = Path(folder)
    component, arrays = _read_about(folder)
    placed = place_all(arrays, shardings)
    template = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path])
        for path, leaf in arrays.items()
    }
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        return component, checkpoints.restore_params(0, nest(template))


def _read_about(folder: Path) -> tuple[LanguageModel | T5, dict[str, jax.ShapeDtypeStruct]]:
    """The component, and shapes and dtypes of its parameters by their paths."""
    if not (folder / IMPORTED).is_file():
        raise ValueError(
            f"{folder} is no import: it has no {IMPORTED}. `jaxrec import hf` makes one."
        )
    about = read_json(folder / IMPORTED)
    try:
        component = from_json(about["component"])
        sizes = sizes_of(component, about["vocabulary"])
        arrays = {
            weight.path: jax.ShapeDtypeStruct(
                weight.shape(sizes), np.dtype(about["dtypes"][weight.path])
            )
            for weight in weights_of(about["family"], component)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / IMPORTED} is damaged ({str(error)[:200]}); import the model again."
        ) from None
    if isinstance(component, LanguageModel) and (folder / TOKENIZER).is_file():
        prompt = dataclasses.replace(component.prompt, tokenizer=TextTokenizer(str(folder)))
        component = dataclasses.replace(component, prompt=prompt)
    return component, arrays


def _without_tokenizer(component: LanguageModel | T5) -> LanguageModel | T5:
    """The tokenizer is a file of the import, wherever that goes."""
    if not isinstance(component, LanguageModel):
        return component
    prompt = dataclasses.replace(component.prompt, tokenizer=TextTokenizer())
    return dataclasses.replace(component, prompt=prompt)
