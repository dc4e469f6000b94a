import pytest
from cli.conftest import Shell

from mlx_serving.actors.errors import ERRORS, ActorUnavailable, InvalidParameter, Overloaded, ServingError
from mlx_serving.frontends.cli.failure import NEXT, report


def test_advice_belongs_to_errors_that_exist() -> None:
    assert NEXT.keys() <= ERRORS.keys()


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_every_error_is_one_line_and_its_exit_status(
    kind: type[ServingError], capfd: pytest.CaptureFixture[str]
) -> None:
    assert report(kind("it is so")) == kind.exit_status
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == "error: it is so"
    assert len(shown.err.splitlines()) <= 2


def test_the_field_is_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    report(InvalidParameter("must be at most 2", field="temperature"))
    report(InvalidParameter("temperature must be at most 2", field="temperature"))
    first, second = capfd.readouterr().err.splitlines()
    assert first == "error: must be at most 2 (temperature)"
    assert second == "error: temperature must be at most 2"


def test_overload_says_when_to_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    report(Overloaded("full", retry_after=2.5))
    assert "try again in 2.5 s" in capfd.readouterr().err


def test_a_long_message_in_square_brackets_stays_one_line_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    message = "[red]" + "a long way " * 40 + "[/x]"
    report(InvalidParameter(message))
    assert capfd.readouterr().err.splitlines()[0] == f"error: {message}"


def test_a_bug_shows_its_traceback_and_ends_with_the_status_of_a_bug(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_serving.frontends.cli.config.show_rows", lambda loaded: 1 / 0)
    ended = shell("config", "show")
    assert ended.exit_code == 70
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError: division by zero" in ended.stderr.splitlines()[-2]
    assert ended.stdout == ""


def test_a_live_command_without_a_server_says_how_to_start_one(shell: Shell) -> None:
    refused = shell("status")
    assert refused.exit_code == ActorUnavailable.exit_status == 69
    assert "mlx-serving serve" in refused.stderr
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr
