"""Kubernetes manifests for the KubeRay operator.

The operator's own schema is a megabyte that no Python package ships; these checks are of what goes
wrong: versions, tokens, open services and missing GPUs.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from dsn_ray.checks.faults import (
    Fault,
    fit_faults,
    image_faults,
    key_faults,
    mapping,
    number,
    secret_faults,
    sequence,
)
from dsn_ray.fleet import Fleet, Machines

_API = "ray.io/v1"
_GPU = "nvidia.com/gpu"
_CLUSTER_NAME = "ray.io/cluster"
_CLUSTER: dict[str, Any] = dict.fromkeys(
    (
        "enableInTreeAutoscaling",
        *(
            "gcsFaultToleranceOptions",
            "headServiceAnnotations",
            "historyServerOptions",
            "managedBy",
        ),
        *("networkPolicy", "rayVersion", "suspend", "tlsOptions", "upgradeStrategy"),
    )
)
_CLUSTER["authOptions"] = dict.fromkeys(("enableK8sTokenAuth", "mode", "secretName"))
_CLUSTER["autoscalerOptions"] = dict.fromkeys(
    (
        *("env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources"),
        *("securityContext", "upscalingMode", "version", "volumeMounts"),
    )
)
_CLUSTER["headGroupSpec"] = dict.fromkeys(
    (
        *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams"),
        *("resources", "serviceType", "template"),
    )
)
_CLUSTER["workerGroupSpecs"] = dict.fromkeys(
    (
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"),
        "template",
    )
)
_CONTAINER: dict[str, Any] = dict.fromkeys(
    (
        *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle"),
        *("livenessProbe", "name", "ports", "readinessProbe", "resizePolicy", "resources"),
        *("restartPolicy", "securityContext", "startupProbe", "stdin", "stdinOnce"),
        *("terminationMessagePath", "terminationMessagePolicy", "tty", "volumeDevices"),
        "workingDir",
    )
)
_CONTAINER["volumeMounts"] = dict.fromkeys(
    (
        *("mountPath", "mountPropagation", "name", "readOnly", "recursiveReadOnly", "subPath"),
        "subPathExpr",
    )
)
_JOB: dict[str, Any] = dict.fromkeys(
    (
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy"),
        *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
        *("managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec"),
        *("runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
        *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    )
)


def kuberay_faults(documents: Sequence[Any], version: str) -> Iterator[Fault]:
    """What is wrong in the manifests of one file.

    Args:
        documents: what the file holds.
        version: Ray's, as it is installed here.
    """
    clusters = list(_clusters(documents))
    names = [
        mapping(mapping(d).get("metadata")).get("name") for d in documents if _is(d, "RayCluster")
    ]
    if not clusters and not any(_is(d, "RayJob") for d in documents):
        yield Fault("kind", "there is neither a RayCluster nor a RayJob", "add one")
    for document in documents:
        kind, top = mapping(document).get("kind"), mapping(document)
        if str(kind).startswith("Ray") and top.get("apiVersion") != _API:
            yield Fault(f"{kind}.apiVersion", f"it is {top.get('apiVersion')}", f"give {_API}")
        if not kind or not mapping(top.get("metadata")).get("name"):
            yield Fault(f"{kind}.metadata.name", "a kind and a name are needed", "give both")
        if kind == "Secret" and (top.get("data") or top.get("stringData")):
            yield Fault(
                "Secret", "a secret is written there", "make it with `kubectl create secret`"
            )
        else:
            yield from secret_faults(document, str(kind))
        if kind == "Service" and _is_open(mapping(top.get("spec")).get("type")):
            yield _open_fault("Service.spec.type", mapping(top.get("spec")).get("type"))
        if kind == "RayJob":
            yield from _job_faults(mapping(top.get("spec")), names)
            yield from _need_faults(str(mapping(top.get("spec")).get("entrypoint")), documents)
    claims = [
        mapping(mapping(d).get("metadata")).get("name")
        for d in documents
        if _is(d, "PersistentVolumeClaim")
    ]
    for key, spec in clusters:
        yield from _cluster_faults(spec, key, version)
        for name, group in _groups(spec):
            yield from _mount_faults(group, claims, f"{key}.{name}.template.spec")


def kuberay_fleet(documents: Sequence[Any]) -> Fleet:
    """The workers that the clusters of a file may have."""
    kinds = [
        Machines(
            f"{key}.workerGroupSpecs[{index}]",
            _quantity(_amounts(mapping(group)).get("cpu")),
            _quantity(_amounts(mapping(group)).get(_GPU)),
            int(number(mapping(group).get("maxReplicas"))),
        )
        for key, spec in _clusters(documents)
        for index, group in enumerate(sequence(spec.get("workerGroupSpecs")))
    ]
    return Fleet(tuple(kinds), sum(kind.most for kind in kinds))


def _is(document: Any, kind: str) -> bool:
    return bool(mapping(document).get("kind") == kind)


def _clusters(documents: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every cluster that a file describes, and where."""
    for document in documents:
        spec = mapping(mapping(document).get("spec"))
        if _is(document, "RayCluster"):
            yield "RayCluster.spec", spec
        if _is(document, "RayJob") and "rayClusterSpec" in spec:
            yield "RayJob.spec.rayClusterSpec", mapping(spec["rayClusterSpec"])


