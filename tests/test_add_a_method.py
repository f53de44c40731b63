"""A reader who follows docs/add-a-method.md gets working methods: one file and one config each."""

import importlib
import re
import sys

import pytest

from jaxrec.cli import main
from jaxrec.evaluation.report import read_report
from jaxrec.tokenization import Quantizer

pytestmark = pytest.mark.usefixtures("compile_fast", "one_device")

TOYS = {
    "quantizer": "jaxrec/tokenization/hyperplanes.py",
    "loss": "jaxrec/objectives/focal.py",
    "decoder": "jaxrec/decoding/perturbed.py",
}


def files_of_the_page(root):
    page = (root / "docs/add-a-method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    return dict(blocks)


@pytest.mark.parametrize("kind", TOYS)
def test_a_toy_takes_one_file_and_one_config(kind, root, tmp_path, monkeypatch, capsys):
    files = files_of_the_page(root)
    module, config = TOYS[kind], f"configs/toy_{kind}.py"
    assert {TOYS[each] for each in TOYS} | {f"configs/toy_{each}.py" for each in TOYS} == set(files)
    for name in (module, config):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(files[name], encoding="utf-8")
    wing = importlib.import_module(".".join(module.split("/")[:2]))
    monkeypatch.setattr(wing, "__path__", [*wing.__path__, str((tmp_path / module).parent)])
    monkeypatch.chdir(root)
    arguments = ["run", str(tmp_path / config), "--runs", str(tmp_path / "runs")]
    small = ["--stages.0.fit.steps", "2", "--evaluation.max-cases", "64"]
    small += ["--stages.0.validation-cases", "64", "--evaluation.bootstrap", "20"]
    assert main([*arguments, *small]) == 0, capsys.readouterr().err
    report = read_report(tmp_path / "runs" / f"toy-{kind}")
    assert {row["method"] for row in report["rows"]} >= {"popularity", "transitions", "generator"}
    record = (tmp_path / "runs" / f"toy-{kind}" / "recipe.json").read_text(encoding="utf-8")
    toy = module.removesuffix(".py").replace("/", ".")
    (added,) = [
        name for name, value in vars(sys.modules[toy]).items()
        if isinstance(value, type) and value.__module__ == toy
    ]  # fmt: skip
    assert f'"{module.split("/")[1]}:{added}"' in record
    if kind == "quantizer":
        assert isinstance(getattr(sys.modules[toy], added)(), Quantizer)
    # The record alone is enough to find the class again.
    assert main(["recommend", str(tmp_path / "runs" / f"toy-{kind}"), "--history"]) == 0
    assert "  1. " in capsys.readouterr().out
