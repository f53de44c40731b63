"""What a careful person would say about a log, told from its numbers (`description.describe`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TIED = 0.2
"""Share of users with a tie at the end, above which the tie policy decides results."""
DUPLICATED = 0.001
"""Share of events that are exact duplicates, above which an export is suspect."""
REPEATED = 0.05
"""Share of leave-one-out's tests that the user had before, above which masking seen items hurts."""
SHORT = 0.2
"""Share of users too short for leave-one-out, above which few are left to judge by."""
COLD = 0.05
"""Share of leave-one-out's tests that no training event shows."""
UNUSED = 0.2
"""Share of the items without any event."""
TEXTLESS = 0.05
"""Share of the items without any text."""
TWINS = 0.05
"""Share of the items whose title another item has."""
DOMINANT = 0.1
"""Share of all events of one user, above which it hardly is a person ..."""
DOMINANT_TIMES = 10
"""... if it also has this many times the events of the mean user: few users are no bots."""
EARLIEST_YEAR = 1990
"""A log whose last event is older was hardly recorded in Unix seconds."""


def advise(numbers: Mapping[str, Any]) -> list[str]:
    """The advice that applies, the most damaging first.

    Args:
        numbers: what `description.describe` returns; `advice` is not read.
    """
    return [said for rule in RULES if (said := rule(numbers))]


def _one_time(numbers: Mapping[str, Any]) -> str:
    time = numbers["time"]
    if time is None or time["span_days"] > 0 or numbers["counts"]["rows"] < 2:
        return ""
    return (
        "All events have the same time, so time orders nothing. Import the log without its column "
        "of times (--time none): then the order of its rows counts, and dataset.json says so."
    )


def _ancient(numbers: Mapping[str, Any]) -> str:
    time = numbers["time"]
    if time is None or int(time["last"][:4]) >= EARLIEST_YEAR:
        return ""
    return (
        f"The last event is of {time['last'][:10]}. Are the times Unix seconds? If they count "
        "something else (days, places in a sequence), say so at import with --time-unit, or leave "
        "them out with --time none."
    )


def _tied(numbers: Mapping[str, Any]) -> str:
    ties = numbers["ties"]
    if ties["tied"] <= TIED or _one_time(numbers):
        return ""
    return (
        f"The last event of {ties['tied']:.0%} of the users shares its time with another of "
        "theirs: the tie policy decides what is tested. Run both --data.ties file and --data.ties "
        "shuffle:0, and report which."
    )


def _duplicated(numbers: Mapping[str, Any]) -> str:
    exact, events = numbers["repeats"]["exact"], numbers["counts"]["events"]
    if exact <= DUPLICATED * events:
        return ""
    return (
        f"{exact:,} events ({exact / events:.1%}) are exact duplicates: same user, item, time and "
        "kind. Check the export: a join that doubles rows, or a file that was read twice, looks "
        "like this."
    )


def _repeated(numbers: Mapping[str, Any]) -> str:
    targets = numbers["repeats"]["targets"]
    if targets <= REPEATED:
        return ""
    return (
        f"{targets:.0%} of the last events are items that the user had before. With seen items "
        "masked these can never be hits: read the rows of the report that keep seen items."
    )


def _short(numbers: Mapping[str, Any]) -> str:
    short, users = numbers["cold"]["short_users"], numbers["counts"]["users"]
    if short <= SHORT * users:
        return ""
    return (
        f"{short:,} users ({short / users:.0%}) have fewer than 3 events; leave-one-out trains on "
        "them and tests nothing. A k-core filter drops them and what becomes rare with them: "
        "--data.min-user 5 --data.min-item 5 is usual."
    )


def _dominant(numbers: Mapping[str, Any]) -> str:
    largest, mean = numbers["largest_user"], numbers["history_length"]["mean"]
    if largest["share"] <= DOMINANT or largest["events"] <= DOMINANT_TIMES * mean:
        return ""
    return (
        f"User {largest['user']!r} has {largest['share']:.0%} of all events. A bot, a test "
        "account, or the id of everybody without an account? Drop it before the import."
    )


def _cold(numbers: Mapping[str, Any]) -> str:
    targets = numbers["cold"]["targets"]
    if targets <= COLD:
        return ""
    return (
        f"{targets:.0%} of leave-one-out's tests ask for an item without a single training event. "
        "Only content (text vectors behind the semantic IDs) can find those: read the report by "
        "popularity of the target."
    )


def _unused(numbers: Mapping[str, Any]) -> str:
    unused, items = numbers["cold"]["never_logged"], numbers["counts"]["items"]
    if unused <= UNUSED * items:
        return ""
    return (
        f"{unused:,} of {items:,} items have no event at all. They stay candidates of every "
        "recommendation; --data.min-item 1 leaves them out."
    )


def _textless(numbers: Mapping[str, Any]) -> str:
    without, items = numbers["text"]["items_without_text"], numbers["counts"]["items"]
    if without <= TEXTLESS * items:
        return ""
    many = (
        "No item has" if without == items else f"{without:,} items ({without / items:.0%}) have no"
    )
    return (
        f"{many} text, and text encoders give all of those one vector. Bring item vectors of a "
        "collaborative model (Precomputed), or add texts to the items."
    )


def _terse(numbers: Mapping[str, Any]) -> str:
    columns = numbers["text"]["columns"]
    if not columns or max(each["median_words"] or 0 for each in columns) > 1:
        return ""
    return (
        "Texts of the items are single words, such as names of categories: a text encoder hardly "
        "tells items apart by them. Bring longer texts, or item vectors of a collaborative model "
        "(Precomputed)."
    )


def _twins(numbers: Mapping[str, Any]) -> str:
    shared, items = numbers["text"]["shared_titles"], numbers["counts"]["items"]
    if shared is None or shared <= TWINS * items:
        return ""
    return (
        f"{shared:,} items ({shared / items:.0%}) share their title with another item. Are they "
        "variants of one product? From titles alone they get one semantic ID, told apart only by "
        "the collision policy."
    )


def _pageless(numbers: Mapping[str, Any]) -> str:
    pages = numbers["pages"]
    if pages is None or "error" not in pages:
        return ""
    return f"The column 'page' cannot be used as it is: {pages['error']}"


def _undeclared(numbers: Mapping[str, Any]) -> str:
    if numbers["pages"] is None or numbers["dataset"]["page_rule"]:
        return ""
    return (
        "dataset.json does not say how pages were formed. Declare it (page_rule of write_dataset): "
        "a page can be a request, a session or a day, and results depend on which."
    )


RULES: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    _one_time,
    _ancient,
    _tied,
    _duplicated,
    _dominant,
    _short,
    _repeated,
    _cold,
    _textless,
    _terse,
    _twins,
    _unused,
    _pageless,
    _undeclared,
)
"""One function an advice: the text, or nothing where it does not apply."""
