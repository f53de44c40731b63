"""What the documentation says exists: commands, files, flags, and the README's Python."""

import re

from jaxrec.commands.overrides import parse_overrides

MADE_BY_THE_READER = (
    "configs/toy_",
    "jaxrec/tokenization/hyperplanes",
    "jaxrec/objectives/focal",
    "jaxrec/decoding/perturbed",
)


def pages(root):
    files = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in files}


def test_paths_exist(root):
    folders = "docs|configs|tests|benchmarks|tpu_scripts"
    for page, text in pages(root).items():
        for path in re.findall(rf"\b((?:{folders})/[\w./-]+\w)", text):
            if not path.startswith(MADE_BY_THE_READER):
                assert (root / path).exists(), f"{page.name} names {path}"


def test_every_run_command_parses(root):
    everything = "\n".join(pages(root).values())
    pattern = r"^\s+(?:\.venv/bin/)?jaxrec run (configs/\w+\.py)([^#\n]*)"
    commands = re.findall(pattern, everything, re.M)
    assert len(commands) >= 3
    for config, flags in commands:
        if "toy_" in config or "--help" in flags:
            continue
        parse_overrides(str(root / config), flags.split())


def test_every_component_of_the_table_exists(root):
    rows = re.findall(
        r"^\| \w+ \| (.+?) \| `([\w/]+(?:\.py|/))` \|", (root / "docs/methods.md").read_text(), re.M
    )
    assert len(rows) >= 12
    for names, path in rows:
        place = root / "jaxrec" / path
        files = [place] if place.suffix else sorted(place.glob("*.py"))
        source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", names):
            if name[0].isupper():
                assert f"class {name}" in source, f"{name} is not in {path}"


def test_the_picture_of_the_house_has_every_room(root):
    picture = (root / "docs/house.svg").read_text(encoding="utf-8")
    table = (root / "docs/concepts.md").read_text(encoding="utf-8")
    drawn = re.findall(r'class="name"[^>]*>(\w+)<', picture)
    there = {
        path.stem
        for path in (root / "jaxrec").iterdir()
        if path.name[0] not in "_." and path.stem != "py"
    }
    assert set(drawn) == there
    assert len(drawn) == len(set(drawn))
    for room in there:
        assert f"`{room}`" in table


def test_the_python_of_the_readme_runs(root, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"<a_\d+><b_\d+><c_\d+><d_\d+> \[.*\]\n", capsys.readouterr().out)
