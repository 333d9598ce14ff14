"""`python -m tests.faults.nodes [RUNS] [RECIPE]`: `ich run` on three Ray nodes that are killed and replaced at random moments.

Each node has a folder of its own; an S3 server (moto) is all that they share. After each run, every file that a record
names must be equal to that of a run on one machine.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from ich.pipeline.state import Plan
from ich.recipe import load
from ich.store.records import Record

ROOT = Path(__file__).parents[2]
NODES = 3


def main(runs: int, recipe: str, kills: bool, changes: list[str]) -> int:
    place = Path(tempfile.mkdtemp(prefix="ich-nodes-"))
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"], check=True)
    changes = [*changes, "compute.processes=1"]
    reference = clone(place / "local")
    ich(reference, "run", recipe, changes)
    wanted = hashes(reference, recipe, changes)
    failures = 0
    for number in range(runs):
        folder = place / f"run{number}"
        equal, lost, begun = one(folder, recipe, [*changes, f"store.remote=s3://bucket/{number}"], kills, number)
        found = hashes(folder / "driver", recipe, [*changes, f"store.remote=s3://bucket/{number}"])
        unequal = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        failures += bool(unequal) or not equal
        print(f"run {number}: {len(found)} files, {len(unequal)} unequal {unequal[:3]}, {lost} nodes killed, {begun:.0f} s", flush=True)
    print(f"{runs - failures} of {runs} runs are byte-identical to one machine")
    return failures


def one(folder: Path, recipe: str, changes: list[str], kills: bool, seed: int) -> tuple[bool, int, float]:
    """Run on a fresh cluster. Return whether the command succeeded, the number of killed nodes, and the seconds."""
    begun, lost, ended = time.monotonic(), 0, threading.Event()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    add = lambda k: cluster.add_node(num_cpus=1, env_vars={"ICH_ROOT": str(clone(folder / f"node{k}"))})
    nodes = [add(k) for k in range(NODES)]
    driver = clone(folder / "driver")

    def disturb() -> None:
        nonlocal lost
        chance = random.Random(seed)
        while not ended.wait(chance.uniform(5, 25)):
            k = chance.randrange(NODES)
            cluster.remove_node(nodes[k], allow_graceful=False)
            lost += 1
            nodes[k] = cluster.add_node(num_cpus=1, env_vars={"ICH_ROOT": str(clone(folder / f"node{k}-{lost}"))})

    thread = threading.Thread(target=disturb, daemon=True)
    if kills:
        thread.start()
    code = ich(driver, "run", recipe, changes, "--engine", "ray", address=cluster.address)
    ended.set()
    if kills:
        thread.join()
    cluster.shutdown()
    code += ich(driver, "pull", recipe, changes)
    return code == 0, lost, time.monotonic() - begun


def clone(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "input").mkdir()
    return folder


def ich(folder: Path, command: str, recipe: str, changes: list[str], *words: str, address: str = "") -> int:
    options = [word for change in changes for word in ("--set", change)]
    line = [sys.executable, "-m", "ich.cli", command, recipe, *words, *options]
    with (folder / f"{command}.log").open("w") as log:
        return subprocess.run(
            line, cwd=folder, env={**os.environ, "RAY_ADDRESS": address}, stdout=log, stderr=subprocess.STDOUT
        ).returncode


def hashes(folder: Path, recipe: str, changes: list[str]) -> dict[str, str]:
    """SHA-256 of every file that a record names, but for those of the demo and the report, which shows times."""
    plan, found = Plan(load(folder / recipe, [c for c in changes if not c.startswith("store")]), folder), dict[str, str]()
    for task in plan.all():
        record = task.record.read() or {"files": {}}
        if task.stage not in ("demo", "report") and Record.damaged(task.record, record) is None:
            found |= {f"{task.name}/{name}": sha for name, sha in record["files"].items()}
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], "--kill" in sys.argv, [w for w in sys.argv[3:] if "=" in w]))
