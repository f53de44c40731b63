"""benchmarks/quality.py: killed between rows and resumed; rows, means, verdicts and tables."""

import dataclasses
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from jaxrec.evaluation.compare_views import as_html, as_markdown
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranks import CaseRanks, write_ranks
from jaxrec.evaluation.report import compare_ranks, row_from_ranks, write_report
from jaxrec.files import write_json

RECIPE = """
from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import LeaveOneOut
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.decoding import InnerProduct
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.recipe import Data, Evaluation, Recipe
from jaxrec.representation import NoVectors
from jaxrec.tokenization import ItemIds
from jaxrec.training.loop import FitOptions
from jaxrec.training.optimizers import AdamW
from jaxrec.training.supervised import Supervised

recipe = Recipe(
    name="tiny",
    data=Data(source=SyntheticWorld(items=40, users=80), split=LeaveOneOut()),
    items=NoVectors(),
    tokenizer=ItemIds(),
    generator=SasRec(layers=1, width=8, heads=1, length=8),
    stages=(
        Supervised(
            ItemSoftmax(),
            feed=UserCentric(length=8, rows=8),
            optimizer=AdamW(learning_rate=1e-3, warmup_steps=1),
            fit=FitOptions(steps=2, validate_every=1, checkpoint_every=2),
            validation_cases=16,
        ),
    ),
    decoding=InnerProduct(k=10),
    evaluation=Evaluation(
        cutoffs=(5, 10), history=7, rows=16, max_cases=32, bootstrap=20, examples=0
    ),
)
"""


@pytest.fixture(scope="module")
def modules(root):
    """The benchmark's modules by name."""
    sys.path.insert(0, str(root / "benchmarks"))
    names = ("quality", "quality_cells", "quality_rows", "quality_table")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(root / "benchmarks"))


def test_a_killed_benchmark_goes_on_and_a_failure_stops_nothing(root, tmp_path, compile_fast):
    (tmp_path / "tiny.py").write_text(RECIPE)
    state, numbers = tmp_path / "state", tmp_path / "q.json"
    recipe = tmp_path / "tiny.py"
    words = [
        sys.executable, str(root / "benchmarks/quality.py"), "--datasets", "recipe",
        "--protocols", "file", "--methods", f"one={recipe}", f"two={recipe}", "bad=nowhere.py",
        "--state", str(state), "--json", str(numbers), "--markdown", str(tmp_path / "q.md"),
        "--html", str(tmp_path / "q.html"),
    ]  # fmt: skip
    # Conftest's eight devices are of no use here.
    environment = os.environ | {"XLA_FLAGS": "", "JAXREC_PROGRESS": "0"}
    job = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    second = state / "runs/recipe-two-file-s0"
    deadline = time.monotonic() + 300
    while not second.is_dir() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert json.loads(numbers.read_text())["finished"] == 1
    first = state / "runs/recipe-one-file-s0/report.json"
    before = first.stat().st_mtime_ns
    assert not (second / "report.json").is_file()

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 3 cells are finished already" in done.stdout
    assert "one" not in done.stdout.replace("done", "")
    assert "2 of 3 cells finished; failed: ['recipe-bad-file-s0']" in done.stdout
    assert first.stat().st_mtime_ns == before
    content = json.loads(numbers.read_text())
    (failed,) = content["failed"]
    assert failed["run"] == "recipe-bad-file-s0"
    assert "there is no recipe at nowhere.py" in failed["error"]
    assert str(tmp_path) not in json.dumps([content["rows"], content["failed"]]).replace(
        str(recipe), ""
    )
    methods = [row["method"] for row in content["rows"]]
    assert methods.count("popularity") == 1
    assert {"one", "two"} < set(methods)
    one, two = (row for row in content["rows"] if row["method"] in ("one", "two"))
    assert one["metrics"] == two["metrics"]  # one recipe, one seed
    assert (one["validations"], one["validations_allowed"], one["validation_cases"]) == (2, 2, 16)
    assert one["flops"] > 0
    assert content["machines"][one["machine"]]["versions"]["jax"]
    text = (tmp_path / "q.md").read_text()
    assert "recipe-bad-file-s0 failed: exit code 2" in text
    assert (tmp_path / "q.html").read_text().count("<svg") == 2


