"""What runs cost, and how often each of them looked at validation before it chose a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrec.evaluation.figures import is_number
from jaxrec.evaluation.tables import plain_value


def cost_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What training took, as far as a report.json says it.

    Returns:
        "parameters"; "steps" and "seconds" over all stages; "flops" by formula; "validations";
        "validation_cases" of one validation (of the last stage that validates); "validated", cases
        answered over all validations: the budget that chose the checkpoint. The last four are None
        where the report does not have them.
    """
    training = report.get("training")
    training = training if isinstance(training, Mapping) else {}
    stages = training.get("stages")
    stages = [each for each in stages if isinstance(each, Mapping)] if stages else []

    def numbers(name: str) -> list[Any]:
        return [each[name] for each in stages if is_number(each.get(name))]

    def total(name: str) -> Any:
        return sum(numbers(name)) if len(numbers(name)) == len(stages) > 0 else None

    cases = [each for each in numbers("validation_cases") if each]
    validated = None
    if total("validations") is not None and total("validation_cases") is not None:
        validated = sum(each["validations"] * each["validation_cases"] for each in stages)
    return {
        "parameters": training.get("parameters"),
        "steps": int(sum(numbers("last_step"))),
        "seconds": round(float(sum(numbers("seconds"))), 1),
        "flops": total("flops"),
        "validations": total("validations"),
        "validation_cases": cases[-1] if cases else total("validation_cases"),
        "validated": validated,
    }


def budget_sentence(costs: Mapping[str, Any]) -> str:
    """Whether every run looked at equally many validation cases before it chose its checkpoint.

    Args:
        costs: of `cost_of`, by run.
    """
    budgets = {name: cost["validated"] for name, cost in costs.items()}
    unknown = [name for name, budget in budgets.items() if budget is None]
    known = {name: budget for name, budget in budgets.items() if budget is not None}
    if unknown:
        return f"Validation budgets are not known for {', '.join(unknown)}."
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[least] == known[most]:
        return (
            f"Validation budgets are equal: each checkpoint was chosen by "
            f"{plain_value(known[most])} answered validation cases."
        )
    return (
        f"Validation budgets differ: from {plain_value(known[least])} answered cases ({least}) to "
        f"{plain_value(known[most])} ({most}); who looks more often can choose better."
    )
