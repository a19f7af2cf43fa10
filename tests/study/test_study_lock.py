import errno
import os

import pytest

from prunekit.errors import InputError
from prunekit.study.lock import LOCK, only_run


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with only_run(tmp_path / "a"):
        with (
            pytest.raises(InputError, match=rf"at work in .*a \(process {os.getpid()}\): .*--out"),
            only_run(tmp_path / "a"),
        ):
            pass
        with only_run(tmp_path / "b"):
            pass


def test_the_lock_goes_with_its_holder(tmp_path):
    with pytest.raises(ZeroDivisionError), only_run(tmp_path):
        raise ZeroDivisionError
    with only_run(tmp_path):
        pass


def test_a_file_that_is_left_behind_locks_nobody_out(tmp_path):
    (tmp_path / LOCK).write_text("123456")
    with only_run(tmp_path):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_where_nothing_can_be_locked_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_run(tmp_path):
        assert "cannot be locked (Operation not supported)" in caplog.text
