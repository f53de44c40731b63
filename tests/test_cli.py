import contextlib
import json
import subprocess
import sys

import pytest

from jaxrec.cli import COMMANDS, STAGES, main

pytestmark = pytest.mark.usefixtures("compile_fast")


def failing(capsys, *words):
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("error: ")
    return message


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with contextlib.suppress(SystemExit):  # tyro's way
        assert main([*command.split(), "--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_a_family_of_commands_lists_its_members(capsys):
    assert "data import, data describe, data fetch" in failing(capsys, "data")
    assert "Perhaps you meant `jaxrec data import`" in failing(capsys, "data", "improt", "x")


def test_no_command_is_an_error(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_a_misspelt_command_names_the_nearest(capsys):
    assert "Perhaps you meant `jaxrec tokenize`" in failing(capsys, "tokenise", "x")


@pytest.mark.parametrize("command", STAGES)
def test_a_missing_recipe_is_said(capsys, command):
    assert f"`jaxrec {command}` needs a recipe" in failing(capsys, command)
    assert "there is no recipe at nowhere.py" in failing(capsys, command, "nowhere.py")


def test_nobody_to_recommend_to(capsys, tmp_path):
    assert "nobody to recommend to" in failing(capsys, "recommend", str(tmp_path))


def test_the_traceback_is_there_for_those_who_want_it(monkeypatch):
    monkeypatch.setenv("JAXREC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no command"):
        main(["nonsense"])


def test_a_misspelt_field_ends_in_2_without_a_traceback(root):
    misspelt = ["--generator.layer", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxrec.cli", "run", "configs/synthetic.py", *misspelt],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--generator.layers" in done.stderr
    assert "Traceback" not in done.stderr


def test_recommend_prints_titles_or_json(finished, capsys):
    assert main(["recommend", str(finished), "--user", "u0", "--count", "3"]) in (0, 2)
    capsys.readouterr()
    assert main(["recommend", str(finished), "--history", "--count", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["rank"] for each in answer["recommendations"]] == [1, 2, 3]
    assert main(["recommend", str(finished), "--history", "--count", "3"]) == 0
    table = capsys.readouterr().out
    for each in answer["recommendations"]:
        assert each["title"] in table


def test_doctor_tells_devices_and_versions(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "devices: 8 x cpu" in shown
    assert "orbax-checkpoint" in shown


@pytest.mark.parametrize("config", ["synthetic", "sasrec"])
def test_doctor_foretells_a_recipe(root, capsys, config):
    recipe = str(root / f"configs/{config}.py")
    assert main(["doctor", "--recipe", recipe, "--items", "500"]) == 0
    shown = capsys.readouterr().out
    for part in ("parameters:", "GFLOP", "training step, MiB a device", "parameters on the mesh"):
        assert part in shown
