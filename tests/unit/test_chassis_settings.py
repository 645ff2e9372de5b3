"""Settings name everything that is wrong with the environment, and show no password."""

import pathlib
from typing import Annotated

import msgspec
import pytest
import rich.pretty

from sagapost_chassis import settings, urls


class Example(settings.Common, frozen=True, kw_only=True):
    """A service's settings."""

    database_url: settings.DatabaseUrl
    token: settings.Secret = ""
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
        settings.load(Example, {"SAGAPOST_DATABASE_URL": "postgresql://x", "SAGAPOST_ENV": "prod"})


def test_a_failed_start_exits_with_2_and_one_sentence_per_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """What the operator reads is the fault, not a traceback."""
    with pytest.raises(SystemExit) as caught:
        settings.load_or_exit(Example, {})

    assert caught.value.code == 2
    assert capsys.readouterr().err == "SAGAPOST_DATABASE_URL is not set\n"


def test_a_url_is_shown_without_its_password() -> None:
    """Error messages may name the server, never the credentials."""
    assert urls.shown("postgresql://user:secret@host:5433/db") == "postgresql://host:5433/db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqps://user:sl%2Fash@h:1/%2f?cafile=/ca.pem", "amqps://h:1/%2f"),
        ("amqps://user:sl/ash@h:1/%2f?cafile=/ca.pem", "…"),
        ("postgresql://user:at@sign@host/db", "…"),
        ("postgresql://host/db?password=tell&sslmode=require", "postgresql://host/db"),
        ("postgresql://host/db?password=te@ll", "…"),
        ("amqp://user:p@[::1]:5672,h-2.example:5673/", "amqp://[::1]:5672,h-2.example:5673/"),
        ("host=h password=word dbname=db", "host=h dbname=db"),
        ("host=h password='two words' dbname=db", "…"),
    ],
)
def test_odd_passwords_are_not_shown_either(url: str, shown: str) -> None:
    """A slash, an at sign, a parameter, a quoted word: nothing of a password stays."""
    assert urls.shown(url) == shown


def test_no_repr_shows_a_secret() -> None:
    """Whoever prints or logs the settings as a whole prints no password: not repr, not str, not rich, not format."""
    found = settings.load(Example, {"SAGAPOST_DATABASE_URL": "postgresql://u:tell-nobody@h/db", "SAGAPOST_TOKEN": "tell-nobody"})

    printed = f"{found} {found!r} {rich.pretty.pretty_repr(found)} {[found]}"
    assert "tell-nobody" not in printed
    assert "attempts=3" in printed


def test_every_variable_can_come_from_a_file(tmp_path: pathlib.Path) -> None:
    """SAGAPOST_<NAME>_FILE is read, without its one last line break; what else stands in it stays."""
    token, attempts = tmp_path / "token", tmp_path / "attempts"
    token.write_text("a token \n\n", encoding="utf-8")
    attempts.write_text("5\r\n", encoding="utf-8")

    environ = {"SAGAPOST_DATABASE_URL": "postgresql://h/db", "SAGAPOST_TOKEN_FILE": str(token), "SAGAPOST_ATTEMPTS_FILE": str(attempts)}
    found = settings.load(Example, environ)

    assert (found.token, found.attempts) == ("a token \n", 5)


def test_a_variable_beside_its_file_is_refused(tmp_path: pathlib.Path) -> None:
    """Nobody has to guess which of the two counts."""
    (tmp_path / "url").write_text("postgresql://h/db", encoding="utf-8")

    with pytest.raises(settings.SettingsError, match="SAGAPOST_DATABASE_URL and SAGAPOST_DATABASE_URL_FILE are both set"):
        settings.load(Example, {"SAGAPOST_DATABASE_URL": "x", "SAGAPOST_DATABASE_URL_FILE": str(tmp_path / "url")})


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfe", "is not UTF-8 text")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: pathlib.Path, content: bytes | None, reason: str) -> None:
    """A secret that was not mounted is found at the start, in a sentence with the path."""
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(settings.SettingsError) as caught:
        settings.load(Example, {"SAGAPOST_DATABASE_URL_FILE": str(path)})

    assert "SAGAPOST_DATABASE_URL_FILE" in str(caught.value)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
