import dataclasses
import json

import pytest

from jaxrec import recipe as recipes
from jaxrec.commands.overrides import parse_overrides
from jaxrec.recipe import load_recipe, replace, to_json


@pytest.fixture
def quickstart(root):
    return load_recipe(root / "configs/quickstart.py")


def test_every_config_survives_json(root):
    paths = sorted((root / "configs").glob("*.py"))
    assert len(paths) >= 3
    for path in paths:
        recipe = load_recipe(path)
        again = recipes.from_json(json.loads(json.dumps(to_json(recipe))))
        assert again == recipe
        assert hash(again) == hash(recipe), "a recipe is a static argument of jit"


def test_replace_reaches_nested_fields_and_tuples(quickstart):
    assert replace(quickstart, "stages.0.fit.steps", 7).stages[0].fit.steps == 7
    assert replace(quickstart, "seed", 3) == dataclasses.replace(quickstart, seed=3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("generator.layer", "Decoder has no field 'layer'.*Perhaps you meant 'layers'"),
        ("stages.4.fit", "'4' is not one of 0..0"),
    ],
)
def test_replace_names_the_nearest_field(quickstart, path, message):
    with pytest.raises(ValueError, match=message):
        replace(quickstart, path, 1)


def test_overrides_are_typed(root):
    path = str(root / "configs/quickstart.py")
    recipe, runs = parse_overrides(path, ["--generator.layers", "6", "--runs", "elsewhere"])
    assert recipe.generator.layers == 6
    assert str(runs) == "elsewhere"


@pytest.mark.parametrize("name", ["quickstart", "synthetic", "beauty_decoder", "own_data"])
def test_every_field_of_every_recipe_is_a_flag(root, name, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_overrides(str(root / f"configs/{name}.py"), ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--tokenizer.quantizer.codes" in shown
    assert "--items.encoder." in shown
    assert "{fixed}" not in shown, "a component's field is hidden by its annotation"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generator.layer", "6"], "--generator.layers"),
        (["--generator.layers", "six"], "invalid literal for int"),
        (["--generator.heads", "7"], "heads"),
    ],
)
def test_a_bad_flag_exits_with_2_and_says_why(root, capsys, words, message):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_overrides(str(root / "configs/quickstart.py"), words)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    else:
        assert message in str(caught.value)


def test_a_missing_recipe_names_the_nearest(root):
    with pytest.raises(ValueError, match=r"Perhaps you meant .*quickstart\.py"):
        load_recipe(root / "configs/quickstrat.py")


def test_a_file_without_a_recipe_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="defines no `recipe = Recipe"):
        load_recipe(tmp_path / "empty.py")


@pytest.mark.parametrize(
    "name", ["os:system", "backbones:Missing", "../x:Y", "", "backbones.decoder:Decoder"]
)
def test_only_components_are_resolved(name):
    with pytest.raises(ValueError, match="names no component"):
        recipes.resolve(name)


def test_unknown_fields_of_a_record_are_refused(quickstart):
    content = to_json(quickstart)
    content["generator"]["depth"] = 3
    with pytest.raises(ValueError, match="backbones:Decoder has no field depth"):
        recipes.from_json(content)


def test_names_cannot_leave_the_runs_folder(quickstart):
    with pytest.raises(ValueError, match="cannot be a folder"):
        dataclasses.replace(quickstart, name="../elsewhere")