def _job_faults(spec: dict[str, Any], clusters: list[Any]) -> Iterator[Fault]:
    yield from key_faults(spec, _JOB, "RayJob.spec")
    chosen = mapping(spec.get("clusterSelector")).get(_CLUSTER_NAME)
    if ("rayClusterSpec" in spec) == (chosen is not None):
        yield Fault(
            "RayJob.spec",
            "it must say on which cluster it runs, and once",
            f"give rayClusterSpec, or clusterSelector with {_CLUSTER_NAME}",
        )
    if chosen is not None and clusters and chosen not in clusters:
        yield Fault(
            "RayJob.spec.clusterSelector",
            f"there is no RayCluster {chosen} in this file",
            f"give {' or '.join(map(str, clusters))}",
        )
    if "dsn_ray" not in str(spec.get("entrypoint")):
        yield Fault(
            "RayJob.spec.entrypoint", "it runs none of the commands", "python -m dsn_ray.tune"
        )


def _need_faults(entrypoint: str, documents: Sequence[Any]) -> Iterator[Fault]:
    """Whether the workers that a job asks for have room."""
    asked = dict(re.findall(r"--((?:cpus-per-|gpus-per-)?workers?)[= ]([\d.]+)", entrypoint))
    fleet = kuberay_fleet(documents)
    if "cpus-per-worker" in asked and fleet.kinds:
        yield from fit_faults(
            fleet,
            int(_quantity(asked.get("workers", 2))),
            _quantity(asked["cpus-per-worker"]),
            _quantity(asked.get("gpus-per-worker", 1)),
        )