PROTOCOL = Protocol(dataset="toy", num_users=40, num_items=9, num_events=400, num_cases=40)
POPULAR = np.array([1, 0, 0, 0] * 10)
COUNTED = np.array([1] * 16 + [0] * 24)
GOOD = [1] * 30 + [0] * 10
WEAK = [1] * 4 + [0] * 36
FAIR = [1] * 20 + [0] * 20


def make_run(state, cell, trained, method="generator", validations=6):
    """A finished cell as it lies on disk."""
    folder = state / "runs" / cell.name
    protocol = dataclasses.replace(
        PROTOCOL,
        tie_policy=cell.protocol,
        seed=cell.seed,
        decoder="BeamSearch" if method == "generator" else "InnerProduct",
    )
    found = {"popularity": POPULAR, "transitions": COUNTED, method: np.asarray(trained)}
    common: dict[str, Any] = {"seen_masked": True, "draws": 50}
    rows = [
        row_from_ranks(name, ranks, protocol, seconds=0.5, cutoffs=(5, 10), **common)
        for name, ranks in found.items()
    ]
    comparison = compare_ranks(method, found[method], "popularity", POPULAR, seed=0, **common)
    ranks = CaseRanks(
        "same", np.arange(40, dtype=np.int32), tuple((name, "item", True) for name in found),
        np.stack(list(found.values())).astype(np.int32),
    )  # fmt: skip
    stage = {
        "best_step": 50, "last_step": 60, "stopped": "early", "seconds": 2.5, "flops": 1e12,
        "validations": validations, "validation_cases": 100,
    }  # fmt: skip
    extra = {
        "ranks": {
            "file": write_ranks(folder, ranks).name,
            "cases": ranks.cases,
            "fingerprint": ranks.fingerprint,
        },
        "training": {"parameters": 1200, "stages": [stage]},
    }
    fit = {"steps": 10 * validations, "validate_every": 10}
    write_json(folder / "recipe.json", {"class": "recipe:Recipe", "stages": [{"fit": fit}]})
    write_report(folder, protocol, rows, extra, comparisons=[comparison])


@pytest.fixture
def world(modules, tmp_path):
    """Two orders of ties, two seeds, a retriever and two generators, one of them unfinished."""
    cells = modules["quality_cells"].plan(
        ["beauty"], ["file", "shuffle:0"], [0, 1], ["sasrec-ce", "tiger", "decoder"]
    )
    for cell in cells:
        if cell.method == "sasrec-ce":
            make_run(tmp_path, cell, FAIR, method="retriever")
        elif cell.method == "tiger":
            make_run(tmp_path, cell, GOOD if cell.seed else WEAK)
    gone = next(cell for cell in cells if cell.method == "decoder")
    record = {"command": "jaxrec run x", "seconds": 1.0, "error": "exit code 1: no memory"}
    write_json(tmp_path / "cells" / f"{gone.name}.json", record)
    return cells, tmp_path


def test_rows_are_paired_with_the_best_baseline_of_their_seed(modules, world):
    cells, state = world
    content = modules["quality_rows"].collect(cells, state)
    assert content["failed"] == [
        {"run": "beauty-decoder-file-s0", "error": "exit code 1: no memory"}
    ]
    assert len(content["waiting"]) == 3
    assert content["finished"] == 8
    rows = [row for row in content["rows"] if row["protocol"] == "file"]
    assert [(row["method"], row["seed"], row["kind"]) for row in rows] == [
        ("popularity", None, "untrained"), ("transitions", None, "untrained"),
        ("sasrec-ce", 0, "retriever"), ("tiger", 0, "generator"),
        ("sasrec-ce", 1, "retriever"), ("tiger", 1, "generator"),
    ]  # fmt: skip
    tiger = {row["seed"]: row for row in rows if row["method"] == "tiger"}
    wanted = compare_ranks(
        "tiger", np.array(WEAK), "sasrec-ce", np.array(FAIR), seen_masked=True, seed=0
    )
    found = tiger[0]["against"]["recall@10"]
    assert found["baseline"] == "sasrec-ce"
    assert (found["difference"], found["p_value"]) == (wanted.difference, wanted.p_value)
    # Three rows were paired: popularity and transitions are nearer, so this p is the smallest.
    assert found["p_holm"] == pytest.approx(3 * wanted.p_value)
    assert [tiger[seed]["verdict"] for seed in (0, 1)] == ["loses to the best baseline", "ahead"]
    assert rows[2]["verdict"] == "the best baseline"
    assert (tiger[0]["parameters"], tiger[0]["flops"], tiger[0]["best_step"]) == (1200, 1e12, 50)
    assert (tiger[0]["validations"], tiger[0]["validations_allowed"]) == (6, 6)


