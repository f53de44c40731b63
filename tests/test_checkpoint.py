"""Checkpoints: whole or absent, bit for bit, readable on another mesh, honest when damaged."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import checkpoint
from jaxrec.checkpoint import CheckpointError, Checkpoints
from jaxrec.parallel import MeshShape, make_mesh, shardings

AXES = {"kernel": ("embed", "mlp"), "bias": (None,)}
DATA = {"next": 7, "float": 0.1, "none": None, "list": [1, 2]}
MANIFEST = {"recipe": "abc", "nested": {"a": [1, "b"]}}


def make_state(seed=0, width=8):
    generator = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(generator.normal(size=(4, width)), jnp.float32),
        "bias": jnp.asarray(generator.normal(size=width), jnp.bfloat16),
    }
    return {"params": params, "moments": (params, params), "step": jnp.int32(seed)}


def template(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, two)
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda leaf: leaf.dtype, two)


def save(checkpoints, step, state=None):
    checkpoints.save(step, state or make_state(step), data=DATA, manifest=MANIFEST)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    return folder


def test_what_was_saved_comes_back(saved):
    checkpoints = Checkpoints(saved)
    for step in (1, 2):
        state, data, manifest = checkpoints.restore(step, template(make_state()))
        assert_same(state, make_state(step))
        assert (data, manifest) == (DATA, MANIFEST)
    assert checkpoints.manifest(1) == MANIFEST


def test_a_template_without_shardings_comes_to_the_default_device(saved):
    shapes = jax.eval_shape(make_state)
    state, _, _ = Checkpoints(saved).restore(1, shapes)
    assert_same(state, make_state(1))
    assert state["params"]["kernel"].devices() == {jax.devices()[0]}


def test_parameters_alone(saved):
    params = Checkpoints(saved).restore_params(2, template(make_state()["params"]))
    assert_same(params, make_state(2)["params"])
    with pytest.raises(CheckpointError, match="'params/new' is missing there"):
        Checkpoints(saved).restore_params(
            2, {**template(make_state()["params"]), "new": jax.ShapeDtypeStruct((), jnp.int32)}
        )


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest() is None
        for step in (5, 10, 1000000001):
            save(checkpoints, step)
        checkpoints.wait()
        assert checkpoints.steps() == [10, 1000000001]
        assert checkpoints.latest() == 1000000001
        checkpoints.discard(10)
        checkpoints.discard(77)
        assert checkpoints.steps() == [1000000001]
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3, 1000000001]
    assert sorted(os.listdir(tmp_path))[0] == "000000001", "nothing hidden is left"


def test_the_state_may_be_donated_at_once(tmp_path):
    # On a CPU the host copy may alias the device buffer; a save must not see later values.
    add = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"params": [jnp.full((256, 256), float(number)) for number in range(6)]}
    shapes = template(state)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        for step in range(3):
            expected = [float(leaf[0, 0]) for leaf in state["params"]]
            checkpoints.save(step, state, data={"values": expected}, manifest={})
            for _ in range(20):
                state = add(state)
        checkpoints.wait()
        for step in range(3):
            restored, data, _ = checkpoints.restore(step, shapes)
            for leaf, value in zip(restored["params"], data["values"]):
                np.testing.assert_array_equal(leaf, value)


def test_another_mesh(tmp_path):
    cube = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    flat = make_mesh(MeshShape(data=1, fsdp=4), jax.devices()[:4])
    params = make_state()["params"]
    on_cube = jax.device_put(params, shardings(AXES, params, cube))
    assert len(on_cube["kernel"].addressable_shards[0].data) == 2
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": on_cube}, data={}, manifest={})
        checkpoints.wait()
        for mesh in (cube, flat):
            wanted = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                params,
                shardings(AXES, params, mesh),
            )
            restored = checkpoints.restore_params(1, wanted)
            assert_same(restored, params)
            assert restored["kernel"].sharding == wanted["kernel"].sharding


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(CheckpointError, match="exists already"):
            save(checkpoints, 1)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_what_is_not_json_fails_at_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, make_state(), data={"array": np.zeros(2)}, manifest={})
    assert Checkpoints(tmp_path).steps() == []


def test_published_only_after_what_it_refers_to(tmp_path):
    best, main = Checkpoints(tmp_path / "best"), Checkpoints(tmp_path / "main")
    order = []
    publish = Checkpoints._publish

    def record(self, *arguments):
        publish(self, *arguments)
        order.append(self.folder.name)

    with pytest.MonkeyPatch.context() as patch, best, main:
        patch.setattr(Checkpoints, "_publish", record)
        save(best, 1)
        main.save(1, make_state(), data={}, manifest={}, after=best)
        main.wait()
        assert order == ["best", "main"]


def test_leftovers_of_a_killed_save_do_not_count_and_are_swept(saved, tmp_path):
    for name in (".tmp-000000003", ".tmp-000000004.orbax-checkpoint-tmp", ".tmp-discarded-01"):
        shutil.copytree(saved / "000000001", tmp_path / name)
    reader = Checkpoints(tmp_path)
    assert reader.steps() == []
    assert len(os.listdir(tmp_path)) == 3, "a reader changes nothing"
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3)
    assert os.listdir(tmp_path) == ["000000003"]
    assert_same(reader.restore(3, template(make_state()))[0], make_state(3))
    shutil.copytree(saved / "000000001", tmp_path / ".tmp-000000009")
    reader.tidy()
    assert os.listdir(tmp_path) == ["000000003"]


def test_a_failed_save_is_told_and_harms_nothing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()

        def full(*arguments):
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint, "write_text", full)
        save(checkpoints, 2)
        with pytest.raises(CheckpointError, match="No space left on device\nEarlier checkpoints"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        monkeypatch.undo()
        save(checkpoints, 2)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def refuses(checkpoints, wanted, words):
    with pytest.raises(CheckpointError, match=words) as error:
        checkpoints.restore(2, wanted)
    assert len(str(error.value).splitlines()) == 2
    return str(error.value)


def test_another_model_is_told_in_two_lines(saved):
    checkpoints, wanted = Checkpoints(saved), template(make_state())
    wider = template(make_state(width=9))
    refuses(
        checkpoints,
        wider,
        r"'moments/0/bias' is bfloat16\[8\] there and bfloat16\[9\] here \(and 5 more\)",
    )
    other = {**wanted, "step": jax.ShapeDtypeStruct((), jnp.float32)}
    refuses(checkpoints, other, r"'step' is int32\[\] there and float32\[\] here\.")
    refuses(checkpoints, {**wanted, "more": wanted["step"]}, "'more' is missing there")
    refuses(checkpoints, {"params": wanted["params"]}, "'moments/0/bias' is there and not here")


def test_an_absent_step_lists_the_others(saved):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .* there are: 1, 2"):
        Checkpoints(saved).restore(3, template(make_state()))


@pytest.mark.parametrize("how", ["truncate", "flip", "remove"])
def test_every_damaged_file_is_found(saved, tmp_path, how):
    wanted = template(make_state())
    whole = saved / "000000002"
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) > 5
    shutil.copytree(saved / "000000001", tmp_path / "000000001")
    for name in names:
        damaged = tmp_path / "000000002"
        shutil.copytree(whole, damaged)
        content = (damaged / name).read_bytes()
        if how == "remove" or not content:
            (damaged / name).unlink()
        elif how == "truncate":
            (damaged / name).write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 1])
            (damaged / name).write_bytes(content[:middle] + flipped + content[middle + 1 :])
        text = refuses(Checkpoints(tmp_path), wanted, "is damaged")
        assert str(name) in text
        assert text.endswith("Delete that folder; the run then goes on from step 1.")
        shutil.rmtree(damaged)


def test_another_format_is_refused(saved, tmp_path):
    shutil.copytree(saved / "000000002", tmp_path / "000000002")
    path = tmp_path / "000000002" / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["format"] = 99
    path.write_text(json.dumps({**record, "checksum": checkpoint._seal(record)}))
    refuses(Checkpoints(tmp_path), template(make_state()), "format 99, this is for 1")


def test_another_number_of_hosts_is_refused(saved, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    refuses(Checkpoints(saved), template(make_state()), r"of 1 host\(s\), this run has 2")


def test_ambiguous_paths_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="same path"):
        checkpoints.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, data={}, manifest={})
