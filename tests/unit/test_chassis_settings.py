"""Settings name everything that is wrong with the environment, and show no password."""

from typing import Annotated

import msgspec
import pytest

from sagapost_chassis import settings


class Example(settings.Common, frozen=True, kw_only=True):
    """A service's settings."""

    database_url: str
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 3


def test_every_missing_and_wrong_variable_is_named_at_once() -> None:
    """A start with several faults says all of them, so that nobody mends one at a time."""
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(Example, {"SAGAPOST_ATTEMPTS": "0", "SAGAPOST_PORT": "many"})

    text = str(caught.value)
    assert "SAGAPOST_DATABASE_URL is not set" in text
    assert "SAGAPOST_ATTEMPTS is wrong" in text
    assert "SAGAPOST_PORT is wrong" in text


def test_an_empty_variable_counts_as_missing() -> None:
    """Compose files hand out empty strings for what nobody set; they take the default."""
    found = settings.load(Example, {"SAGAPOST_DATABASE_URL": "postgresql://x", "SAGAPOST_ATTEMPTS": ""})

    assert found.attempts == 3


def test_an_unknown_environment_is_refused() -> None:
    """A typo in SAGAPOST_ENV must not start a production service in development mode."""
    with pytest.raises(settings.SettingsError, match="development or production"):
        settings.load(Example, {"SAGAPOST_DATABASE_URL": "x", "SAGAPOST_ENV": "prod"})


def test_a_failed_start_exits_with_2_and_one_sentence_per_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """What the operator reads is the fault, not a traceback."""
    with pytest.raises(SystemExit) as caught:
        settings.load_or_exit(Example, {})

    assert caught.value.code == 2
    assert capsys.readouterr().err == "SAGAPOST_DATABASE_URL is not set\n"


def test_a_url_is_shown_without_its_password() -> None:
    """Error messages may name the server, never the credentials."""
    assert settings.without_password("postgresql://user:secret@host:5433/db") == "postgresql://host:5433/db"
