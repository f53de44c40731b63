"""The tables and pictures of `quality.py`: one table a data set, orders of ties side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quality_rows import METRICS, PAIRED, SIGNIFICANT, deviation, family

from jaxrec.evaluation.compare_figures import Dot, Dots, Price, Prices
from jaxrec.evaluation.compare_views import Cell, Line, Part
from jaxrec.evaluation.tables import metric_name, plain_value

FAMILIES = {"file": "file order", "item": "ties by item", "shuffle": "ties shuffled"}
NOTES = {
    "file": "File order is comparable with papers, and like them it carries whatever order the log "
    "gives to events of one time.",
    "shuffle": "Ties shuffled is the honest order: events of one time say nothing about what came "
    "first.",
}


def parts_of(content: Mapping[str, Any]) -> list[Part]:
    """What there is to say, as parts of `evaluation/compare_views.py`.

    Args:
        content: what `quality_rows.collect` gives, with "machine" and "command".
    """
    parts = _unfinished(content)
    rows = content["rows"]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        means = [each for each in content["summary"] if each["dataset"] == dataset]
        # In the order of the first family.
        means.sort(key=lambda each: -each["mean"].get(PAIRED[0], -1.0))
        first = means[0]["family"]
        means.sort(key=lambda each: each["family"] != first)
        parts += [
            _main_table(dataset, here, means),
            _paired_table(dataset, here, means),
            _cost_table(dataset, here),
        ]
    return [*parts, _machine(content)]


def _unfinished(content: Mapping[str, Any]) -> list[Part]:
    told = [f"{each['run']} failed: {each['error']}" for each in content["failed"]]
    if content["waiting"]:
        told.append(f"Not finished yet: {', '.join(content['waiting'])}.")
    return [Part("INCOMPLETE", tuple(told), warning=True)] if told else []


def _main_table(
    dataset: str, rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]
) -> Part:
    """Methods down, orders of ties across."""
    families = list(dict.fromkeys(each["family"] for each in means))
    found = {(each["method"], each["family"]): each for each in means}
    header = ["method"]
    for ties in families:
        runs = max(each["runs"] for each in means if each["family"] == ties)
        name = FAMILIES[ties] + (f", mean of up to {runs} runs" if runs > 1 else "")
        header += [f"{metric_name(metric)}, {name}" for metric in METRICS]
        header.append(f"verdict, {FAMILIES[ties]}")
    lines = []
    for method in dict.fromkeys(each["method"] for each in means):
        cells, kind = [Cell(method)], ""
        for ties in families:
            entry = found.get((method, ties))
            kind = kind or (entry or {}).get("kind", "")
            among = [each for each in means if each["family"] == ties]
            cells += _cells(entry, among, rows)
        lines.append(Line(tuple(cells), kind="generator" if kind == "generator" else ""))
    return Part(
        dataset,
        _sentences(rows, families),
        header=tuple(header),
        lines=tuple(lines),
        pictures=_pictures(dataset, rows, means, families),
    )


def _sentences(rows: Sequence[Mapping[str, Any]], families: Sequence[str]) -> tuple[str, ...]:
    trained = [row for row in rows if row.get("run")]
    lost = [
        f"{row['method']} ({row['protocol']}, seed {row['seed']})"
        for row in trained
        if row["kind"] == "generator" and row["verdict"] == "loses to the best baseline"
    ]
    told = [
        "Leave-one-out, full ranking, seen items masked, hits by item. In brackets the 95 % "
        "bootstrap interval over users of a single run; after ± the standard deviation over runs "
        "with other seeds or tie seeds.",
        "The verdict is on Recall@10, paired over the same users with the best row that writes no "
        f"semantic IDs: told where its interval leaves out zero and p after Holm is below "
        f"{SIGNIFICANT}, else the two are level.",
        *(NOTES[ties] for ties in families if ties in NOTES),
    ]
    if lost:
        told.append(f"Generators that lose to the best baseline: {', '.join(lost)}.")
    groups = {(row["protocol"], row["seed"], row["group"]) for row in trained}
    if len({group for *_, group in groups}) > 1:
        told.append(
            "Some runs were judged on other test cases or filters; they are paired only among "
            "themselves, and must not be ranked with the others."
        )
    if changed := sorted({row["run"] for row in trained if row["changed"]}):
        told.append(f"Run with other flags than the tables now say: {', '.join(changed)}.")
    told.append(_budget(trained))
    return tuple(told)


def _budget(trained: Sequence[Mapping[str, Any]]) -> str:
    """Whether all methods may look at validation equally often."""
    budgets: dict[tuple[Any, Any], list[str]] = {}
    for row in trained:
        key = (row["validations_allowed"], row["validation_cases"])
        names = budgets.setdefault(key, [])
        if row["method"] not in names:
            names.append(row["method"])
    if not budgets or any(None in key for key in budgets):
        return "Validation budgets: not known for every run."
    if len(budgets) == 1:
        ((times, cases),) = budgets
        return (
            f"Validation budgets are equal: at most {plain_value(times)} validations of "
            f"{plain_value(cases)} cases chose each checkpoint."
        )
    told = "; ".join(
        f"at most {plain_value(times)} x {plain_value(cases)} cases for {', '.join(names)}"
        for (times, cases), names in budgets.items()
    )
    return f"Validation budgets differ: {told}."


def _cells(
    entry: Mapping[str, Any] | None,
    among: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> list[Cell]:
    """Four metrics and the verdict of one method under one order of ties."""
    if entry is None:
        return [Cell("-")] * (len(METRICS) + 1)
    (one, *others) = members(entry, rows)
    cells = []
    for metric in METRICS:
        mean = entry["mean"].get(metric)
        if mean is None:
            cells.append(Cell("-"))
            continue
        best = mean == max(each["mean"].get(metric, -1.0) for each in among)
        ends = one["intervals"].get(metric)
        interval = f"{ends[0]:.4f}, {ends[1]:.4f}" if ends and not others else ""
        cells.append(Cell(_spread(mean, entry["deviation"][metric]), interval, best))
    return [*cells, Cell(_verdict(entry))]


def members(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows behind an entry of the summary."""
    key = (entry["dataset"], entry["family"], entry["method"])
    return [row for row in rows if (row["dataset"], family(row["protocol"]), row["method"]) == key]


