"""What the client library promises by its names."""

import inspect

import grpc
import pytest

import cloister
from cloister import _errors


def test_exports_are_sorted_and_exist() -> None:
    for module in (cloister, cloister.aio):
        assert module.__all__ == sorted(module.__all__)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_everything_public_is_documented() -> None:
    for module in (cloister, cloister.aio):
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), name


def test_every_error_is_exported_and_in_the_drawn_tree() -> None:
    errors = {
        name: each
        for name, each in vars(_errors).items()
        if inspect.isclass(each) and issubclass(each, Exception)
    }
    for name, each in errors.items():
        assert issubclass(each, cloister.CloisterError)
        assert getattr(cloister, name) is each
        assert name in (_errors.__doc__ or "")


@pytest.mark.parametrize(
    "code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK]
)
def test_every_status_code_has_an_error(code: grpc.StatusCode) -> None:
    error = _errors.call_error(code, "why")
    assert type(error) is not cloister.CallError
    assert (error.code, str(error)) == (code, "why")


def test_both_halves_have_the_same_methods_and_parameters() -> None:
    for blocking, asynchronous in (
        (cloister.Client, cloister.AsyncClient),
        (cloister.Session, cloister.AsyncSession),
        (cloister.Process, cloister.AsyncProcess),
        (cloister.Command, cloister.AsyncCommand),
        (cloister.Shell, cloister.AsyncShell),
        (cloister.Files, cloister.AsyncFiles),
        (cloister.Watch, cloister.AsyncWatch),
    ):
        assert parameters(blocking) == parameters(asynchronous)


def parameters(kind: type) -> dict[str, list[tuple[str, object, object]]]:
    """Name, kind and default of each parameter of each public method."""
    return {
        name: [
            (each.name, each.kind, each.default)
            for each in inspect.signature(method).parameters.values()
        ]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        # The others are made by the library alone.
        if not name.startswith("_") or (name == "__init__" and "Client" in kind.__name__)
    }