def test_means_and_deviations_are_those_of_the_runs(modules, world):
    content = modules["quality_rows"].collect(*world)
    tiger = [each for each in content["summary"] if each["method"] == "tiger"]
    assert [each["family"] for each in tiger] == ["file", "shuffle"]
    values = [sum(WEAK) / 40, sum(GOOD) / 40]
    assert tiger[0]["mean"]["recall@10"] == pytest.approx(statistics.mean(values))
    assert tiger[0]["deviation"]["recall@10"] == pytest.approx(statistics.stdev(values))
    assert tiger[0]["difference"]["recall@10"] == pytest.approx(statistics.mean(values) - 0.5)
    assert tiger[0]["verdicts"] == {"loses to the best baseline": 1, "ahead": 1}
    assert (tiger[0]["verdict"], tiger[0]["seeds"], tiger[1]["tie_seeds"]) == ("mixed", [0, 1], [0])
    counted = next(each for each in content["summary"] if each["method"] == "transitions")
    assert (counted["runs"], counted["deviation"]["recall@10"]) == (1, None)


def test_the_tables_have_the_orders_of_ties_side_by_side(modules, world):
    cells, state = world
    content = modules["quality_rows"].collect(cells, state) | {"machine": {}, "command": "python x"}
    parts = modules["quality_table"].parts_of(content)
    text = as_markdown(parts)
    (header,) = [line for line in text.splitlines() if "Recall@5, file order" in line]
    assert "Recall@5, ties shuffled" in header
    assert "| tiger | 0.4250 ± 0.4596 | " in text
    assert "Generators that lose to the best baseline: tiger (file, seed 0), tiger (shuffle" in text
    assert "Validation budgets are equal: at most 6 validations of 100 cases" in text
    assert "beauty-decoder-file-s0 failed: exit code 1: no memory" in text
    page = as_html(parts, title="q")
    assert page.count("<svg") == 4  # methods, and accuracy over cost, for each order of ties
    assert ">sasrec-ce</text>" in page
    make_run(state, cells[0], FAIR, method="retriever", validations=60)
    again = modules["quality_rows"].collect(cells, state) | {"machine": {}, "command": "python x"}
    told = as_markdown(modules["quality_table"].parts_of(again))
    assert (
        "Validation budgets differ: at most 60 x 100 cases for sasrec-ce; at most 6 x 100" in told
    )


def test_cells_carry_their_flags(modules):
    plan = modules["quality_cells"].plan
    cells = plan(["sports", "ml-1m"], ["file", "shuffle:2"], [3], ["tiger"], ["--seed", "9"])
    assert [cell.name for cell in cells] == [
        "sports-tiger-file-s3", "sports-tiger-shuffle2-s3", "ml-1m-tiger-file-s3",
    ]  # fmt: skip
    words = cells[1].words()
    assert words[:2] == ["run", "configs/tiger_cpu.py"]
    assert words[words.index("--data.ties") + 1] == "shuffle:2"
    fields = words.index("--items.text.fields")
    assert words[fields + 1 : fields + 3] == ["title_words", "brand_and_categories"]
    assert words[-2:] == ["--seed", "9"]
    for wrong, message in (
        ((["books"], ["file"], [0], ["all"]), "there is no data set 'books'; choose from beauty"),
        ((["beauty"], ["shuffle"], [0], ["all"]), "protocol 'shuffle' is none of file, item and"),
        ((["beauty"], ["file"], [0], ["hstu"]), "there is no method 'hstu'; choose from sasrec-ce"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(*wrong)