def _spread(mean: float, over: float | None, sign: str = "") -> str:
    told = f"{mean:{sign}.4f}"
    return told if over is None else f"{told} ± {over:.4f}"


def _verdict(entry: Mapping[str, Any]) -> str:
    if entry["verdict"] == "mixed":
        return ", ".join(f"{word} ({count})" for word, count in entry["verdicts"].items())
    return entry["verdict"] or "not paired"


def _paired_table(
    dataset: str, rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]
) -> Part:
    """Every method against the best baseline of its data set, order of ties and seed."""
    lines = []
    for ties in dict.fromkeys(each["family"] for each in means):
        lines.append(Line(title=FAMILIES[ties]))
        for entry in (each for each in means if each["family"] == ties):
            (one, *others) = members(entry, rows)
            cells = [Cell(entry["method"])]
            for metric in PAIRED:
                cells += _difference(entry, [one, *others], metric)
            lines.append(Line((*cells, Cell(_verdict(entry))), kind=_style(entry["verdict"])))
    header = ["method"]
    for metric in PAIRED:
        header += [f"best in {metric_name(metric)}", "difference", "p (Holm)"]
    return Part(
        f"{dataset}: paired with the best baseline",
        (
            "The best baseline is chosen for each metric by these very numbers, which makes it a "
            "hard bar. p by random sign flips, corrected after Holm for the number of rows of one "
            "data set, order of ties and seed.",
        ),
        header=(*header, "verdict"),
        lines=tuple(lines),
    )


def _difference(
    entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: str
) -> list[Cell]:
    told = [row["against"][metric] for row in rows if row["against"][metric]]
    if not told:
        return [Cell("-")] * 3
    names = Cell(", ".join(dict.fromkeys(each["baseline"] for each in told)))
    if metric not in entry["difference"]:
        return [names, Cell("-"), Cell("-")]
    mean, over = entry["difference"][metric], entry["difference_deviation"][metric]
    interval = f"{told[0]['low']:+.4f}, {told[0]['high']:+.4f}" if len(told) == 1 else ""
    worst = max(each["p_holm"] for each in told)
    p = f"{worst:.4f}" if len(told) == 1 else f"at most {worst:.4f}"
    return [names, Cell(_spread(mean, over, "+"), interval), Cell(p)]


