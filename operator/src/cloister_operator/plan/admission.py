"""Whether the policies that guard a sandbox namespace have an effect: what is tried, what it shows.

Nothing here would harm if it were let through: it is tried as a dry run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .. import names
from ..api import conditions
from ..api.common import JSON
from ..api.conditions import Finding
from .failure import Failure

INTERVAL_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 10.0
"""While they have no effect, or nobody knows."""
_POLICY = ("ValidatingAdmissionPolicy", "admission webhook")
"""How the API server says who refused: our policies, or a policy engine of the platform."""
_POD_SECURITY = ("violates PodSecurity",)


@dataclass(frozen=True)
class Attempt:
    """Something that must be refused."""

    what: str
    """For messages."""
    kind: str
    """pods or networkpolicies."""
    body: JSON
    by: tuple[str, ...]
    """What the API server's words must contain, one of them: a refusal for another reason, such as
    a missing right, shows nothing."""


@dataclass(frozen=True)
class Tried:
    """How an attempt went."""

    attempt: Attempt
    refusal: str | None
    """The API server's words; None where it was let through."""


@dataclass(frozen=True)
class Verdict:
    """What the attempts in a namespace showed."""

    enforced: bool
    message: str


def attempts(namespace: str) -> tuple[Attempt, ...]:
    """What the operator, who may make pods and network policies there, must not get through."""
    return (
        Attempt("a privileged pod", "pods", _privileged(namespace), (*_POLICY, *_POD_SECURITY)),
        # Pod Security lets this one in.
        Attempt(
            "a pod with the cluster's resolver and a token", "pods", _curious(namespace), _POLICY
        ),
        Attempt(
            f"a {names.DENY_POLICY} that allows everything",
            "networkpolicies",
            _open(namespace),
            _POLICY,
        ),
    )


def judge(tried: Iterable[Tried]) -> Verdict | None:
    """What this shows; None where an attempt ended for another reason, and so shows nothing."""
    unclear = False
    for each in tried:
        if each.refusal is None:
            return Verdict(
                False,
                f"the API server would admit {each.attempt.what}: the admission policies of the "
                "chart are missing, or not bound to this namespace; upgrade the release, or look "
                "at its validatingadmissionpolicybindings",
            )
        unclear |= not any(word in each.refusal for word in each.attempt.by)
    if unclear:
        return None
    return Verdict(True, "weakened pods and network policies were refused when the operator tried")


def finding(verdict: Verdict | None) -> Finding:
    """The condition of the Environments of a namespace."""
    if verdict is None:
        message = "nobody has tried yet whether the admission policies have an effect"
        return Finding(
            conditions.ADMISSION_ENFORCED, "Unknown", conditions.ADMISSION_NOT_TRIED, message
        )
    if verdict.enforced:
        return Finding(
            conditions.ADMISSION_ENFORCED, "True", conditions.ADMISSION_PROVEN, verdict.message
        )
    return Finding(
        conditions.ADMISSION_ENFORCED,
        "False",
        conditions.ADMISSION_NOT_ENFORCED,
        verdict.message,
    )


def hindrance(verdict: Verdict | None, required: bool) -> Failure | None:
    """Why no session is given, where the platform requires that the policies have an effect."""
    if not required or (verdict and verdict.enforced):
        return None
    found = finding(verdict)
    return Failure(found.reason, found.message)


def again_after(verdicts: Sequence[Verdict | None]) -> float:
    """Seconds until it is tried again."""
    good = all(each is not None and each.enforced for each in verdicts)
    return INTERVAL_SECONDS if good else RETRY_SECONDS


def _pod(namespace: str, security: JSON, **spec: object) -> JSON:
    container: JSON = {"name": "x", "image": "none.invalid/none:none", "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cloister-admission-self-test", "namespace": namespace},
        "spec": {"containers": [container], **spec},
    }


def _privileged(namespace: str) -> JSON:
    return _pod(namespace, {"privileged": True}, hostNetwork=True, hostPID=True)


def _curious(namespace: str) -> JSON:
    hardened: JSON = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return _pod(namespace, hardened, dnsPolicy="ClusterFirst", automountServiceAccountToken=True)


def _open(namespace: str) -> JSON:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": names.DENY_POLICY, "namespace": namespace},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{}],
            "egress": [{}],
        },
    }
