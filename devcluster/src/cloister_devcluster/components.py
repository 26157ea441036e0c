"""What the node's programs are told: their files and command lines, as a pure function."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import storage
from .places import Places

NODE = "node1"
PAUSE_IMAGE = "localhost/cloister/pause:1"
SERVICES = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
PODS = "10.244.0.0/16"
NODE_PODS = "10.244.0.0/24"

PROGRAMS: dict[str, str] = {
    "etcd": "etcd",
    "containerd": "containerd",
    "apiserver": "kube-apiserver",
    "kcm": "kube-controller-manager",
    "scheduler": "kube-scheduler",
    "kubelet": "kubelet",
    "proxy": "kube-proxy",
    "router": "kube-router",
    "storage": "local-path-provisioner",
}
"""Component as a person names it -> binary. The order is the order of starting."""
CLIENTS = ("kcm", "scheduler", "kubelet", "proxy", "router", "storage")
"""Components that call the API server with a kubeconfig of their own."""


@dataclass(frozen=True)
class Config:
    """One cluster's settings."""

    places: Places
    network: str
    """First three octets of the /24 between the host (.1) and the node (.2)."""

    @property
    def host_ip(self) -> str:
        return f"{self.network}.1"

    @property
    def node_ip(self) -> str:
        return f"{self.network}.2"

    @property
    def server(self) -> str:
        return f"https://{self.node_ip}:6443"

    @property
    def bin(self) -> Path:
        return self.places.base / "bin"

    @property
    def etc(self) -> Path:
        return self.places.base / "etc"

    @property
    def volumes(self) -> Path:
        """The folder that persistent volumes are made in."""
        return self.places.base / "volumes"

    @property
    def cgroup(self) -> str:
        """The cgroup, in every hierarchy, below which all pods of this cluster are."""
        return f"/cloister-{self.places.id}"

    @property
    def link(self) -> str:
        """The host's end of the veth pair; the kernel allows 15 characters."""
        return f"clo-{self.places.id}"


def files(config: Config, max_open_files: int) -> dict[Path, str]:
    """Every configuration file by its path."""
    etc = config.etc
    return {
        etc / "containerd.toml": _containerd(config),
        etc / "runsc.toml": f'binary_name = "{config.bin}/runsc"\n[runsc_config]\n'
        '  platform = "systrap"\n',
        etc / "cni" / "10-pods.conflist": _json(_cni(config)),
        etc / "kubelet.yaml": _json(_kubelet(config, max_open_files)),
        etc / "scheduler.yaml": _json(_scheduler(config)),
        etc / "proxy.yaml": _json(_proxy(config)),
        etc / "storage.json": _json(storage.settings(config.volumes)),
        etc / "storage-pod.json": _json(storage.helper_pod(PAUSE_IMAGE)),
        # Sandboxes get no DNS, and nothing else in this cluster needs it.
        etc / "resolv.conf": "nameserver 127.0.0.1\n",
        **{etc / f"{name}.kubeconfig": _json(_client(config, name)) for name in CLIENTS},
    }


def commands(config: Config) -> dict[str, list[str]]:
    """The command line of every component."""
    places, etc, pki = config.places, config.etc, config.places.pki
    arguments = {
        "etcd": [
            f"--data-dir={places.base}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # The cluster is thrown away with its state; what a sync saves is never needed.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "containerd": [f"--config={etc}/containerd.toml"],
        "apiserver": [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={config.node_ip}",
            "--bind-address=0.0.0.0",
            f"--service-cluster-ip-range={SERVICES}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--profiling=false",
        ],
        "kcm": [
            f"--kubeconfig={etc}/kcm.kubeconfig",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--allocate-node-cidrs",
            f"--cluster-cidr={PODS}",
        ],
        "scheduler": [f"--config={etc}/scheduler.yaml"],
        "kubelet": [
            f"--kubeconfig={etc}/kubelet.kubeconfig",
            f"--config={etc}/kubelet.yaml",
            f"--hostname-override={NODE}",
            f"--node-ip={config.node_ip}",
            f"--root-dir={places.base}/kubelet",
            f"--cert-dir={places.base}/kubelet/pki",
        ],
        "proxy": [f"--config={etc}/proxy.yaml"],
        "router": [
            f"--kubeconfig={etc}/router.kubeconfig",
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            f"--hostname-override={NODE}",
            f"--service-cluster-ip-range={SERVICES}",
        ],
        "storage": storage.arguments(etc, etc / "storage.kubeconfig", PAUSE_IMAGE),
    }
    return {name: [f"{config.bin}/{PROGRAMS[name]}", *arguments[name]] for name in PROGRAMS}


def certificates(config: Config) -> dict[str, tuple[dict[str, str], str]]:
    """Certificates below the cluster's CA: name -> (subject, subjectAltName)."""
    masters = "system:masters"
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += ["kubernetes.default.svc.cluster.local", "localhost"]
    addresses = ["127.0.0.1", SERVICE_IP, config.node_ip]
    server = ",".join([f"DNS:{each}" for each in names] + [f"IP:{each}" for each in addresses])
    return {
        "apiserver": ({"CN": "kube-apiserver"}, server),
        "admin": ({"O": masters, "CN": "admin"}, ""),
        "kcm": ({"CN": "system:kube-controller-manager"}, ""),
        "scheduler": ({"CN": "system:kube-scheduler"}, ""),
        "kubelet": (
            {"O": "system:nodes", "CN": f"system:node:{NODE}"},
            f"DNS:{NODE},IP:{config.node_ip},IP:127.0.0.1",
        ),
        "proxy": ({"CN": "system:kube-proxy"}, ""),
        "router": ({"O": masters, "CN": "kube-router"}, ""),
        "storage": ({"O": masters, "CN": "local-path-provisioner"}, ""),
        "apiserver-kubelet": ({"O": masters, "CN": "apiserver-kubelet"}, ""),
    }


def runtime_class() -> dict[str, Any]:
    """The RuntimeClass for pods under gVisor."""
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "gvisor"},
        "handler": "runsc",
    }


