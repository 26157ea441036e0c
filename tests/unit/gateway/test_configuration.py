"""The rendered configurations: golden, and taken by the programs that they are for."""

import subprocess
from pathlib import Path

import pytest

from cloister_gateway import places, render
from cloister_gateway.settings import Settings, SettingsError
from support.gateway_rig import debian, prepare

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "gateway"
CONFIGURATIONS = {
    "haproxy.cfg": render.front(Settings(), render.Layout(has_ipv6=True)),
    "haproxy-proxy-only.cfg": render.front(Settings(by_name=False)),
    "names.conf": render.names(Settings()),
    "sni.conf": render.sni(Settings()),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_golden(name: str, update_golden: bool) -> None:
    if update_golden:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(CONFIGURATIONS[name])
    assert (GOLDEN / name).read_text() == CONFIGURATIONS[name], "make golden, and read the diff"


@pytest.mark.parametrize("name", ["names.conf", "sni.conf"])
def test_all_paths_are_absolute(name: str) -> None:
    """squid reads its file again from another directory, and ends where it cannot."""
    for line in CONFIGURATIONS[name].splitlines():
        for word in line.split():
            if "/" in word and not line.startswith(("#", "acl")):
                assert word.rpartition("=")[2].startswith("/"), line


def test_names_are_decided_before_anything_is_looked_up() -> None:
    rules = [
        line for line in CONFIGURATIONS["names.conf"].splitlines() if line.startswith("http_access")
    ]
    assert rules[0] == "http_access deny !named"
    assert rules[-1] == "http_access deny all"
    assert [each for each in rules if " allow " in each] == ["http_access allow admitted"]


def test_no_answer_is_kept() -> None:
    for name in ("names.conf", "sni.conf"):
        (line,) = (
            each
            for each in CONFIGURATIONS[name].splitlines()
            if each.startswith("external_acl_type")
        )
        assert " ttl=0 negative_ttl=0 cache=0 grace=0 " in line


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("haproxy.cfg", ("haproxy", "-c", "-f")),
        ("haproxy-proxy-only.cfg", ("haproxy", "-c", "-f")),
        ("names.conf", ("squid", "-k", "parse", "-f")),
        ("sni.conf", ("squid", "-k", "parse", "-f")),
    ],
)
def test_the_programs_take_them_without_a_word(
    name: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    root = debian()
    prepare(root)
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_text(CONFIGURATIONS[name])
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x")
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-keyout", own / "key", "-out", own / "certificate"],
        check=True,
        capture_output=True,
    )
    (own / "unused.pem").write_bytes(
        (own / "key").read_bytes() + (own / "certificate").read_bytes()
    )
    (own / "errors").mkdir()
    script = f"""
mount --rbind /dev {root}/dev
mount -t tmpfs none {root}/run
mkdir -p {root}{places.OWN} {root}{places.FRONT}
mount --bind {own} {root}{places.OWN}
exec chroot {root} {" ".join(command)} {places.OWN}/{name}
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-euc", script],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # Who hides from servers that it is a proxy breaks a rule of HTTP, and squid says so.
    said = said.replace("WARNING: HTTP requires the use of Via", "")
    for word in ("WARNING", "ERROR", "FATAL", "ALERT", "deprecated"):
        assert word not in said, said


def test_settings_come_from_the_environment() -> None:
    given = {
        "CLOISTER_GATEWAY_MAX_CONNECTIONS": "100",
        "CLOISTER_GATEWAY_LOG_LEVEL": "DEBUG",
        "CLOISTER_GATEWAY_BY_NAME": "false",
    }
    assert Settings.load(given) == Settings(max_connections=100, log_level="DEBUG", by_name=False)
    assert Settings.load({}) == Settings()


@pytest.mark.parametrize("wrong", ["", "0", "-1", "1.5", "x", "\u0661", "1000001"])
def test_a_wrong_setting_is_named(wrong: str) -> None:
    with pytest.raises(SettingsError, match="CLOISTER_GATEWAY_MAX_CONNECTIONS"):
        Settings.load({"CLOISTER_GATEWAY_MAX_CONNECTIONS": wrong})


@pytest.mark.parametrize("wrong", ["", "0", "True", "yes", "false "])
def test_a_wrong_switch_is_named(wrong: str) -> None:
    with pytest.raises(SettingsError, match="CLOISTER_GATEWAY_BY_NAME"):
        Settings.load({"CLOISTER_GATEWAY_BY_NAME": wrong})


def test_a_wrong_log_level_is_named() -> None:
    with pytest.raises(SettingsError, match="LOG_LEVEL"):
        Settings.load({"CLOISTER_GATEWAY_LOG_LEVEL": "loud"})


def test_connections_fit_the_descriptors_that_there_are() -> None:
    fitted = Settings(max_connections=20_000).within(20_000)
    assert fitted.max_connections < 20_000
    assert fitted.descriptors <= 20_000
    assert Settings(max_connections=100).within(1_000_000).max_connections == 100
