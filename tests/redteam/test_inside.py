"""What root of a rootish sandbox is, and is not, by what it sees itself; its network is closed."""

import base64

import pytest

import cloister
from cloister_operator.manifests.pods import ROOT_CAPABILITIES
from cloister_operator.plan.proving import has_user_namespace
from redteam.packages import NAME, OWNER, WORDS, WORDS_FILE, deb
from redteam.sandboxes import ROOT, SEALED, Kind, Sandboxes

NUMBERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "SETGID": 6, "SETUID": 7}
"""As capabilities(7) counts them."""
NOT_ROOTS = (
    "mount -t tmpfs none /mnt",
    "unshare --user true",
    "unshare --net true",
    "chroot / /bin/true",
    "mknod /tmp/disk b 8 0",
    "date -s now",
    "hostname elsewhere",
    "touch /sys/kernel/x",
    "echo 1 > /proc/sys/net/ipv4/ip_forward",
)


def sealed(body: Kind) -> Kind:
    """The kind with this body and no network."""
    return next(each for each in SEALED if each.name.endswith(f"-{body.name}"))


@pytest.fixture
def root(sandboxes: Sandboxes) -> cloister.Session:
    return sandboxes.of(sealed(ROOT))


def run(session: cloister.Session, command: str) -> str:
    """What a command prints; it must succeed."""
    result = session.bash(command, timeout_ms=110_000)
    assert not result.exit_code, result.text
    return result.text


def test_root_is_hardened_from_inside(root: cloister.Session) -> None:
    lines = run(root, "cat /proc/self/status").splitlines()
    status = {key: value.strip() for key, _, value in (each.partition(":") for each in lines)}
    assert set(NUMBERS) == set(ROOT_CAPABILITIES)
    all_it_may_have = sum(1 << each for each in NUMBERS.values())
    for each in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[each], 16) == all_it_may_have, f"{each}: {status[each]}"
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert run(root, "id -u; id -g") == "0\n0"
    for each in ("uid_map", "gid_map"):
        assert has_user_namespace(run(root, f"cat /proc/self/{each}")), each


def test_root_may_write_to_its_root_and_be_others(root: cloister.Session) -> None:
    run(root, "touch /usr/x /etc/x /opt/x && chown 33:33 /usr/x && rm /usr/x /etc/x /opt/x")
    others = "setpriv --reuid 33 --regid 33 --clear-groups"
    assert run(root, f"{others} sh -c 'id -u; id -g; id -G'") == "33\n33\n33"
    assert root.bash(f"{others} touch /usr/x").is_error


@pytest.mark.parametrize("command", NOT_ROOTS)
def test_root_is_not_the_nodes(command: str, root: cloister.Session) -> None:
    run(root, f"command -v {command.split()[0]}")
    result = root.bash(f"( {command} ) 2>&1")
    assert result.exit_code, result.text
    assert any(
        words in result.text
        for words in ("not permitted", "ermission denied", "Read-only file system", "must be root")
    ), result.text


def test_packages_of_debian_are_installed(root: cloister.Session) -> None:
    """dpkg and apt-get, of a package whose file belongs to another user than root."""
    run(root, f"base64 -d > /tmp/{NAME}.deb <<< {base64.b64encode(deb()).decode()}")
    run(root, "apt-get --version")
    shown = (
        f"dpkg-query -W -f '${{Status}}' {NAME}; echo; cat {WORDS_FILE}; stat -c %U {WORDS_FILE}"
    )
    for install in (f"dpkg -i /tmp/{NAME}.deb", f"apt-get install -y -q /tmp/{NAME}.deb"):
        run(root, install)
        assert run(root, shown).splitlines() == ["install ok installed", WORDS, OWNER]
        run(root, f"dpkg --purge {NAME} && test ! -e {WORDS_FILE}")