def _json(value: Any) -> str:
    """JSON, which every reader of YAML reads too."""
    return json.dumps(value, indent=1) + "\n"


def _client(config: Config, name: str) -> dict[str, Any]:
    pki = config.places.pki
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cloister",
                "cluster": {
                    "server": config.server,
                    "certificate-authority": str(pki / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate": str(pki / f"{name}.crt"),
                    "client-key": str(pki / f"{name}.key"),
                },
            }
        ],
        "contexts": [{"name": "cloister", "context": {"cluster": "cloister", "user": name}}],
        "current-context": "cloister",
    }


def _containerd(config: Config) -> str:
    base = config.places.containerd
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = "{base}/root"
state = "{base}/state"
# Makes a folder in /opt that nobody needs.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{config.places.socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.snapshotter.v1.overlayfs']
  # Ending a container must not wait for the disk: what it wrote is thrown away.
  mount_options = ["volatile"]
[{runtime}]
  # Where the machine lacks CAP_SYS_RESOURCE, no OOM score can be lowered.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  [{runtime}.cni]
    bin_dirs = ["{config.bin}"]
    conf_dir = "{config.etc}/cni"
  [{runtime}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [{runtime}.containerd.runtimes.runc.options]
      SystemdCgroup = false
  [{runtime}.containerd.runtimes.runsc]
    runtime_type = "io.containerd.runsc.v1"
    [{runtime}.containerd.runtimes.runsc.options]
      TypeUrl = "io.containerd.runsc.v1.options"
      ConfigPath = "{config.etc}/runsc.toml"
"""


def _cni(config: Config) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": f"{config.places.base}/ipam",
                    "ranges": [[{"subnet": NODE_PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "loopback"},
        ],
    }


def _kubelet(config: Config, max_open_files: int) -> dict[str, Any]:
    pki, base = config.places.pki, config.places.base
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": config.cgroup,
        "containerRuntimeEndpoint": f"unix://{config.places.socket}",
        "failSwapOn": False,
        # Lowering it, and raising a hard limit, both need CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "maxOpenFiles": max_open_files,
        "enforceNodeAllocatable": [],
        # The disk and memory are a developer's: how full they are is not the cluster's business.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "maxPods": 250,
        "podPidsLimit": 4096,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "serializeImagePulls": False,
        "resolvConf": str(config.etc / "resolv.conf"),
        "podLogsDir": f"{base}/pod-logs",
        "volumePluginDir": f"{base}/kubelet/volume-plugins",
        # There is none; without an address, every pod would get an event about it.
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "address": config.node_ip,
        "authentication": {
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "syncFrequency": "10s",
        "fileCheckFrequency": "5s",
    }


def _scheduler(config: Config) -> dict[str, Any]:
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {
            "kubeconfig": f"{config.etc}/scheduler.kubeconfig",
            "qps": 1000,
            "burst": 2000,
        },
        "leaderElection": {"leaderElect": False},
    }


def _proxy(config: Config) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        # Many kernels of virtual machines have no IPVS.
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{config.etc}/proxy.kubeconfig"},
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        # The kernel's limit is the host's; a namespace may not set it.
        "conntrack": {"maxPerCore": 0},
    }