def _groups(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The head's and the workers' descriptions, and where they are."""
    yield "headGroupSpec", mapping(spec.get("headGroupSpec"))
    for index, group in enumerate(sequence(spec.get("workerGroupSpecs"))):
        yield f"workerGroupSpecs[{index}]", mapping(group)


def _mount_faults(group: dict[str, Any], claims: list[Any], key: str) -> Iterator[Fault]:
    """What a pod mounts and does not have, or has and nobody claims."""
    volumes = [
        mapping(v)
        for v in sequence(mapping(mapping(group.get("template")).get("spec")).get("volumes"))
    ]
    names = [volume.get("name") for volume in volumes]
    yield from key_faults(_container(group), _CONTAINER, f"{key}.containers[0]")
    for mount in sequence(_container(group).get("volumeMounts")):
        if mapping(mount).get("name") not in names:
            yield Fault(
                f"{key}.containers[0].volumeMounts",
                f"the pod has no volume {mapping(mount).get('name')}",
                f"add it under {key}.volumes",
            )
    for volume in volumes:
        claim = mapping(volume.get("persistentVolumeClaim")).get("claimName")
        if claim is not None and claims and claim not in claims:
            yield Fault(
                f"{key}.volumes",
                f"there is no PersistentVolumeClaim {claim} in this file",
                f"give {' or '.join(map(str, claims))}",
            )


def _cluster_faults(spec: dict[str, Any], key: str, version: str) -> Iterator[Fault]:
    yield from key_faults(spec, _CLUSTER, key)
    if str(spec.get("rayVersion")) != version:
        yield Fault(
            f"{key}.rayVersion",
            f"it is {spec.get('rayVersion')}, and Ray {version} is installed here",
            f"give {version}",
        )
    head = mapping(spec.get("headGroupSpec"))
    service = mapping(mapping(head.get("headService")).get("spec")).get("type")
    for where, kind in (
        ("serviceType", head.get("serviceType")),
        ("headService.spec.type", service),
    ):
        if _is_open(kind):
            yield _open_fault(f"{key}.headGroupSpec.{where}", kind)
    if head.get("enableIngress"):
        yield Fault(f"{key}.headGroupSpec.enableIngress", "it opens the dashboard", "leave it out")
    groups = sequence(spec.get("workerGroupSpecs"))
    if not groups:
        yield Fault(f"{key}.workerGroupSpecs", "there is no worker", "add a group")
    for index, group in enumerate(groups):
        yield from _group_faults(mapping(group), f"{key}.workerGroupSpecs[{index}]")
    grows = spec.get("enableInTreeAutoscaling")
    if not grows and not any(number(mapping(group).get("replicas")) for group in groups):
        yield Fault(
            f"{key}.enableInTreeAutoscaling",
            "no worker is there at the start, and none comes",
            "give enableInTreeAutoscaling: true, or replicas",
        )
    by_operator = mapping(spec.get("authOptions"))
    trusted = bool(by_operator) and by_operator.get("mode", "token") == "token"
    for name, group in _groups(spec):
        container, where = _container(group), f"{key}.{name}.template.spec.containers[0]"
        gpus = _quantity(_amounts(group).get(_GPU))
        yield from image_faults(container.get("image"), f"{where}.image", version, gpus)
        yield from _token_faults(container, trusted, where)


def _group_faults(group: dict[str, Any], key: str) -> Iterator[Fault]:
    if not group.get("groupName"):
        yield Fault(f"{key}.groupName", "it is missing", "give the group a name")
    least, most = number(group.get("minReplicas")), number(group.get("maxReplicas"))
    if not 0 <= least <= number(group.get("replicas", least)) <= most or most < 1:
        yield Fault(
            key,
            f"replicas {group.get('replicas')} between minReplicas {group.get('minReplicas')} and "
            f"maxReplicas {group.get('maxReplicas')}",
            "0 <= minReplicas <= replicas <= maxReplicas is needed, with at least one at most",
        )
    if not _quantity(_amounts(group).get(_GPU)):
        yield Fault(
            f"{key}.template.spec.containers[0].resources.limits",
            "a worker gets no GPU",
            f"give {_GPU}: 1 or more",
        )


def _token_faults(container: dict[str, Any], by_operator: bool, key: str) -> Iterator[Fault]:
    given = {str(mapping(e).get("name")): mapping(e) for e in sequence(container.get("env"))}
    token = given.get("RAY_AUTH_TOKEN", {})
    by_hand = given.get("RAY_AUTH_MODE", {}).get("value") == "token" and bool(
        mapping(token.get("valueFrom")).get("secretKeyRef")
    )
    if not by_operator and not by_hand:
        yield Fault(
            key,
            "Ray is started without a token, and whoever reaches its ports runs what he likes",
            "give the cluster `authOptions: {mode: token, secretName: ...}`, or each container "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN by secretKeyRef",
        )


def _is_open(service: Any) -> bool:
    return service in ("LoadBalancer", "NodePort")


def _open_fault(key: str, service: Any) -> Fault:
    return Fault(
        key,
        f"a {service} is reached from outside",
        "give ClusterIP, and use `kubectl port-forward`",
    )


def _container(group: dict[str, Any]) -> dict[str, Any]:
    """The container of a pod that runs Ray: the first."""
    spec = mapping(mapping(group.get("template")).get("spec"))
    return mapping(next(iter(sequence(spec.get("containers"))), None))


def _amounts(group: dict[str, Any]) -> dict[str, Any]:
    """What a pod has, as Ray takes it: its limits, and what it requests without a limit."""
    given = mapping(_container(group).get("resources"))
    return mapping(given.get("requests")) | mapping(given.get("limits"))


def _quantity(amount: Any) -> float:
    """An amount as Kubernetes writes it, such as 2 or 500m; 0 for anything else."""
    text = str(amount)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return 0.0
