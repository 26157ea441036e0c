"""The CAs that follow each other, as the Secret `cloister-ca` keeps them.

One issues. Beside it there may be the next one, which everybody is told to trust before it issues
anything, and earlier ones, which stay trusted for as long as something lives that they signed.
When which step is due: plan/rotation.
"""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cryptography import x509

from .identity import BACKDATED, Authority, Issuer
from .plan.rotation import CLOCKS

MAX_FORMER = 4
"""Earlier CAs that are trusted at the same time: requests without end must not let bundles grow."""
_STATE = "rotation.json"
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Generations:
    """The CAs, oldest trust last."""

    issuing: Issuer
    changed_at: datetime
    """When the last step was made, in UTC; of a CA that was never rotated, before any pod was."""
    upcoming: Issuer | None = None
    former: tuple[bytes, ...] = ()
    """Certificates, PEM; their keys are gone."""
    request: str = ""
    """The last request to rotate that was followed."""

    @classmethod
    def first(cls, now: datetime) -> "Generations":
        """A new CA and nothing before it: no pod is older, so that none is to be told of it."""
        return cls(Issuer.create(now), _whole(now - CLOCKS))

    @classmethod
    def from_secret_data(cls, data: dict[str, bytes]) -> "Generations":
        """As stored; raises ValueError, without any of the input in it, when it is unfit."""
        try:
            issuing = Issuer.from_pem(data["tls.crt"], data["tls.key"])
            upcoming = None
            if "next.crt" in data:
                upcoming = Issuer.from_pem(data["next.crt"], data["next.key"])
            former = tuple(_BLOCK.findall(data.get("former.crt", b"")))
            for each in former:
                x509.load_pem_x509_certificate(each)
            if _STATE not in data:
                # A CA of a version that knew no rotation.
                made = x509.load_pem_x509_certificate(issuing.ca_pem).not_valid_before_utc
                return cls(issuing, made + BACKDATED, upcoming, former)
            state = json.loads(data[_STATE])
            changed = datetime.fromisoformat(state["changedAt"]).astimezone(UTC)
            return cls(issuing, changed, upcoming, former, str(state["request"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError("the Secret with the CA cannot be read") from None

    def to_secret_data(self) -> dict[str, bytes]:
        """What `from_secret_data` needs, under keys that a kubernetes.io/tls Secret may have."""
        state = {"changedAt": self.changed_at.isoformat(), "request": self.request}
        data = {
            "tls.crt": self.issuing.ca_pem,
            "tls.key": self.issuing.key_pem,
            _STATE: json.dumps(state, sort_keys=True).encode(),
        }
        if self.upcoming:
            data |= {"next.crt": self.upcoming.ca_pem, "next.key": self.upcoming.key_pem}
        if self.former:
            data["former.crt"] = b"".join(self.former)
        return data

    @property
    def also_trusted(self) -> tuple[bytes, ...]:
        """Those beside the one that issues, PEM."""
        return (*((self.upcoming.ca_pem,) if self.upcoming else ()), *self.former)

    def authority(self) -> Authority:
        """What issues and is trusted now."""
        return Authority(self.issuing, self.also_trusted)

    def adopt(self, authority: Authority) -> bool:
        """Let `authority` issue and trust what these say; whether that is news to it."""
        before = authority.issuer_pem, authority.ca_pem
        authority.replace(self.issuing, self.also_trusted)
        return before != (authority.issuer_pem, authority.ca_pem)

    def introduced(self, now: datetime, request: str) -> "Generations":
        """With a new CA that is trusted and issues nothing yet; `request` is followed by it."""
        return replace(self, upcoming=Issuer.create(now), changed_at=_whole(now), request=request)

    def switched(self, now: datetime) -> "Generations":
        """The new CA issues; the one before it stays trusted, without its key."""
        if self.upcoming is None:
            raise ValueError("there is no CA to switch to")
        living = [
            each
            for each in (self.issuing.ca_pem, *self.former)
            if x509.load_pem_x509_certificate(each).not_valid_after_utc > now
        ]
        return replace(
            self,
            issuing=self.upcoming,
            upcoming=None,
            former=tuple(living[:MAX_FORMER]),
            changed_at=_whole(now),
        )

    def dropped(self, now: datetime) -> "Generations":
        """Only the one that issues is trusted."""
        return replace(self, former=(), changed_at=_whole(now))


def _whole(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0)
