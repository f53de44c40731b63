"""What is unhealthy in a quality report, and what to try, in plain sentences.

Thresholds are ours, set so that the published settings pass; none of them predicts how well a
generator will rank.
"""

from __future__ import annotations

from typing import Any

from jaxrec.tokenization.quality_categories import above_chance

_COLLAPSED = 0.5
_SKEWED = 0.8
_WAIST = 0.1
_TOO_MANY_LOST = 0.05
_TOO_MANY_DUPLICATES = 0.01
_LARGE_BUCKET = 64
_MEANINGLESS = 0.05
_ENOUGH_PAIRS = 100
"""Fewer pairs are too few to advise by."""
_NO_LIFT = 1.5
_BLIND = 2.0
_KEPT = 0.5


def advice(report: dict[str, Any]) -> list[str]:
    """What is unhealthy in a report, and what to try; empty when nothing is."""
    found = []
    for number, level in enumerate(report["levels"]):
        reachable = min(level["size"], report["n_items"])
        if level["used"] <= max(1, _COLLAPSED * reachable) < reachable:
            found.append(
                f"Level {number} has collapsed: {level['used']} of {level['size']} codes are in "
                "use. Standardise or whiten the vectors, or use fewer codes."
            )
        elif level["gini_used"] > _SKEWED:
            found.append(
                f"Level {number} is skewed (Gini {level['gini_used']:.2f}): a few codes hold most "
                "items. Try more restarts, whitening, or a balanced quantizer."
            )
    waist = report.get("hourglass", {"dip": 0.0})
    if waist["dip"] > _WAIST:
        found.append(
            f"Level {waist['level']} is the waist of an hourglass: its evenness is "
            f"{waist['evenness']:.2f}, that of the ends {waist['ends']:.2f} or more, so most items "
            "pass through few of its codes. Try a balanced quantizer, or fewer codes there."
        )
    return [
        *found,
        *_collision_advice(report),
        *_category_advice(report),
        *_behaviour_advice(report),
    ]


def _collision_advice(report: dict[str, Any]) -> list[str]:
    found = []
    collisions, floor = report["collisions"], report["random_floor"]
    duplicates = report.get("duplicates", {})
    if (n_duplicates := duplicates.get("n_duplicate_rows", 0)) > _TOO_MANY_DUPLICATES * report[
        "n_items"
    ]:
        found.append(
            f"{n_duplicates} of {report['n_items']} items have the vector of another item: no "
            "quantizer can separate them. Add text fields that differ, or keep an extra digit."
        )
    lost = duplicates.get("lost_ids_distinct", collisions["lost_ids"])
    if lost > _TOO_MANY_LOST:
        found.append(
            f"{lost:.1%} of the IDs are lost to collisions although the vectors differ (random "
            f"codes would make {floor:.1%} of the items collide): use more codes or a further "
            "level."
        )
    if collisions["max_bucket"] > _LARGE_BUCKET:
        found.append(
            f"The largest bucket holds {collisions['max_bucket']} items: an extra digit must be "
            "that wide. Look at those items; empty text is a common cause."
        )
    return found


def _category_advice(report: dict[str, Any]) -> list[str]:
    if "categories" not in report or report["categories"]["n_categories"] < 2:
        return []
    first = report["categories"]["prefixes"][1]
    purity = above_chance(first["purity"], first["purity_chance"])
    if max(purity, above_chance(first["nmi"], first["nmi_chance"])) > _MEANINGLESS:
        return []
    return [
        f"The first code says next to nothing about the category of an item (purity "
        f"{first['purity']:.2f}, by chance {first['purity_chance']:.2f}). Look at the text fields "
        "and the encoder: the vectors may not hold the categories, or the fit has strewn them."
    ]


def _behaviour_advice(report: dict[str, Any]) -> list[str]:
    found, behaviour = [], report.get("behaviour")
    if behaviour is None or behaviour["n_pairs"] < _ENOUGH_PAIRS:
        return found
    first = behaviour["prefixes"][0]
    if first["pairs"] < _NO_LIFT * first["chance"] < 1.0:
        found.append(
            f"{first['pairs']:.1%} of the items taken one after the other share their first code, "
            f"of any two items {first['chance']:.1%}: the codes do not follow behaviour. Fuse "
            "collaborative vectors into the items, or align the quantizer with them."
        )
    return found + _neighbourhood_advice(report.get("neighbourhood"))


def _neighbourhood_advice(hits: dict[str, Any] | None) -> list[str]:
    """About the largest K, which the least chance decides."""
    if hits is None:
        return []
    name = max(hits["chance"], key=lambda name: hits["chance"][name])
    ours, chance = hits["quantized"][name], hits["chance"][name]
    whole = hits.get("vectors", {}).get(name, ours)
    at = name.replace("hr", "HR")
    if chance < 0.5 and whole < _BLIND * chance:
        return [
            f"Even the vectors do not find the item that is taken next ({at} {whole:.3f}, by "
            f"chance {chance:.3f}): no quantizer can. Use another encoder, other text fields, or "
            "vectors of behaviour."
        ]
    # What the vectors know beyond chance is what there is to lose.
    if ours - chance < _KEPT * (whole - chance):
        return [
            f"Quantization loses the neighbourhoods of behaviour: {at} is {ours:.3f}, by the "
            f"vectors themselves {whole:.3f}, by chance {chance:.3f}. Use more codes or a further "
            "level."
        ]
    return []
