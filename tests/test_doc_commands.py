"""Every `jaxrec` command that the documentation prints is run, in the order of its page.

A page is a session in a folder that holds the checkout's configs and small stand-ins for what its
reader has (a log, a finished quickstart). Recipes are run as printed, with flags appended that make
them small. What cannot run here stands in `ELSEWHERE` with the reason.
"""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrec.cli import main

pytestmark = pytest.mark.usefixtures("compile_fast", "one_device")

ROOT = Path(__file__).resolve().parent.parent

ELSEWHERE = {
    "python3 -m venv .venv": "tests/test_packaging.py makes an environment",
    "jaxrec run configs/toy_quantizer.py": "tests/test_add_a_method.py writes and runs it",
    "jaxrec run configs/beauty_decoder.py": "needs data that is not part of the project",
}
INSTALLS = (".venv/bin/python -m pip install", "python -m pip install", "pip install")
"""Beginnings of commands that install; tests/test_packaging.py installs."""
OFFLINE = ("python benchmarks/", "python tpu_scripts/", "jaxrec data fetch ")
"""Beginnings of commands that take minutes or a network; their own tests run them small."""
PROGRAMS = re.compile(r"(jaxrec|make|python3?|pip|\.venv/bin/\S+|echo|head|cat)\s")
PLACEHOLDER = re.compile(
    r"(?<![\w./-])(RECIPE|RUN|FOLDER|FILE|NAME|PATH|FORMAT|COMMAND|R)(?![\w./-])|\.\.\."
)

FAST = ("--stages.0.fit.steps", "2", "--stages.0.fit.validate-every", "2")
FAST += ("--stages.0.fit.checkpoint-every", "2", "--stages.0.fit.log-every", "1")
FAST += ("--stages.0.validation-cases", "16", "--evaluation.max-cases", "16")
FAST += ("--evaluation.bootstrap", "20")
SMALL = ("--tokenizer.quantizer.codes", "8", "--stages.0.feed.rows", "32")
SMALL += ("--evaluation.rows", "16")
SHRINK = {
    "configs/quickstart.py": (*FAST, *SMALL, "--data.source.path", "ml-100k"),
    "configs/own_data.py": (*FAST, *SMALL, "--data.min-user", "3", "--data.min-item", "0"),
    "configs/synthetic.py": FAST,
}

ALIGN = ("--stages.1.fit.steps", "2", "--stages.1.fit.validate-every", "2")
ALIGN += ("--stages.1.fit.checkpoint-every", "2", "--stages.1.fit.log-every", "1")
ALIGN += ("--stages.1.validation-cases", "16", "--stages.1.feed.rows", "4")
ALIGN += ("--stages.1.model.fit.steps", "2", "--stages.1.model.fit.validate-every", "2")
ALIGN += ("--stages.1.model.fit.checkpoint-every", "2", "--stages.1.model.windows", "32")
ALIGN += ("--stages.1.rollouts.group", "4", "--evaluation.bootstrap", "20")


def commands_of(text):
    """Commands of indented blocks and of inline code, in order; comments are cut off.

    Inline code without a path or a flag only names a command.
    """
    found = []
    pattern = r"^(?: {4}|\$ )(?P<block>\S.*)$|`(?P<inline>(?:jaxrec|make|python3?) [^`\n]+)`"
    for match in re.finditer(
        pattern, re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    ):
        line = re.sub(r"\s+#.*$", "", match["block"] or match["inline"]).strip()
        line = re.sub(r"^\.venv/bin/jaxrec", "jaxrec", line)
        complete = match["block"] or re.search(r"/|--|^make ", line)
        if complete and re.match(
            r"(jaxrec|make|python3?|pip|\.venv/bin/\S+|echo|head|cat)\s", line
        ):
            found.append(line)
    return list(dict.fromkeys(found))


def is_run(command):
    if command in ELSEWHERE or command.startswith((*INSTALLS, *OFFLINE, "make ")):
        return False
    return not PLACEHOLDER.search(command)


