"""`python -m tests.faults.nodes RUNS RECIPE [--kill] [KEY=VALUE ...]`: `ich run` on three Ray nodes.

Each node has a folder of its own; an S3 server (moto) is all that they share. After each run, every file that a record
names must be equal to that of a run on one machine. --kill: kill and replace nodes at random moments; only steps of
killed nodes may be repeated.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from ich.pipeline.state import Plan
from ich.recipe import load
from ich.store.records import Record

ROOT = Path(__file__).parents[2]
NODES = 3
PAUSE = (8, 20)  # seconds between two kills


def main(runs: int, recipe: str, kills: bool, changes: list[str]) -> int:
    place = Path(tempfile.mkdtemp(prefix="ich-nodes-"))
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"], check=True)
    changes = [*changes, "compute.processes=1"]
    reference = clone(place / "local")
    assert start(reference, "run", recipe, changes).wait() == 0, f"ich run failed, see {reference}/run.log"
    wanted, sound = hashes(reference, recipe, changes), 0
    for number in range(runs):
        folder, said = place / f"run{number}", ""
        try:
            said = one(folder, recipe, [*changes, f"store.remote=s3://bucket/{number}"], kills, number)
            found = hashes(folder / "driver", recipe, changes)
            unequal = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            assert not unequal, f"{len(unequal)} files differ, such as {unequal[0]}"
            sound += 1
            print(f"run {number}: {len(found)} equal files, {said}", flush=True)
            shutil.rmtree(folder)
        except AssertionError as error:
            print(f"run {number}: {error} ({said})", flush=True)
    print(f"{sound} of {runs} runs are byte-identical to one machine")
    return int(sound < runs)


def one(folder: Path, recipe: str, changes: list[str], kills: bool, seed: int) -> str:
    """Run on a fresh cluster, and pull what it made. Return a summary; raises AssertionError if something is wrong."""
    begun, lost, chance = time.monotonic(), 0, random.Random(seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    add = lambda name: cluster.add_node(num_cpus=1, env_vars={"ICH_ROOT": str(clone(folder / name))})
    nodes = [add(f"node{k}") for k in range(NODES)]
    driver = clone(folder / "driver")
    running = start(driver, "run", recipe, changes, "--engine", "ray", address=cluster.address)
    while running.poll() is None:
        try:
            running.wait(chance.uniform(*PAUSE) if kills else None)
        except subprocess.TimeoutExpired:
            k, lost = chance.randrange(NODES), lost + 1
            cluster.remove_node(nodes[k], allow_graceful=False)
            nodes[k] = add(f"node{k}-{lost}")
    cluster.shutdown()
    assert running.returncode == 0, f"ich run failed, see {driver}/run.log"
    assert start(driver, "pull", recipe, changes).wait() == 0
    logs = [
        str(path.relative_to(path.parents[-1])).partition("/logs/")[2]
        for path in folder.glob("node*/oof/*/logs/**/*.log")
    ]
    repeated = len(logs) - len(set(logs))
    assert repeated <= lost, f"{repeated} steps were repeated, but only {lost} nodes were killed"
    return f"{lost} nodes killed, {repeated} of {len(set(logs))} steps repeated, {time.monotonic() - begun:.0f} s"


def clone(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "input").mkdir()
    return folder


def start(
    folder: Path, command: str, recipe: str, changes: list[str], *words: str, address: str = ""
) -> subprocess.Popen:
    options = [word for change in changes for word in ("--set", change)]
    line = [sys.executable, "-m", "ich.cli", command, recipe, *words, *options]
    environment = {**os.environ, "RAY_ADDRESS": address}
    with (folder / f"{command}.log").open("w") as log:
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def hashes(folder: Path, recipe: str, changes: list[str]) -> dict[str, str]:
    """SHA-256 of every file that a record names, but for those of the demo and the report, which shows times."""
    plan, found = Plan(load(folder / recipe, changes), folder), dict[str, str]()
    for task in plan.all():
        record = task.record.read() or {"files": {}}
        if task.stage not in ("demo", "report") and Record.damaged(task.record, record) is None:
            found |= {f"{task.name}/{name}": sha for name, sha in record["files"].items()}
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], "--kill" in sys.argv, [w for w in sys.argv[3:] if "=" in w]))
