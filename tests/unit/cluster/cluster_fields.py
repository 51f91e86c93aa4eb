"""Fields that the cluster files use, written down from the public schemas that are too big to copy or to install.

A field that is misspelt or in the wrong place is ignored or refused only when a cluster is paid for.
"""

from __future__ import annotations

from typing import Any

TEXT, NUMBER, FLAG, ANY = str, int, bool, object
TEXTS = {"*": TEXT}  # a mapping of any names to texts

# Kubernetes 1.34, core/v1 and apps/v1.
_RESOURCES = {"requests": TEXTS, "limits": TEXTS}
_CONTAINER = {
    "name!": TEXT,
    "image": TEXT,
    "command": [TEXT],
    "args": [TEXT],
    "env": [{"name!": TEXT, "value": TEXT}],
    "envFrom": [{"secretRef": {"name!": TEXT}}],
    "ports": [{"containerPort!": NUMBER}],
    "readinessProbe": {"httpGet": {"path": TEXT, "port!": NUMBER}, "periodSeconds": NUMBER},
    "resources": _RESOURCES,
    "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT}],
}
_VOLUME = {
    "name!": TEXT,
    "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
    "persistentVolumeClaim": {"claimName!": TEXT},
}
_POD = {
    "metadata": {"labels": TEXTS},
    "spec": {
        "restartPolicy": TEXT,
        "terminationGracePeriodSeconds": NUMBER,
        "containers!": [_CONTAINER],
        "volumes": [_VOLUME],
        "nodeSelector": TEXTS,
        "tolerations": [{"key": TEXT, "operator": TEXT, "effect": TEXT}],
        "securityContext": {"fsGroup": NUMBER},
    },
}
_OBJECT = {"apiVersion!": TEXT, "kind!": TEXT, "metadata!": {"name!": TEXT}}
KUBERNETES = {
    ("v1", "PersistentVolumeClaim"): {
        **_OBJECT,
        "spec!": {"accessModes!": [TEXT], "resources!": {"requests!": TEXTS}},
    },
    ("v1", "Service"): {**_OBJECT, "spec!": {"selector": TEXTS, "ports!": [{"port!": NUMBER, "targetPort": NUMBER}]}},
    ("apps/v1", "Deployment"): {
        **_OBJECT,
        "spec!": {
            "replicas": NUMBER,
            "strategy": {"type": TEXT},
            "selector!": {"matchLabels": TEXTS},
            "template!": _POD,
        },
    },
}

# KubeRay 1.7.0, ray-operator/config/crd/bases/ray.io_rayjobs.yaml; `priority` of a group is not in 1.6.
_GROUP = {
    "rayStartParams": TEXTS,
    "template!": _POD,
}
RAY_JOB = {
    **_OBJECT,
    "spec!": {
        "entrypoint": TEXT,
        "backoffLimit": NUMBER,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": NUMBER,
        "rayClusterSpec": {
            "rayVersion": TEXT,
            "enableInTreeAutoscaling": FLAG,
            "autoscalerOptions": {
                "version": TEXT,
                "idleTimeoutSeconds": NUMBER,
                "env": [{"name!": TEXT, "value": TEXT}],
            },
            "headGroupSpec!": _GROUP,
            "workerGroupSpecs": [
                {
                    **_GROUP,
                    "groupName!": TEXT,
                    "priority": NUMBER,
                    "replicas": NUMBER,
                    "minReplicas!": NUMBER,
                    "maxReplicas!": NUMBER,
                }
            ],
        },
    },
}

# Google's Compute Engine API v1, revision 20261106: the body of instances.insert.
GOOGLE_INSTANCE = {
    "machineType!": TEXT,
    "disks!": [{"boot": FLAG, "autoDelete": FLAG, "initializeParams": {"diskSizeGb": NUMBER, "sourceImage": TEXT}}],
    "serviceAccounts": [{"email": TEXT, "scopes": [TEXT]}],
    "scheduling": {
        "provisioningModel": TEXT,
        "instanceTerminationAction": TEXT,
        "onHostMaintenance": TEXT,
        "automaticRestart": FLAG,
    },
}


def faults(value: Any, schema: Any, path: str = "") -> list[str]:
    """What is wrong with `value`: fields that the schema lacks, of another type, or missing where marked with "!"."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [fault for n, item in enumerate(value) for fault in faults(item, schema[0], f"{path}[{n}]")]
    if not isinstance(schema, dict):
        fits = isinstance(value, schema) and (schema is FLAG or not isinstance(value, bool))
        return [] if fits else [f"{path}: {value!r} is not of type {schema.__name__}"]
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    known = {name.rstrip("!"): kind for name, kind in schema.items()}
    found = [f"{path}.{name[:-1]}: missing" for name in schema if name.endswith("!") and name[:-1] not in value]
    for name, item in value.items():
        kind = known.get(name, known.get("*"))
        found += [f"{path}.{name}: no such field"] if kind is None else faults(item, kind, f"{path}.{name}")
    return found
