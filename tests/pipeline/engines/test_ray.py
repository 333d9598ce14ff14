"""The Ray engine on a cluster of three nodes, which are processes of this machine."""

import json
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from ich.errors import UserError
from ich.pipeline.engines import Step
from ich.pipeline.engines import ray as engine
from tests.pipeline.engines.fake import STEPS, Fake, recipe

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Reserving(Fake):
    """Write what Ray has reserved for each step too."""

    def __call__(self, name: str, note: str = "") -> None:
        reserved = ray.get_runtime_context().get_assigned_resources()
        super().__call__(name, f" {reserved.get('CPU', 0):g} CPU {reserved.get('GPU', 0):g} GPU")


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")  # of the workers
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", nodes.address)
        nodes.add_node(num_cpus=3, num_gpus=1)
        nodes.add_node(num_cpus=2)
        yield nodes
        nodes.shutdown()


@pytest.mark.usefixtures("cluster")
def test_steps_run_after_those_that_they_need_with_cores_and_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)
    make = Reserving(tmp_path)
    steps = [*STEPS, Step("many", cores=64), Step("bug"), Step("killed"), Step("after", ("killed",))]
    results = engine.run(steps, make, recipe(compute={"gpus_per_fold": 0.5}), tmp_path)
    assert {result.name: result.error for result in results} == {
        "prepare": "",
        "cnn/a/fold0": "",
        "cnn/a/fold1": "",
        "cnn/a": "",
        "cnn/bad": "cnn/bad is not readable",
        "many": "",
        "bug": "KeyError: 'x'",
        "killed": "its worker or node was lost 2 times (WorkerCrashedError)",
    }
    lines = [line for line in make.made if not line.startswith("many")]
    assert lines[0] == "prepare 2 CPU 0 GPU", "the smallest node"
    assert sorted(lines[1:-1]) == ["cnn/a/fold0 1 CPU 0.5 GPU", "cnn/a/fold1 1 CPU 0.5 GPU"]
    assert lines[-1] == "cnn/a 1 CPU 0 GPU"
    assert "many 2 CPU 0 GPU" in make.made, "the smallest node again"


@pytest.mark.parametrize(
    ("gpus", "wanted", "reserved"), [(0, None, 0), (4, None, 1), (4, 0.5, 0.5), (4, 0, 0), (0, 1, 1)]
)
def test_a_fold_gets_one_gpu_by_default_if_there_is_any(monkeypatch, capsys, gpus, wanted, reserved):
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": gpus}}, {"Alive": False, "Resources": {"GPU": 9}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    found = engine._resources(Step("fold", on_gpu=True), recipe(compute={"gpus_per_fold": wanted}))
    assert found == {"num_cpus": 1, "num_gpus": reserved}
    assert ("no node has a GPU" in capsys.readouterr().out) == (reserved > gpus)


def test_the_example_of_a_cluster_satisfies_the_schema_of_ray():
    config = yaml.safe_load((ROOT / "configs/cluster/ray.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    assert f"ray:{ray.__version__}-" in config["docker"]["image"]


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "Connection refused"), ("here", "Invalid address")])
def test_a_wrong_address_is_refused_at_once(monkeypatch, tmp_path, address, why):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS={address}: .*{why}.* unset it$"):
        list(engine.run([Step("a")], Fake(tmp_path), recipe(), tmp_path))
