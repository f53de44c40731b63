"""The first look at a pod, and the bundle for a machine without internet."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("history", ["merged", "flat"])
def test_both_programs_compile_and_fit_on_a_slice(root, tmp_path, history):
    found = tmp_path / "found.json"
    # The flat shape has no token for a whole item, hence no item table.
    shape = ["--generator.history", history]
    shape += ["--generator.item-buckets", "0"] if history == "flat" else []
    subprocess.run(
        [
            sys.executable, "tpu_scripts/aot_check.py", "configs/synthetic.py",
            "--topology", "v5e:2x4", "--items", "500", "--json", str(found), *shape,
            "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2",
        ],
        cwd=root,
        check=True,
    )  # fmt: skip
    content = json.loads(found.read_text())
    assert content["fits"]
    for row in content["rows"]:
        assert row["devices"] == 8
        assert row["host_callbacks"] == 0
        # Sharded parameters must be gathered and gradients reduced: a design that replicates
        # everything would show no collective at all.
        assert row["collectives"].get("all-gather", 0) > 0
    assert content["rows"][0]["collectives"].get("all-reduce", 0) > 0


def test_an_unknown_topology_is_refused(root):
    done = subprocess.run(
        [sys.executable, "tpu_scripts/aot_check.py", "configs/synthetic.py", "--topology", "v9:2"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "topology 'v9:2' is unknown" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_bundle_keeps_its_limit_and_says_what_it_left_out(root, tmp_path):
    out = tmp_path / "bundle"
    done = subprocess.run(
        [sys.executable, "tpu_scripts/gpu_bundle.py", "--recipe", "configs/synthetic.py",
         "--out", str(out)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    wheels = {path.name.split("-")[0].lower() for path in (out / "wheels").iterdir()}
    assert {"jaxrec", "flax", "optax", "orbax_checkpoint", "grain"} <= wheels
    assert not {"jax", "jaxlib", "numpy"} & wheels
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert size < 60 * 2**20
    assert "left out: jax " in done.stdout
    assert any((out / "runs/.cache").glob("tokens-*"))
