"""Cluster files: those that are shipped pass, and each fault is found in a copy that has it."""

import copy
import socket
import sys
from pathlib import Path

import pytest
import ray
import yaml

from dsn_ray.checks import here
from dsn_ray.cluster import Need, check_cluster_file, main
from tests.data.trees import write

FILES = Path("cluster")
SHIPPED = ("gpu.yaml", "local.yaml", "kuberay.yaml", "slurm.sh")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user with a token and a key."""
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def faults(tmp_path):
    """What is found in a copy of a shipped file in which one text is replaced by another."""

    def found(name, old, new, need=None):
        text = (FILES / name).read_text()
        assert old in text
        path = tmp_path / name
        path.write_text(text.replace(old, new))
        return [str(fault) for fault in check_cluster_file(path, need, template=True)]

    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_passes(name):
    assert check_cluster_file(FILES / name, template=True) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_whoever_uses_it_is_told_of_each_placeholder_once(name):
    found = check_cluster_file(FILES / name)
    assert found
    assert all(fault.is_placeholder for fault in found)
    if name == "gpu.yaml":
        assert [fault.key for fault in found] == [
            "metadata.machine_image",
            "metadata.head_profile",
            "metadata.worker_profile",
            "docker.run_options[0]",
        ]


HEAD_START = "RAY_AUTH_MODE=token ray start --head"
RULE = """
  security_group:
    IpPermissions:
      - {IpProtocol: tcp, FromPort: 22, ToPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}"""


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("upscaling_speed", "upscaling_sped", "the file", "'upscaling_sped' was unexpected"),
        ("max_workers: 2\nidle", "max_workers: two\nidle", "max_workers", "'two' is not of type"),
        ("head_node_type: head", "head_node_type: hed", "the file", "must be one of `available"),
        ("min_workers: 0", "min_workers: 3", "the file", "smaller than the sum of `min_workers`"),
        ("region: *region", "", "provider.region", "it is missing; give one such as us-west-2"),
        ("&region us-west-2", "&region us-west-9", "provider.region", "no region us-west-9; give"),
        ("us-west-2a,", "us-east-1a,", "availability_zone", "us-east-1a is no zone of the region"),
        ("2.60.0-py311-gpu", "2.59.0-py311-gpu", "docker.image", f"not of Ray {ray.__version__}"),
        ("2.60.0-py311-gpu", "latest", "docker.image", "not of Ray"),
        (":2.60.0-py311-gpu", "", "docker.image", "has no tag"),
        ("2.60.0-py311-gpu", "2.60.0-py310-gpu", "docker.image", "add -py311"),
        ("2.60.0-py311-gpu", "2.60.0-py311-cpu", "docker.image", "sees no GPU; end the tag in"),
        ("g6.12xlarge #", "g6.13xlarge #", "gpu.node_config.InstanceType", "g6.12xlarge"),
        ("g6.12xlarge #", "g6.4xlarge #", "gpu.resources.CPU", "g6.4xlarge has 16 CPUs"),
        ("g6.12xlarge #", "g6.4xlarge #", "gpu.resources.GPU", "has 1 GPU; give 1"),
        ("{CPU: 8}", "{CPU: 8, GPU: 1}", "head.resources.GPU", "has 0 GPUs; leave it out"),
        ("{CPU: 8}", "{}", "head.resources.CPU", "it is missing, and m6i.2xlarge has 8 CPUs"),
        ("VolumeSize", "VolumeSise", "BlockDeviceMappings[0].Ebs.VolumeSise", "mean VolumeSize?"),
        ("InstanceMarketOptions", "InstanceMarketOption", "gpu.node_config", "no such key"),
        ("MarketType: spot", "MarketType: spots", "InstanceMarketOptions", "market spots does"),
        ("{Name: *worker_profile}", "{}", "IamInstanceProfile", "cannot reach the bucket"),
        ("ImageId: *ami", "EbsOptimized: true", "head.node_config.ImageId", "it is missing"),
        (
            "InstanceType: m6i.2xlarge",
            "InstanceType: m6i.2xlarge\n      InstanceMarketOptions: {MarketType: spot}",
            "available_node_types.head.node_config.InstanceMarketOptions",
            "a spot head takes the whole run with it",
        ),
        ("project: .\n", "project: ./nowhere\n", "file_mounts./home/ray/project", "does not exist"),
        ("  /home/ray/project: .\n", "", "file_mounts", "the project reaches no node"),
        ("~/.ray/auth_token\n", "~/no/.ray/auth_token\n", "auth_token", "ray get-auth-token"),
        ("/home/ray/.ray/auth_token: ~/.ray/auth_token", "", "file_mounts", "reaches no node"),
        ("127.0.0.1", "0.0.0.0", "head_start_ray_commands", "the dashboard is bound to 0.0.0.0"),
        ("=127.0.0.1", " 0.0.0.0", "head_start_ray_commands", "the dashboard is bound to 0.0.0.0"),
        (HEAD_START, "ray start --head", "head_start_ray_commands", "without a token"),
        (
            "RAY_AUTH_MODE=token ray start --address",
            "ray start --address",
            "worker_start_ray_commands",
            "without a token",
        ),
        (HEAD_START, "echo", "head_start_ray_commands", "no command starts Ray"),
        ("--autoscaling-config=~", "--labels-file=~", "head_start_ray_commands", "no autoscaler"),
        ("--env RAY_AUTH_MODE=token", "--env RAY_AUTH_TOKEN=abc", "docker.run_options", "secret"),
        ("--constraint constraints.txt", "", "setup_commands", "locked versions"),
        ("--editable '", "ray[default]==2.59.0 '", "setup_commands", "they install Ray 2.59.0"),
        ("  cache_stopped_nodes: false", f"  region: us-west-2{RULE}", "IpPermissions[0]", "8265"),
        ("type: external", "type: gcp", "provider.type", "gcp is not checked here; give aws or"),
        ("SpotThenOnDemand", "Spot", "provider.type", "external is not checked here"),
        ("type: external", "type: aws", "provider.type", "module: dsn_ray.spot.SpotThenOnDemand"),
        (
            "availability_zone:",
            "availability_zones:",
            "provider.availability_zones",
            "did you mean",
        ),
        (
            "  cache_stopped_nodes: false",
            "  aws_credentials: {aws_secret_access_key: abc}",
            "provider.aws_credentials.aws_secret_access_key",
            "a secret is written there",
        ),
        ("--env RAY_AUTH_MODE=token", "--env HF_TOKEN=abc", "docker.run_options[1]", "a secret"),
        (
            "    - --env RAY_AUTH_MODE=token\n",
            "",
            "docker.run_options",
            "is refused; add --env RAY",
        ),
        ("  - ray stop\n", "  - export API_KEY='abc'\n", "head_start_ray_commands[0]", "a secret"),
        (
            "max_workers: 2\nidle",
            "max_workers: 0\nidle",
            "max_workers",
            "no machine with a GPU may",
        ),
        (
            "    max_workers: 2",
            "    max_workers: 0",
            "max_workers",
            "no machine with a GPU may come",
        ),
        (
            "HEAD_IP:6379",
            "HEAD_IP:6380",
            "worker_start_ray_commands",
            "at port 6380, and it listens",
        ),
    ],
)
def test_a_file_for_aws(faults, old, new, key, words):
    found = faults("gpu.yaml", old, new)
    assert any(key in fault.split(": ")[0] and words in fault for fault in found), found


def test_the_defaults_that_ray_fills_in_are_checked(faults):
    text = (FILES / "gpu.yaml").read_text()
    less = text[: text.index("head_start_ray_commands")].replace("type: external", "type: aws")
    found = faults("gpu.yaml", text, less.replace("{MarketType: spot}", "{MarketType: on-demand}"))
    assert [fault.split(":")[0] for fault in found] == [
        "head_start_ray_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ]
    assert "the dashboard is bound to 0.0.0.0" in found[1]


def test_every_fault_is_told(faults):
    found = faults("gpu.yaml", "us-west-2a,us-west-2b,us-west-2c", "us-east-1a,us-west-2b,nowhere")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("type: local", "type: lokal", "provider.type", "lokal is not checked here"),
        ("  head_ip: EDIT-head-address", "", "the file", "Please supply a `head_ip`"),
        ("[EDIT-worker-address]", "[a, b, a]", "provider.worker_ips", "a is there twice"),
        ("ssh_user: EDIT-user", "", "auth.ssh_user", "it is missing"),
        ("id_ed25519", "id_nobody", "auth.ssh_private_key", "there is no file ~/.ssh/id_nobody"),
        ("127.0.0.1", "0.0.0.0", "head_start_ray_commands", "the dashboard is bound to 0.0.0.0"),
        ("RAY_AUTH_MODE=token ", "", "worker_start_ray_commands", "without a token"),
        ("  worker_ips:", "  worker_ip:", "provider.worker_ip", "did you mean worker_ips?"),
    ],
)
def test_a_file_for_ones_own_machines(faults, old, new, key, words):
    found = faults("local.yaml", old, new)
    assert any(key in fault.split(": ")[0] and words in fault for fault in found), found


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("ray.io/v1", "ray.io/v1alpha1", "RayCluster.apiVersion", "give ray.io/v1"),
        ("rayVersion: 2.60.0", "rayVersion: 2.59.0", "RayCluster.spec.rayVersion", "2.60.0"),
        ("dsn-ray:2.60.0", "dsn-ray:latest", "headGroupSpec.template", "not of Ray"),
        ("dsn-ray:2.60.0", "dsn-ray", "workerGroupSpecs[0].template", "has no tag"),
        ("ClusterIP", "LoadBalancer", "headGroupSpec.serviceType", "reached from outside"),
        ("ClusterIP", "NodePort", "headGroupSpec.serviceType", "a NodePort is reached"),
        ("mode: token", "mode: disabled", "headGroupSpec.template", "without a token"),
        ("nvidia.com/gpu: 1", "", "workerGroupSpecs[0]", "a worker gets no GPU"),
        ("minReplicas: 0", "minReplicas: 5", "workerGroupSpecs[0]", "maxReplicas is needed"),
        ("enableInTreeAutoscaling: true", "", "enableInTreeAutoscaling", "and none comes"),
        ("groupName: gpu", "groupName:", "groupName", "it is missing"),
        ("name: dsn-ray-sweep", "nam: x", "RayJob.metadata.name", "a kind and a name"),
        ("maxReplicas", "maxReplica", "workerGroupSpecs[0].maxReplica", "did you mean maxRepl"),
        ("authOptions", "authOption", "RayCluster.spec.authOption", "did you mean authOptions"),
        ("entrypoint:", "entryPoint:", "RayJob.spec.entryPoint", "did you mean entrypoint"),
        ("cluster: dsn-ray}", "cluster: other}", "clusterSelector", "no RayCluster other"),
        ("clusterSelector", "metadata", "RayJob.spec", "on which cluster it runs"),
        ("secretName:", "secretNames:", "authOptions.secretNames", "did you mean secretName?"),
        ("idleTimeoutSeconds", "idleTimeout", "autoscalerOptions.idleTimeout", "no such key"),
        (
            "mountPath",
            "mountpath",
            "headGroupSpec.template.spec.containers[0].volumeMounts",
            "Path?",
        ),
        ("{name: runs, m", "{name: run, m", "containers[0].volumeMounts", "has no volume run; add"),
        (
            "claimName: dsn-ray-runs",
            "claimName: runs",
            "spec.volumes",
            "no PersistentVolumeClaim runs",
        ),
        ('cpu: "8"', 'cpu: "6"', "workerGroupSpecs[0]", "hold no worker with 7 CPUs and 1 GPU"),
        (
            "--workers 2",
            "--workers 5",
            "the whole cluster",
            "it has room for 4 workers with 7 CPUs",
        ),
        (
            '            resources:\n              limits: {cpu: "4"',
            "            env: [{name: HF_TOKEN, value: abc}]\n"
            '            resources:\n              limits: {cpu: "4"',
            "headGroupSpec.template.spec.containers[0].env[0].HF_TOKEN",
            "a secret is written there",
        ),
        ("kind: Ray", "kind: X", "kind", "neither a RayCluster nor a RayJob"),
    ],
)
def test_manifests_for_kubernetes(faults, old, new, key, words):
    found = faults("kuberay.yaml", old, new)
    assert any(key in fault.split(": ")[0] and words in fault for fault in found), found


BY_REFERENCE = {"valueFrom": {"secretKeyRef": {"name": "dsn-ray-token", "key": "auth_token"}}}


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (BY_REFERENCE, []),
        ({"value": "abc"}, ["a secret is written there"] * 2 + ["without a token"] * 2),
        ({}, ["without a token"] * 2),
    ],
)
def test_a_token_given_by_hand(tmp_path, token, words):
    documents = list(yaml.safe_load_all((FILES / "kuberay.yaml").read_text()))
    spec = documents[1]["spec"]
    del spec["authOptions"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        container["env"] = [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", **token},
        ]
    path = tmp_path / "kuberay.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    found = [fault.wrong for fault in check_cluster_file(path, template=True)]
    assert len(found) == len(words)
    assert all(text in fault for text, fault in zip(words, found, strict=True))


def test_a_secret_in_a_manifest(faults):
    secret = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: t}\nstringData: {auth_token: abc}\n---\n"
    )
    found = faults("kuberay.yaml", "# Runs are kept", secret + "# Runs are kept")
    assert found == [
        "Secret: a secret is written there; make it with `kubectl create secret`.",
    ]


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("then\n", "\n", "line", "syntax error"),
        ("export RAY_AUTH_MODE=token", "", "RAY_AUTH_MODE", "without a token"),
        ("host=127.0.0.1", "host=0.0.0.0", "--dashboard-host", "not bound to the node itself"),
        ("trap end EXIT", "", "trap", "Ray outlives the sweep"),
        ("set -euo pipefail", "", "set", "a failed command is passed over"),
        ("#SBATCH --time", "#SBATCH --tme", "#SBATCH --time", "how long"),
        ('dsn_ray.tune "$@"', "dsn_ray.tune $@", "dsn_ray.tune", "no sweep is run"),
        ("export RAY_ADDRESS", "export RAY_AUTH_TOKEN=abc", "line", "a secret"),
        ('--port="$port"', "--dashboard-host=0.0.0.0", "--dashboard-host", "bound to 0.0.0.0"),
        (
            "#SBATCH --gpus-per-node",
            "#SBATCH --gpu-per-node",
            "gpus-per-node",
            "the nodes get no GPU",
        ),
        ("--cpus-per-task=32", "--cpu-per-task=32", "#SBATCH --cpus-per-task", "how many CPUs Ray"),
    ],
)
def test_a_script_for_slurm(faults, old, new, key, words):
    found = faults("slurm.sh", old, new)
    assert any(key in fault.split(": ")[0] and words in fault for fault in found), found


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need(8, 11, 1), None),
        (Need(9, 11, 1), "the whole cluster: it has room for 8 workers"),
        (Need(2, 16, 1), None),
        (Need(2, 50, 1), "gpu: 48 CPUs and 4 GPUs hold no worker with 50 CPUs and 1 GPU"),
        (Need(1, 1, 8), "gpu: 48 CPUs and 4 GPUs hold no worker"),
        (Need(16, 1, 0.5), None),
    ],
)
def test_what_a_training_asks_for_has_room(faults, need, words):
    found = faults("gpu.yaml", "", "", need)
    assert bool(found) == bool(words), found
    assert words is None or any(words in fault for fault in found), found


def test_room_on_kubernetes(faults):
    assert faults("kuberay.yaml", "", "", Need(4, 8, 1)) == []
    assert "has room for 4 workers" in faults("kuberay.yaml", "", "", Need(5, 8, 1))[0]


@pytest.fixture
def filled(tmp_path):
    """A shipped file with what a person fills in."""

    def fill(name, **values):
        text = (FILES / name).read_text()
        for old, new in values.items():
            text = text.replace(f"EDIT-{old.replace('_', '-')}", new)
        path = tmp_path / name
        path.write_text(text.replace("EDIT-", "x-").replace("-EDIT", "-0123456789abcdef0"))
        return path

    return fill


def test_machines_that_do_not_answer(filled, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as sshd:
        monkeypatch.setattr(here, "_SSH", sshd.getsockname()[1])
        (fault,) = check_cluster_file(
            filled("local.yaml", head_address="127.0.0.1", worker_address="127.0.0.2")
        )
        assert str(fault).startswith("provider.worker_ips[0]: 127.0.0.2 does not answer on port")
        both = filled("local.yaml", head_address="127.0.0.1", worker_address="localhost")
        assert check_cluster_file(both) == []


STUB = """
class Session:
    def get_credentials(self):
        {does}
