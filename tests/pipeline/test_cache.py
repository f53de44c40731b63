import threading

import pytest

from jaxrec.parallel import MeshShape
from jaxrec.pipeline.cache import open_artefact, run_stage


def stage(tmp_path, component, calls, *, seed=0, run="run"):
    def work(folder):
        calls.append(component)
        (folder / "out.txt").write_text(f"{component} {seed}")

    return run_stage(
        "toy", component, {"seed": seed}, work, cache=tmp_path / ".cache", run_folder=tmp_path / run
    )


def test_equal_components_and_inputs_run_once(tmp_path):
    calls = []
    first = stage(tmp_path, MeshShape(data=2), calls)
    again = stage(tmp_path, MeshShape(data=2), calls, run="other")
    assert len(calls) == 1
    assert (first.was_cached, again.was_cached) == (False, True)
    assert first.content == again.content
    assert (tmp_path / "other/toy/out.txt").read_text() == (
        tmp_path / "run/toy/out.txt"
    ).read_text()
    stage(tmp_path, MeshShape(data=2), calls, seed=1)
    stage(tmp_path, MeshShape(data=3), calls)
    assert len(calls) == 3


def test_a_default_field_does_not_change_the_key(tmp_path):
    calls = []
    stage(tmp_path, MeshShape(data=2), calls)
    stage(tmp_path, MeshShape(data=2, fsdp=1), calls)
    assert len(calls) == 1


def test_a_failed_stage_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run_stage("toy", MeshShape(), {}, fail, cache=tmp_path / "c", run_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [each.name for each in (tmp_path / "c").iterdir() if each.is_dir()] == []


def test_a_damaged_copy_is_mended_from_the_cache(tmp_path):
    calls = []
    stage(tmp_path, MeshShape(), calls)
    damaged = tmp_path / "run/toy/out.txt"
    damaged.unlink()
    damaged.write_text("half")
    with pytest.raises(ValueError, match="does not hold what was published"):
        open_artefact(tmp_path / "run/toy")
    stage(tmp_path, MeshShape(), calls)
    assert len(calls) == 1
    open_artefact(tmp_path / "run/toy")


def test_concurrent_workers_wait_for_the_first(tmp_path):
    calls, results = [], []
    barrier = threading.Barrier(4)

    def work(folder):
        calls.append(1)
        (folder / "out.txt").write_text("x")

    def worker(number):
        barrier.wait()
        results.append(
            run_stage(
                "toy",
                MeshShape(),
                {},
                work,
                cache=tmp_path / "c",
                run_folder=tmp_path / f"run{number}",
            )
        )

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(calls) == 1
    assert len({result.content for result in results}) == 1
