"""`jaxrec import hf`: a Hugging Face model, checked, and as something a recipe can start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxrec.commands.overrides import UsageError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Checks a model in Hugging Face's layout and, with --out, imports it.

    PATH is a folder with config.json and safetensors, as `hf download` leaves it: Qwen2.5
    (model_type qwen2), Qwen3, Llama, or T5 with a tied output. Settings that the networks here do
    not have, and keys that are missing, unexpected, or of another shape or type, are refused by
    name. Without --out the numbers are not read.

    The folder that is written holds imported.json, the parameters as a checkpoint, and the files
    of the tokenizer. Weights are read a layer at a time, so memory is that of the result.
    """

    out: Path | None = None
    """Folder to make; it must not exist. Only checks without it."""
    dtype: Literal["float32", "bfloat16", "file"] = "float32"
    """Type of the parameters: what training starts from, half the memory, or as in the files."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no folder to read, or one to write that exists.
        ValueError: a model that cannot be read; see `jaxrec.interop.huggingface`.
    """
    import tyro

    if words[:1] in (["-h"], ["--help"]):
        words = ["PATH", "--help"]
    elif not words or words[0].startswith("-"):
        raise UsageError(
            "`jaxrec import hf` needs a folder, for example: Qwen2.5-0.5B --out imported"
        )
    options = tyro.cli(Arguments, args=words[1:], prog=f"jaxrec import hf {words[0]}")
    if not Path(words[0]).is_dir():
        raise UsageError(f"there is no folder {words[0]}; fetch the model first (hf download NAME)")
    if options.out is not None and options.out.exists():
        raise UsageError(f"--out {options.out} exists; name a folder that does not")

    from jaxrec.interop.imported import inspect_source, write_imported

    source = inspect_source(Path(words[0]))
    dtype = None if options.dtype == "file" else options.dtype
    for name, value in _table(source, dtype):
        print(f"{name:<12}{value}")
    if options.out is not None:
        write_imported(source, options.out, dtype)
        print(f"imported    {options.out}")
    return 0


def _table(source: Any, dtype: str | None) -> list[tuple[str, str]]:
    """What was found, for people."""
    component, types = source.component, ", ".join(source.dtypes)
    return [
        ("family", f"{source.family}, {type(component).__name__}"),
        (
            "layers",
            f"{component.layers} of width {component.width}, {component.heads} heads of "
            f"{component.head_size}",
        ),
        ("vocabulary", f"{source.vocabulary:,} rows, output {'tied' if component.tied else 'own'}"),
        ("parameters", f"{source.parameters:,}"),
        ("in files", f"{types}, {source.file_bytes / 2**20:,.1f} MiB"),
        ("in memory", f"{dtype or types}, {source.bytes_of(dtype) / 2**20:,.1f} MiB"),
    ]
