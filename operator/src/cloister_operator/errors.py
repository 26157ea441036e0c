"""Errors whose class says what to do about them.

```
OperatorError
├── TransientError   try again with backoff
│   ├── RefusedError     the platform forbids it for now: RBAC, an admission policy
│   │   └── QuotaError       a quota is used up
│   ├── ConflictError    somebody else wrote first: read again, plan again
│   └── LostError        a write's outcome is unknown: repeat it under the same name
├── NotFoundError    the object is gone: for deletions that is success
└── PermanentError   input that only a person can mend: becomes a condition
```
"""


class OperatorError(Exception):
    """The root of this package's errors."""

    outcome = "error"
    """What metrics call it."""


class TransientError(OperatorError):
    """The API server or a pod could not answer now; the work is repeated with backoff."""

    outcome = "unavailable"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """`retry_after`: seconds the other side asked for, if it did."""
        super().__init__(message)
        self.retry_after = retry_after


class ConflictError(TransientError):
    """A precondition failed: the object changed, or another claimer won."""

    outcome = "conflict"


class RefusedError(TransientError):
    """The API server forbade a write: only the platform's people can mend that, from outside."""

    outcome = "refused"


class QuotaError(RefusedError):
    """A quota of the namespace is used up; `quota` is its name."""

    def __init__(self, message: str, quota: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.quota = quota


class LostError(TransientError):
    """No answer to a write: it may have happened."""

    outcome = "lost"


class NotFoundError(OperatorError):
    """The object does not exist."""

    outcome = "not_found"


class PermanentError(OperatorError):
    """Input that is wrong and stays wrong until a person changes it.

    `reason` is a condition's reason (CamelCase), the message a sentence a person can act on, and
    `field` the path of the input at fault, such as `spec.files[2].path`.
    """

    outcome = "rejected"

    def __init__(self, reason: str, message: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.reason = reason
        self.field = field
        self.sentence = message