def get_session():
    return Session()
"""


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("return object()", None),
        ("return None", "no credentials for AWS; run `aws configure`"),
        ("import botocore; raise botocore.exceptions.BotoCoreError('no profile x')", "(no prof"),
    ],
)
def test_credentials_for_aws(filled, tmp_path, monkeypatch, does, words):
    write(tmp_path / "boto3.py", "")
    write(tmp_path / "botocore" / "__init__.py", "from botocore import exceptions")
    write(tmp_path / "botocore" / "exceptions.py", "class BotoCoreError(Exception): ...")
    write(tmp_path / "botocore" / "session.py", STUB.format(does=does))
    for name in [name for name in sys.modules if name.split(".")[0] == "botocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    found = [str(fault) for fault in check_cluster_file(filled("gpu.yaml"))]
    assert found == [] if words is None else words in found[0]
    for name in [name for name in sys.modules if name.split(".")[0] == "botocore"]:
        monkeypatch.delitem(sys.modules, name)


def test_without_boto3_nobody_can_ask_aws(filled, monkeypatch):
    monkeypatch.setattr(here.importlib.util, "find_spec", lambda name: None)
    (fault,) = check_cluster_file(filled("gpu.yaml"))
    assert "boto3" in fault.wrong
    assert fault.allowed == "pip install boto3"


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "a: 1\n---\nb: 2"])
def test_what_is_no_cluster_file_is_refused(tmp_path, capsys, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "tree", [{"provider": []}, {"provider": {"type": "aws"}}, {"apiVersion": 1}]
)
def test_what_is_malformed_is_told_and_breaks_nothing(tmp_path, tree):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert check_cluster_file(path)


def places(tree, above=()):
    """The path to each value below a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inner if isinstance(tree, dict | list) else ():
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


@pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml", "kuberay.yaml"])
def test_a_value_of_the_wrong_kind_breaks_nothing(tmp_path, name):
    documents = list(yaml.safe_load_all((FILES / name).read_text()))
    for *path, last in [place for place in places(documents) if len(place) > 1]:
        copied = copy.deepcopy(documents)
        value = copied
        for key in path:
            value = value[key]
        value[last] = [{}]
        (tmp_path / name).write_text(yaml.safe_dump_all(copied))
        for fault in check_cluster_file(tmp_path / name):
            assert str(fault).endswith(".")


def test_the_command(capsys, tmp_path):
    assert main(["--template", *(str(FILES / name) for name in SHIPPED)]) == 0
    assert capsys.readouterr().out.count("nothing wrong was found") == len(SHIPPED)
    assert main([str(FILES / "slurm.sh")]) == 2
    told = capsys.readouterr()
    assert told.out == (
        "cluster/slurm.sh: line 11: '#SBATCH --partition=EDIT-partition' is a placeholder; "
        "put your own value there.\n"
    )
    assert told.err == "error: 1 fault to mend before the cluster is started.\n"
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert main([str(FILES / "gpu.yaml"), "--workers", "0"]) == 2
    assert main([str(FILES / "local.yaml"), "--workers", "1"]) == 2
    assert main([str(FILES / "slurm.sh"), "--workers", "1"]) == 2


def test_one_version_of_ray_everywhere():
    locked = dict(
        line.split("==") for line in Path("constraints.txt").read_text().splitlines() if line
    )
    assert locked["ray"] == ray.__version__
    image = yaml.safe_load((FILES / "gpu.yaml").read_text())["docker"]["image"]
    assert f"FROM {image}\n" in (FILES / "Dockerfile").read_text()
