"""Dynamic volumes: folders of the node's own disk, made and removed by local-path-provisioner.

Its helper pods need a shell, and no image may be downloaded: they are the pause image with the
machine's own programs mounted.
"""

from pathlib import Path
from typing import Any

NAMESPACE = "kube-system"
SCRIPTS = "volume-scripts"
_PROVISIONER = "rancher.io/local-path"
_PROGRAMS = ("bin", "lib", "lib64", "usr")


def settings(volumes: Path) -> dict[str, Any]:
    """The provisioner's configuration; `volumes` is the folder that the volumes are made in."""
    everywhere = {"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(volumes)]}
    return {"nodePathMap": [everywhere], "cmdTimeoutSeconds": 120}


def arguments(etc: Path, kubeconfig: Path, image: str) -> list[str]:
    """Its command line; `image` is that of its helper pods."""
    return [
        "start",
        f"--config={etc}/storage.json",
        f"--helper-pod-file={etc}/storage-pod.json",
        f"--kubeconfig={kubeconfig}",
        f"--namespace={NAMESPACE}",
        f"--helper-image={image}",
        f"--configmap-name={SCRIPTS}",
        "--service-account-name=default",
        # It gives up on a claim after so many attempts; 0 is never.
        "--provisioning-retry-count=0",
        "--deletion-retry-count=0",
    ]


def helper_pod(image: str, root: Path = Path("/")) -> dict[str, Any]:
    """The pod that makes or removes one folder; the provisioner adds the folder and the script."""
    # Where there is no /lib64, no program asks for one.
    folders = [each for each in _PROGRAMS if (root / each).is_dir()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "volume"},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "helper-pod",
                    "image": image,
                    "imagePullPolicy": "Never",
                    # What a sandbox leaves in its volume belongs to others.
                    "securityContext": {"runAsUser": 0, "runAsGroup": 0},
                    "volumeMounts": [
                        {"name": each, "mountPath": f"/{each}", "readOnly": True}
                        for each in folders
                    ],
                }
            ],
            "volumes": [{"name": each, "hostPath": {"path": f"/{each}"}} for each in folders],
        },
    }


def objects() -> dict[str, dict[str, Any]]:
    """What the API server must have: collection -> object."""
    return {
        f"/api/v1/namespaces/{NAMESPACE}/configmaps": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SCRIPTS, "namespace": NAMESPACE},
            "data": {
                # The kubelet gives it to the pod's group; nobody else has business there.
                "setup": 'set -eu\nmkdir -p -m 0770 "$VOL_DIR"\n',
                "teardown": 'set -eu\nrm -rf "$VOL_DIR"\n',
            },
        },
        "/apis/storage.k8s.io/v1/storageclasses": {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "local",
                "annotations": {
                    "storageclass.kubernetes.io/is-default-class": "true",
                    # The kubelet gives the pod's group access to local volumes, not to hostPath.
                    "defaultVolumeType": "local",
                },
            },
            "provisioner": _PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
    }
