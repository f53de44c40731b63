"""What is wrong with a recipe, found before any work: each check raises one clear error."""

from __future__ import annotations

from jaxrec.decoding.inner_product import InnerProduct
from jaxrec.parallel import make_mesh
from jaxrec.pipeline.stages import Prepared
from jaxrec.recipe import Recipe
from jaxrec.tokenization.item_ids import ItemIds
from jaxrec.training.ranking import is_retriever


def check_codebooks(recipe: Recipe, items: int) -> None:
    """Finds before vectors are made that there are fewer items than codes.

    Raises:
        ValueError: a level asks for more codes than the catalogue has items.
    """
    quantizer = getattr(recipe.tokenizer, "quantizer", None)
    largest = max(getattr(quantizer, "asked_sizes", (0,)))
    if largest > items:
        raise ValueError(
            f"tokenizer.quantizer.codes asks for {largest} codes of a level, and the catalogue has "
            f"{items} items; use at most {items}, and better far fewer."
        )


def check_cases(recipe: Recipe, data: Prepared) -> None:
    """Finds before semantic IDs are made that there is nothing to judge a generator by.

    Raises:
        ValueError: the split leaves no test case, or no validation case where one is needed.
    """
    validates = any(getattr(stage.fit, "validate_every", 0) for stage in recipe.stages)
    validates |= recipe.evaluation.mix_transitions
    for name, cases, needed in (
        ("test", data.split.test, True),
        ("validation", data.split.validation, validates),
    ):
        if needed and not len(cases):
            longest = int(data.histories.lengths.max(initial=0))
            raise ValueError(
                f"the split {data.split.name} leaves no {name} case; the longest history has "
                f"{longest} event(s). Choose another --data.split, or a log with longer histories."
            )


