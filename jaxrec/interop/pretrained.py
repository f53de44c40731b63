"""Where training begins: the parameters of an imported model, with tokens for semantic IDs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.vocabulary import STARTS, new_rows
from jaxrec.interop.imported import imported_component, load_imported
from jaxrec.types import PyTree, TokenSpace

FREE = ("prompt", "dropout", "remat", "unroll", "dtype", "initial_scale", "attention")
"""Fields of a language model that its parameters do not depend on."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The start of `Supervised(start=...)`: an import's parameters, in float32.

    The token table gets a row for every code, and so does an output matrix of its own; both are
    trained with the rest.

    Raises:
        ValueError: an unknown way to begin the rows.
    """

    folder: str
    """What `jaxrec import hf` made."""
    rows: str = "spread"
    """What rows of codes begin as: `mean` or `spread`, see `jaxrec.backbones.vocabulary`."""

    def __post_init__(self) -> None:
        allowed = [start for start in STARTS if start != "codebook"]
        if self.rows not in allowed:
            raise ValueError(
                f"Pretrained: rows={self.rows!r} is unknown; choose one of {', '.join(allowed)}."
            )

    def check(self, generator: Any) -> None:
        """Finds before any work that the import is of another network.

        Raises:
            ValueError: the folder is no import, or the network's sizes are not the import's.
        """
        wanted = imported_component(self.folder)
        if not isinstance(generator, LanguageModel) or not isinstance(wanted, LanguageModel):
            raise ValueError(
                f"{self.folder} holds a {type(wanted).__name__}, and the generator is a "
                f"{type(generator).__name__}: only a LanguageModel starts from an import."
            )
        differing = [
            f"{field.name} is {getattr(wanted, field.name)!r} there and "
            f"{getattr(generator, field.name)!r} here"
            for field in dataclasses.fields(LanguageModel)
            if field.name not in FREE
            and getattr(wanted, field.name) != getattr(generator, field.name)
        ]
        if differing:
            raise ValueError(
                f"the generator is not the network in {self.folder}: {'; '.join(differing[:3])}. "
                "Take it from there: generator=imported_component(FOLDER)."
            )

    def __call__(
        self, generator: LanguageModel, space: TokenSpace, key: jax.Array, shardings: PyTree
    ) -> PyTree:
        """The parameters to start from.

        Args:
            generator: the network, of the import's sizes.
            space: the token space of the codes.
            key: of the new rows.
            shardings: of the parameters, by the generator's tree.
        """
        self.check(generator)
        # The tables change their length, and a mesh may not divide the old one.
        given = jax.tree_util.tree_map_with_path(
            lambda path, each: _whole(each) if path[0].key in ("tokens", "output") else each,
            shardings,
        )
        _, params = load_imported(self.folder, given)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        table_key, output_key = jax.random.split(key)
        count = sum(space.sizes)
        table = params["tokens"]["table"]
        rows = new_rows(table_key, table, count, start=self.rows)
        params["tokens"] = {"table": jnp.concatenate([table, rows])}
        if not generator.tied:
            kernel = params["output"]["kernel"]
            columns = new_rows(output_key, kernel.T, count, start=self.rows).T
            params["output"] = {"kernel": jnp.concatenate([kernel, columns], axis=1)}
        return jax.tree.map(jax.device_put, params, shardings)


def _whole(sharding: Any) -> Any:
    return NamedSharding(sharding.mesh, PartitionSpec())
