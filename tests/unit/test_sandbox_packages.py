import pathlib
import tempfile

import pytest

from sagapost_sandbox import accounts, apt, errors, packages


def test_a_missing_package_is_named_with_the_exact_command() -> None:
    """The sentence says what to type."""
    error = errors.MissingPackagesError(("rabbitmq-server",), apt.command(("rabbitmq-server",)))

    assert str(error) == "rabbitmq-server not installed; install with: sudo apt-get install --no-install-recommends -y rabbitmq-server"


def test_what_is_installed_is_found_and_not_installed_again() -> None:
    """Where the binaries are, ensure only returns them."""
    said: list[str] = []

    found = packages.ensure(said.append)

    assert said == []
    assert packages.missing() == ()
    assert (found.postgres.folder / "initdb").exists()
    assert found.postgres.major >= 13


def test_a_major_version_that_is_not_there_is_not_found() -> None:
    """A cluster of another version gets no wrong binaries."""
    assert packages.find_postgres(1) is None


def test_a_placed_file_is_gone_afterwards_even_after_an_error(tmp_path: pathlib.Path) -> None:
    """Nothing that keeps services from starting stays on the machine."""
    path = tmp_path / "new" / "policy-rc.d"

    def fail() -> None:
        with apt.placed(path, f"{apt.MARK}\n", 0o755):
            assert path.stat().st_mode & 0o777 == 0o755
            raise RuntimeError("apt-get was interrupted")

    with pytest.raises(RuntimeError):
        fail()
    assert not path.parent.exists()


def test_somebody_elses_file_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    """The machine's own policy is not ours to change."""
    path = tmp_path / "policy-rc.d"
    path.write_text("exit 0\n")

    with apt.placed(path, f"{apt.MARK}\n", 0o755):
        assert path.read_text() == "exit 0\n"

    assert path.read_text() == "exit 0\n"


def test_our_own_file_left_behind_by_a_kill_is_tidied_up(tmp_path: pathlib.Path) -> None:
    """The next run recognises it and takes it away."""
    path = tmp_path / "policy-rc.d"
    path.write_text(f"#!/bin/sh\n{apt.MARK}\nexit 101\n")

    with apt.placed(path, f"{apt.MARK}\n", 0o755):
        pass

    assert not path.exists()


@pytest.mark.parametrize(("mode", "uid_offset", "reachable"), [(0o700, 0, True), (0o700, 1, False), (0o711, 1, True), (0o600, 0, False)])
def test_whether_a_user_can_reach_a_folder_is_read_from_its_modes(
    tmp_path: pathlib.Path, mode: int, uid_offset: int, reachable: bool
) -> None:
    """Owner, group and others are looked at in the kernel's order, for each folder on the way."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for part in (tmp_path, *tmp_path.parents):
        if part.owner() == tmp_path.owner() and part.is_relative_to(tempfile.gettempdir()) and part != pathlib.Path(tempfile.gettempdir()):
            part.chmod(0o711)
    folder.chmod(mode)
    owner = folder.stat()
    account = accounts.Account(name="somebody", uid=owner.st_uid + uid_offset, gid=owner.st_gid + 1, groups=())

    assert accounts.can_reach(account, folder) == reachable
