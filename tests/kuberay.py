"""The part of KubeRay's RayJob that deploy/rayjob.yaml uses, as a JSON schema.

KubeRay's own schema is in no package, so this was written by hand from its API reference (v1.6.2,
docs.ray.io, "KubeRay CRD API reference") and its types at ``ray-operator/apis/ray/v1``. A name
that is not here is an error, though KubeRay may know it. Pod templates are left to the schemas of
Kubernetes.
"""

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT, _FLAG, _ANY = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
_COUNT = {"type": "integer", "minimum": 0}
_WORDS = {"type": "object", "additionalProperties": _TEXT}
_SERVICES = {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}

_HEAD = _object(
    ("rayStartParams", "template"), serviceType=_SERVICES, rayStartParams=_WORDS, template=_ANY
)
_WORKERS = _object(
    ("groupName", "rayStartParams", "template"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_WORDS,
    template=_ANY,
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_object(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
RAY_JOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=_object(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=_TEXT,
        shutdownAfterJobFinishes=_FLAG,
        ttlSecondsAfterFinished=_COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=_COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        runtimeEnvYAML=_TEXT,
        rayClusterSpec=_CLUSTER,
    ),
)
