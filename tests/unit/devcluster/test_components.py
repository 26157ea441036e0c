"""What the node's programs are told."""

import json
import tomllib
from pathlib import Path

import pytest

from cloister_devcluster import build, components, storage
from cloister_devcluster.components import PAUSE_IMAGE, PROGRAMS, Config
from cloister_devcluster.places import Places


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(Places("abc123", tmp_path / "abc123"), "10.200.7")


def rendered(config: Config, name: str) -> str:
    return components.files(config, 20_000)[config.etc / name]


def test_every_program_is_in_the_version_lock() -> None:
    locked = {each.name for each in build.load()}
    needed = {*PROGRAMS.values(), "kubectl", "helm", "ctr", "runc", "runsc"}
    needed |= {"containerd-shim-runc-v2", "containerd-shim-runsc-v1"}
    needed |= {"bridge", "loopback", "host-local", "portmap"}
    assert needed <= locked


def test_all_of_kubernetes_has_one_version() -> None:
    assert len({each.version for each in build.load() if each.kind == "kubernetes"}) == 1


def test_every_file_that_a_command_line_names_is_written(config: Config) -> None:
    written = {str(path) for path in components.files(config, 20_000)}
    for command in components.commands(config).values():
        for argument in command:
            _, _, value = argument.partition("=")
            if value.startswith(f"{config.etc}/"):
                assert value in written


def test_every_certificate_that_a_command_line_names_is_issued(config: Config) -> None:
    issued = {f"{name}.crt" for name in components.certificates(config)}
    issued |= {"ca.crt", "sa.pub"}
    issued |= {each.replace(".crt", ".key") for each in issued} | {"sa.key"}
    for command in components.commands(config).values():
        for argument in command:
            _, _, value = argument.partition("=")
            if value.startswith(f"{config.places.pki}/"):
                assert Path(value).name in issued


def test_every_component_with_a_kubeconfig_has_a_certificate(config: Config) -> None:
    assert set(components.CLIENTS) <= set(components.certificates(config))


def test_the_api_server_answers_to_its_addresses(config: Config) -> None:
    _, names = components.certificates(config)["apiserver"]
    assert "IP:10.200.7.2" in names.split(",")
    assert "IP:10.96.0.1" in names.split(",")
    assert "DNS:kubernetes.default.svc" in names.split(",")


def test_the_api_server_restricts_nodes_to_their_own_objects(config: Config) -> None:
    command = components.commands(config)["apiserver"]
    assert "--authorization-mode=Node,RBAC" in command
    assert "--enable-admission-plugins=NodeRestriction" in command
    assert not [each for each in command if each.startswith("--anonymous-auth")]


def test_the_kubelet_limits_processes_and_works_with_either_cgroup_version(
    config: Config,
) -> None:
    kubelet = json.loads(rendered(config, "kubelet.yaml"))
    assert kubelet["podPidsLimit"] == 4096
    assert kubelet["failCgroupV1"] is False
    assert kubelet["cgroupRoot"] == "/cloister-abc123"
    assert kubelet["oomScoreAdj"] == 0
    assert kubelet["maxOpenFiles"] == 20_000
    assert kubelet["authentication"]["anonymous"] == {"enabled": False}


def test_containerd_knows_both_runtimes_and_the_pause_image(config: Config) -> None:
    parsed = tomllib.loads(rendered(config, "containerd.toml"))
    runtime = parsed["plugins"]["io.containerd.cri.v1.runtime"]
    assert set(runtime["containerd"]["runtimes"]) == {"runc", "runsc"}
    assert runtime["restrict_oom_score_adj"] is True
    pinned = parsed["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]
    assert pinned == {"sandbox": PAUSE_IMAGE}
    assert parsed["grpc"]["address"] == str(config.places.socket)


def test_the_runtime_class_names_the_configured_handler(config: Config) -> None:
    parsed = tomllib.loads(rendered(config, "containerd.toml"))
    runtimes = parsed["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert components.runtime_class()["handler"] in runtimes


def test_kube_proxy_needs_no_ipvs(config: Config) -> None:
    proxy = json.loads(rendered(config, "proxy.yaml"))
    assert proxy["mode"] == "nftables"
    assert proxy["conntrack"] == {"maxPerCore": 0}


def test_nothing_lies_outside_of_the_cluster_s_own_folder(config: Config) -> None:
    for path in components.files(config, 20_000):
        assert path.is_relative_to(config.places.base)


def test_volumes_are_within_the_cluster_s_folder_and_made_where_the_first_pod_is(
    config: Config,
) -> None:
    (paths,) = [
        each["paths"] for each in json.loads(rendered(config, "storage.json"))["nodePathMap"]
    ]
    assert [Path(each).parent for each in paths] == [config.places.base]
    (kind,) = [each for each in storage.objects().values() if each["kind"] == "StorageClass"]
    assert kind["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    assert (kind["volumeBindingMode"], kind["reclaimPolicy"]) == ("WaitForFirstConsumer", "Delete")


def test_the_helper_pod_mounts_only_folders_that_the_machine_has(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    pod = storage.helper_pod(PAUSE_IMAGE, tmp_path)
    (container,) = pod["spec"]["containers"]
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/bin"]
    assert [each["name"] for each in pod["spec"]["volumes"]] == ["bin"]
    assert container["image"] == PAUSE_IMAGE


@pytest.mark.parametrize("name", ["a", "12345678"])
def test_the_link_s_name_fits_the_kernel(tmp_path: Path, name: str) -> None:
    assert len(Config(Places(name, tmp_path), "10.200.1").link) <= 15