def _style(verdict: str | None) -> str:
    styles = {"ahead": "ahead", "loses to the best baseline": "behind", "level": "undecided"}
    return styles.get(verdict or "", "")


def _cost_table(dataset: str, rows: Sequence[Mapping[str, Any]]) -> Part:
    """What each run cost and what chose its checkpoint."""
    lines = []
    for row in rows:
        if not row.get("run"):
            continue
        flops = "-" if row["flops"] is None else f"{row['flops']:.3g}"
        validations = (
            f"{plain_value(row['validations'])} of {plain_value(row['validations_allowed'])} x "
            f"{plain_value(row['validation_cases'])}"
        )
        by_codes = row["sid_metrics"] or {}
        cells = (
            row["method"], row["protocol"], str(row["seed"]), plain_value(row["parameters"]), flops,
            f"{row['training_seconds']:,.0f}", f"{row['answering_seconds']:,.1f}",
            f"{row['best_step']:,} of {row['last_step']:,}", validations,
            f"{by_codes[PAIRED[0]]:.4f}" if PAIRED[0] in by_codes else "-",
        )  # fmt: skip
        lines.append(Line(tuple(map(Cell, cells))))
    return Part(
        f"{dataset}: costs",
        (
            "FLOPs of training by formula, padding included. Seconds include validation and "
            "compilation, on the machine below, perhaps beside other work. Answering covers all "
            "test cases. By codes: a hit is any item of the same semantic codes, which is easier "
            "and no result.",
        ),
        header=(
            "method", "ties", "seed", "parameters", "FLOPs", "training s", "answering s",
            "best step", "validations x cases", "Recall@10 by codes",
        ),
        lines=tuple(lines),
        words=2,
    )  # fmt: skip


def _pictures(
    dataset: str,
    rows: Sequence[Mapping[str, Any]],
    means: Sequence[Mapping[str, Any]],
    families: Sequence[str],
) -> tuple[Dots | Prices, ...]:
    drawn: list[Dots | Prices] = []
    for ties in families:
        entries = [each for each in means if each["family"] == ties]
        panels = tuple(
            (metric_name(metric), tuple(_dot(each, rows, metric) for each in entries))
            for metric in PAIRED
        )
        drawn.append(Dots(f"{dataset}, {FAMILIES[ties]}", panels))
        drawn += _prices(dataset, ties, entries, rows)
    return tuple(drawn)


def _dot(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: str) -> Dot:
    """A single run has its interval over users, several have one deviation to each side."""
    mean, behind = entry["mean"][metric], members(entry, rows)
    over = deviation([row["metrics"][metric] for row in behind])
    if over is None:
        low, high = behind[0]["intervals"].get(metric, (mean, mean))
    else:
        low, high = mean - over, mean + over
    return Dot(entry["method"], entry["kind"], mean, low, high)


def _prices(
    dataset: str,
    ties: str,
    entries: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> list[Prices]:
    """NDCG@10 over training FLOPs, or over seconds where a run does not say its FLOPs."""
    metric = PAIRED[1]
    trained = [each for each in entries if each["kind"] in ("retriever", "generator")]
    told = [members(each, rows)[0] for each in trained]
    field = "flops" if all(row["flops"] for row in told) else "training_seconds"
    points = tuple(
        Price(each["method"], each["kind"], float(row[field]), each["mean"][metric])
        for each, row in zip(trained, told)
        if row[field]
    )
    if not points:
        return []
    free = [each for each in entries if each["kind"] == "untrained"]
    best = max(free, key=lambda each: each["mean"][metric], default=None)
    line = (best["method"], best["mean"][metric]) if best else None
    name = "training FLOPs" if field == "flops" else "training seconds"
    title = f"{dataset}, {FAMILIES[ties]}"
    return [Prices(title, points, name, metric_name(metric), line)]


def _machine(content: Mapping[str, Any]) -> Part:
    told = [f"Command: {content['command']}"]
    for each in content["machines"]:
        versions = ", ".join(f"{name} {number}" for name, number in each["versions"].items())
        told.append(
            f"{each['devices']} x {each['device']}; {each['cores']} cores of {each['processor']}, "
            f"{each['memory_gib']} GiB; Python {each['python']}; {versions}."
        )
    return Part("Machine and command", tuple(told))