def pages(root):
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def furnished(root, tmp_path_factory, compile_fast, one_device):
    """What a reader has: configs, logs, and a finished quickstart (on made-up films)."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(root / "configs", folder / "configs")
    rng = np.random.default_rng(0)
    # User 196 and films 50, 172 and 181 are named in the documentation.
    rows = [(user, item) for user in range(150, 200) for item in rng.permutation(200)[:12] + 1]
    films = folder / "ml-100k"
    films.mkdir()
    lines = [f"{u}\t{i}\t3\t{881250949 + n}" for n, (u, i) in enumerate(rows)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (films / "ml-100k.inter").write_text("\n".join([header, *lines]) + "\n")
    lines = [f"{i}\tFilm {i}\t19{50 + i % 50}\tDrama {i % 7}" for i in range(1, 201)]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (films / "ml-100k.item").write_text("\n".join([header, *lines]) + "\n")
    log = "".join(f"u{u},p{i},{1600000000 + n}\n" for n, (u, i) in enumerate(rows))
    (folder / "log.csv").write_text("user_id,product_id,timestamp\n" + log)
    products = "".join(f"p{i},Product {i}\n" for i in range(1, 201))
    (folder / "products.csv").write_text("product_id,title\n" + products)
    requests = [{"user": "196"}, {"history": ["50", "181"], "count": 3, "exclude": ["172"]}, []]
    (folder / "requests.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    with contextlib.chdir(folder):
        assert main(shrunk(["jaxrec", "run", "configs/quickstart.py"])[1:]) == 0
    return folder


@pytest.fixture
def desk(furnished, tmp_path, monkeypatch):
    """The folder that the reader of one page sits in."""
    shutil.copytree(furnished, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def shrunk(words):
    """The words of a `jaxrec` command, small flags appended where it runs a recipe."""
    if words[1] == "align":
        return [*words, *ALIGN]
    if words[1] in ("run", "tokenize", "train", "evaluate", "data") and "--help" not in words:
        for config, flags in SHRINK.items():
            if config in words:
                given = {word for word in words if word.startswith("--")}
                pairs = zip(flags[::2], flags[1::2])
                return words + [part for pair in pairs if pair[0] not in given for part in pair]
    return words


def run_command(command, desk, capfd):
    words = shrunk(shlex.split(command)) if command.startswith("jaxrec") else []
    if words and not {"|", ">", "<"} & set(words):
        try:
            code = main(words[1:])
        except SystemExit as stop:  # tyro's --help
            code = stop.code or 0
    else:
        program = f"{shlex.quote(sys.executable)} -m jaxrec.cli"
        line = re.sub(r"(^|\| *)jaxrec ", rf"\1{program} ", command)
        code = subprocess.run(line, shell=True, cwd=desk, check=False).returncode
    assert code == 0, f"`{command}` ended with {code}:\n{capfd.readouterr().err[-2000:]}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs"])
def test_commands_are_found(root, name):
    if name == "README.md":
        found = commands_of((root / name).read_text())
        assert "jaxrec recommend runs/quickstart --user 196" in found
        assert "make demo" in found
    text = "    jaxrec run x.py   # why\n`jaxrec doctor --json`, `code` and `jaxrec data import`"
    assert commands_of(text) == [
        "jaxrec run x.py",
        "jaxrec doctor --json",
    ]
    assert not is_run("jaxrec run RECIPE")
    assert is_run("jaxrec run configs/synthetic.py --name R2")


def test_what_is_not_run_is_still_printed_and_there(root):
    printed = {command for page in pages(root) for command in commands_of(page.read_text())}
    assert set(ELSEWHERE) <= printed
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = {command.split()[1] for command in printed if command.startswith("make ")}
    assert {"demo", "test", "check", "test-matrix"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, f"make has no target {target}"
    for command in printed:
        for script in re.findall(r"\b(?:benchmarks|tpu_scripts)/\w+\.py", command):
            assert (root / script).is_file(), command


def pages_with_commands():
    return [
        page.relative_to(ROOT).as_posix()
        for page in pages(ROOT)
        if any(map(is_run, commands_of(page.read_text(encoding="utf-8"))))
    ]


@pytest.mark.parametrize("page", pages_with_commands())
def test_the_commands_of_a_page_run(root, desk, page, capfd):
    for command in filter(is_run, commands_of((root / page).read_text(encoding="utf-8"))):
        run_command(command, desk, capfd)
        capfd.readouterr()


def test_the_stand_in_answers_as_the_documentation_says(desk, capfd):
    run_command("jaxrec recommend runs/quickstart --history --count 3 --json", desk, capfd)
    answer = json.loads(capfd.readouterr().out)
    assert len(answer["recommendations"]) == 3
