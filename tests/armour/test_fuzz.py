"""Property-based tests of every reader and loader; benchmarks/fuzz.py runs the same for longer."""

from __future__ import annotations

import gc
import random

import fuzz_targets
import pytest
from fuzz_mutate import Files, mutate
from fuzz_seeds import SEEDS, Seed
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxrec.commands.data_import import formats

EXAMPLES = 20
QUICK = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    # A failing example is told by its number, which benchmarks/fuzz.py takes as well.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return fuzz_targets.Box(tmp_path_factory.mktemp("fuzz"))


def test_every_format_has_a_sample():
    assert set(SEEDS()) == set(formats())


@pytest.mark.parametrize("name", sorted(fuzz_targets.targets()))
def test_the_samples_are_valid(name, box):
    target = fuzz_targets.targets()[name]
    for seed in target.seeds:
        assert box.run(target, seed) == "read"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(fuzz_targets.targets()))
def test_damage_is_read_or_refused(name, box):
    target = fuzz_targets.targets()[name]

    @QUICK
    @given(st.integers(0, 2**32), st.integers(0, len(target.seeds) - 1))
    def property_holds(number, which):
        dice = random.Random(number)
        box.run(target, fuzz_targets.damaged(target, target.seeds[which], dice))

    property_holds()
    gc.collect()


@given(text=st.text(max_size=200), name=st.sampled_from(["log.csv", "log.tsv", "log.jsonl"]))
@QUICK
def test_any_text_is_read_or_refused(box, text, name):
    files: Files = {name: text.encode("utf-8", "surrogatepass")}
    box.run(fuzz_targets.targets()["tables"], Seed(files, name))


def test_damage_does_damage():
    """The mutators change almost every sample, and never the sample itself."""
    for name, target in fuzz_targets.targets().items():
        for seed in target.seeds:
            before = dict(seed.files)
            changed = [mutate(seed.files, random.Random(number)) != before for number in range(40)]
            assert sum(changed) >= 30, name
            assert seed.files == before


# What the property is worth: it must catch what it forbids.


def broken_by(load):
    return fuzz_targets.Target("x", (Seed({"a": b"1"}),), load)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda seed, inside, out: {}["missing"], "KeyError"),
        (lambda seed, inside, out: int("x"), "a library's own: ValueError"),
        (lambda seed, inside, out: (inside.parent / "stray").write_text("x"), "box/stray"),
        (lambda seed, inside, out: (inside.parent.parent / "up").mkdir(), "outside: \\['up'\\]"),
        (lambda seed, inside, out: (inside / "b").write_text("x"), "among the inputs: b"),
        (lambda seed, inside, out: (inside / "a").write_text("x"), "changed the input a"),
        (lambda seed, inside, out: refuse("x" * 3000), "a message of 3000 characters"),
        (lambda seed, inside, out: refuse(""), "without a message"),
        (lambda seed, inside, out: refuse_after(out), "left behind"),
    ],
)
def test_the_property_catches(load, message, box):
    target = broken_by(load)
    with pytest.raises(fuzz_targets.Broken, match=message):
        box.run(target, target.seeds[0])
    assert box.run(broken_by(lambda *_: None), target.seeds[0]) == "read"


def refuse(text):
    from jaxrec.checkpoint import CheckpointError

    raise CheckpointError(text)


def refuse_after(out):
    out.mkdir()
    refuse("no")
