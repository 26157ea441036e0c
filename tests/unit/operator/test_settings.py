"""Settings from environment variables."""

from datetime import timedelta

import pytest

from cloister_operator.settings import SettingsError, load

NEEDED = {
    "CLOISTER_NAMESPACE": "cloister-system",
    "CLOISTER_POD_IP": "10.0.0.9",
    "CLOISTER_SANDBOX_IMAGE": "registry.example/sandbox:1",
}


def test_defaults_are_what_is_closed() -> None:
    found = load(NEEDED)
    assert found.sandbox_namespaces == ()
    assert found.worker_namespaces == ()
    assert found.allowed_runtime_classes == ()
    assert found.allowed_tolerations == found.allowed_priority_classes == ()
    assert found.allowed_extended_resources == ()
    assert found.sandbox_user_namespaces is True
    assert found.ended_session_ttl == timedelta(hours=1)


def test_lists_are_split_at_commas() -> None:
    found = load(
        NEEDED
        | {"CLOISTER_SANDBOX_NAMESPACES": " a, b ,,c", "CLOISTER_ALLOWED_IMAGES": "x/*,y:1"}
        | {"CLOISTER_COPIED_LABELS": "", "CLOISTER_SANDBOX_USER_NAMESPACES": "false"}
    )
    assert found.sandbox_namespaces == ("a", "b", "c")
    assert found.allowed_images == ("x/*", "y:1")
    assert found.copied_labels == ()
    assert found.sandbox_user_namespaces is False


def test_variables_that_are_no_settings_are_ignored() -> None:
    assert load(NEEDED | {"CLOISTER_OTHER": "x", "NAMESPACE": "y"}) == load(NEEDED)


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_a_missing_variable_is_named(missing: str) -> None:
    given = {key: value for key, value in NEEDED.items() if key != missing}
    with pytest.raises(SettingsError, match=f"{missing}: Field required"):
        load(given)


def test_every_wrong_variable_is_named() -> None:
    wrong = {
        "CLOISTER_ENDED_SESSION_TTL_SECONDS": "-1",
        "CLOISTER_SANDBOX_USER_NAMESPACES": "perhaps",
    }
    with pytest.raises(SettingsError) as caught:
        load(NEEDED | wrong)
    for each in wrong:
        assert each in str(caught.value)


def test_what_sandboxes_may_reach() -> None:
    found = load(
        NEEDED
        | {
            "CLOISTER_EGRESS_EXTRA_RANGES": "34.1.0.0/16, 2600::/40",
            "CLOISTER_EGRESS_MIRRORS": "pip=https://m.example.com/a=b,npm=https://n.example.com/",
            "CLOISTER_EGRESS_NAMESERVERS": "9.9.9.9",
        }
    )
    assert found.egress_extra_ranges == ("34.1.0.0/16", "2600::/40")
    assert found.egress_mirrors == {
        "pip": "https://m.example.com/a=b",
        "npm": "https://n.example.com/",
    }
    assert found.egress_nameservers == ("9.9.9.9",)
    assert load(NEEDED | {"CLOISTER_EGRESS_MIRRORS": ""}).egress_mirrors == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # A range that cannot be read would leave open what it was to close.
        ("CLOISTER_EGRESS_EXTRA_RANGES", "34.1.0.0/16,example.com"),
        ("CLOISTER_EGRESS_EXTRA_RANGES", "34.1.0.1/16"),
        ("CLOISTER_EGRESS_NAMESERVERS", "dns.example.com"),
        ("CLOISTER_EGRESS_MIRRORS", "conda=https://m.example.com/"),
        ("CLOISTER_EGRESS_MIRRORS", "pip=http://m.example.com/"),
        ("CLOISTER_PROOF_INTERVAL", "0"),
        ("CLOISTER_MAX_PROCESSES", "-1"),
    ],
)
def test_what_would_leave_something_open_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(NEEDED | {name: value})