def check_recipe(recipe: Recipe) -> None:
    """Finds before any work what would fail after the semantic IDs are made.

    Raises:
        ValueError: the mesh does not fit the devices, rows do not divide over it, the lists are
            shorter than a cutoff that they are judged by, or the decoding is not one that the
            network can be asked by.
    """
    check_decoding(recipe)
    check_supervision(recipe)
    check_positions(recipe)
    mesh = make_mesh(recipe.mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {"evaluation.rows": recipe.evaluation.rows}
    for number, stage in enumerate(recipe.stages):
        sizes[f"stages.{number}.feed.rows"] = stage.feed.rows // stage.fit.microbatches
    for name, rows in sizes.items():
        if rows < 1 or rows % parts:
            raise ValueError(
                f"{name} gives {rows} row(s) a micro-batch, which do not divide over data x fsdp = "
                f"{parts} device(s); use a multiple of {parts}."
            )
    longest = max(recipe.evaluation.cutoffs)
    if recipe.decoding.k < longest:
        raise ValueError(
            f"evaluation.cutoffs asks for the first {longest} places, and decoding.k="
            f"{recipe.decoding.k} gives shorter lists; raise decoding.k or lower the cutoffs."
        )


def check_decoding(recipe: Recipe) -> None:
    """Finds before any work that a retriever was given a trie to walk, or a generator none.

    Raises:
        ValueError: network, tokenizer and decoding do not go together.
    """
    network, decoding = type(recipe.generator).__name__, type(recipe.decoding).__name__
    retrieves = is_retriever(recipe.generator)
    if retrieves != isinstance(recipe.decoding, InnerProduct):
        right = "InnerProduct(...)" if retrieves else "BeamSearch(...) or ExactScoring(...)"
        kind = "a retriever" if retrieves else "a generator of semantic IDs"
        raise ValueError(f"{network} is {kind} and cannot be asked by {decoding}; use {right}.")
    if recipe.evaluation.mix_transitions and not retrieves:
        raise ValueError(
            f"evaluation.mix_transitions needs a retriever, which scores every item at once; "
            f"{network} is not one. Leave it off."
        )
    if retrieves != isinstance(recipe.tokenizer, ItemIds):
        right = "ItemIds()" if retrieves else "Tokenizer(...) or PublishedIds(...)"
        tokenizer = type(recipe.tokenizer).__name__
        raise ValueError(f"{network} does not go with tokenizer={tokenizer}; use {right}.")


def check_positions(recipe: Recipe) -> None:
    """Finds before any work that a history would be read at positions that were never trained.

    A network with a table of positions reads `length` events and answers at the next position. It
    was trained there only if rows of the last stage hold one event more than are read.

    Raises:
        ValueError: rows or histories that are longer than the positions, or rows too short.
    """
    positions = getattr(recipe.generator, "length", None)
    if positions is None:
        return
    taught = [stage for stage in recipe.stages if not aligns(stage)] or recipe.stages
    row, history = taught[-1].feed.batch_shape[1], recipe.evaluation.history
    if max(row - 1, history) > positions:
        raise ValueError(
            f"generator.length={positions} is less than evaluation.history={history} or than "
            f"feed.length - 1 = {row - 1}: events beyond it would share a position. Raise it."
        )
    if history >= row:
        raise ValueError(
            f"evaluation.history={history} asks at position {history}, and rows of feed.length="
            f"{row} train positions 0 to {row - 1}; use feed.length={history + 1} or more."
        )


def check_start(recipe: Recipe, number: int) -> None:
    """Finds before any work that a stage starts from parameters of another network.

    Raises:
        ValueError: the start does not fit the network, or the stage goes on from another one.
    """
    start = getattr(recipe.stages[number], "start", None)
    if start is None:
        return
    if number:
        raise ValueError(
            f"stages.{number}.start is set, and stage {number} goes on from the stage before it; "
            "set it on stages.0."
        )
    start.check(recipe.generator)


def aligns(stage: object) -> bool:
    """Whether a stage goes on from a trained generator by preferences or rewards."""
    return getattr(stage, "aligns", False)


def check_alignment(recipe: Recipe, number: int) -> None:
    """Finds before any work that there is nothing to align.

    Raises:
        ValueError: no stage before it, a retriever, or histories longer than the network reads.
    """
    stage = recipe.stages[number]
    name = type(stage).__name__
    if not number:
        raise ValueError(
            f"stages.0 is {name}, which moves a trained generator: put a Supervised stage before "
            "it, or use `jaxrec align RUN`."
        )
    if is_retriever(recipe.generator):
        raise ValueError(
            f"stages.{number}={name} needs a generator that writes semantic IDs, and "
            f"{type(recipe.generator).__name__} compares users with items."
        )
    length, most = stage.feed.length, getattr(recipe.generator, "length", None)
    if most is not None and length > most:
        raise ValueError(
            f"stages.{number}.feed.length={length} is more than generator.length={most} events."
        )


def check_supervision(recipe: Recipe) -> None:
    """Finds before any work that a network would be trained on what it cannot or must not answer.

    Raises:
        ValueError: a network that answers for the last event of a row is fed rows with other
            targets, or one that reads both sides of an event is asked for events it sees.
    """
    network = type(recipe.generator).__name__
    last = getattr(recipe.generator, "answers_last_only", False)
    both = getattr(recipe.generator, "reads_both_sides", False)
    for number, stage in enumerate(recipe.stages):
        if aligns(stage):
            check_alignment(recipe, number)
            continue
        check_start(recipe, number)
        texts = getattr(stage.feed, "reads_items", False)
        if texts != getattr(stage.objective, "reads_text", False) or (
            texts and not hasattr(recipe.generator, "text_tokens")
        ):
            raise ValueError(
                f"{network}, stages.{number}.objective={type(stage.objective).__name__} and "
                f"stages.{number}.feed={type(stage.feed).__name__} do not go together: text is "
                "read by LanguageModel(...) with ResponseTokens() and Instructions(...) only."
            )
        if last and not texts and not getattr(stage.feed, "targets_last", False):
            raise ValueError(
                f"{network} answers for the last event of a row, and stages.{number}.feed="
                f"{type(stage.feed).__name__} has targets elsewhere; use TargetCentric(...)."
            )
        retrieves = is_retriever(recipe.generator)
        if retrieves != getattr(stage.objective, "scores_items", False):
            right = "ItemSoftmax(...) or another over items" if retrieves else "NextToken(...)"
            raise ValueError(
                f"{network} does not go with stages.{number}.objective="
                f"{type(stage.objective).__name__}; use {right}."
            )
        normalised = getattr(recipe.generator, "normalised", False)
        if normalised != getattr(stage.objective, "normalised", False):
            raise ValueError(
                f"{network} gives {'log-probabilities' if normalised else 'logits'}; set "
                f"stages.{number}.objective.normalised={normalised}."
            )
        if both != getattr(stage.objective, "masks_events", False):
            right = "Cloze(...)" if both else "an objective that masks nothing"
            raise ValueError(
                f"{network} does not go with stages.{number}.objective="
                f"{type(stage.objective).__name__}; use {right}."
            )
