"""The toy training job on two processes of two devices each. Run by test_hosts.py.

    python two_hosts.py PROCESS PORT FOLDER [STEP]

With STEP, process 1 sends itself SIGTERM while it fetches the batch after that step.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXREC_PROGRESS"] = "0"

import jax
import numpy as np

from jaxrec.parallel import MeshShape, make_mesh
from training.toys import Stream, run


class Half(Stream):
    """This host's half of the rows."""

    stop = -1

    def __next__(self):
        if self.at == self.stop and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        whole = super().__next__()
        first = 4 * jax.process_index()
        return {name: array[first : first + 4] for name, array in whole.items()}

    @property
    def fingerprint(self):
        return {**super().fingerprint, "host": jax.process_index()}

    def get_state(self):
        return {"at": self.at, "host": jax.process_index()}

    def set_state(self, state):
        assert state["host"] == jax.process_index()
        self.at = state["at"]


def validate(params, step):
    return {"ndcg@10": float(np.sin(step))}


def main(process: str, port: str, folder: str, stop: str = "-1") -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    stream = Half()
    stream.stop = int(stop)
    mesh = make_mesh(MeshShape(data=2, fsdp=2))
    result = run(Path(folder), mesh, batches=stream, validate=validate)
    shard = np.asarray(result.params["embedding"].addressable_shards[0].data)
    print(int(result.state.step), result.best_step, float(np.abs(shard).sum()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
