import os

import pytest

from prunekit.errors import DataError, InputError
from prunekit.files import (
    LONGEST,
    check_folder_name,
    check_label,
    check_out,
    file_to_write,
    read_json,
    remove_leftovers,
    replacing,
    replacing_folder,
    to_json,
    write_text,
)


def test_json_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_text(path, to_json({"ä": [1, 0.5, None]}))
    assert read_json(path) == {"ä": [1, 0.5, None]}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_diverged_loss_is_written_as_text(tmp_path):
    write_text(tmp_path / "a.json", to_json([float("nan"), float("-inf")]))
    assert read_json(tmp_path / "a.json") == ["nan", "-inf"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read .*a.json: No such file"), ("{", "damaged")]
)
def test_reading_what_is_not_there(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path):
    """As root a device would be gone for every program."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"device or a pipe, no file: .*pipe"):
        write_text(path, "new")
    with pytest.raises(InputError, match="pipe is a device or a pipe: name a file"):
        file_to_write(path)
    assert path.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "f"
    with replacing_folder(path) as temporary:
        (temporary / "old").touch()
    return path


def test_a_folder_is_replaced_as_a_whole(folder):
    with replacing_folder(folder) as temporary:
        (temporary / "new").touch()
        assert os.listdir(folder) == ["old"]
    assert os.listdir(folder) == ["new"]
    assert os.listdir(folder.parent) == ["f"]


def test_a_failed_write_leaves_the_old_folder(folder):
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as temporary:  # noqa: PT012
        (temporary / "new").touch()
        raise KeyboardInterrupt
    assert os.listdir(folder) == ["old"]
    assert os.listdir(folder.parent) == ["f"]


@pytest.mark.parametrize("failing", [1, 2])
def test_so_does_a_rename_that_fails(folder, monkeypatch, failing):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"), replacing_folder(folder) as temporary:
        (temporary / "new").touch()
    assert os.listdir(folder) == ["old"]
    assert os.listdir(folder.parent) == ["f"]


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / ".a.x1").touch()
    (tmp_path / ".b.x2").mkdir()
    (tmp_path / ".b.x2" / "c").touch()
    (tmp_path / "kept").touch()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


# ---- names -------------------------------------------------------------------------------------------------

DEVICES = ["con", "NUL.txt", "Aux", "COM1", "lpt9.tar.gz", "prn .x"]
BAD_ANYWHERE = [
    *DEVICES,
    "ends.",
    "ends ",
    " begins",
    "line\nend",
    "zero\0",
    "\x1b[31m",
    "\ud800",
    "x" * (LONGEST + 1),
]


@pytest.mark.parametrize(
    "name", [*BAD_ANYWHERE, "", ".", "..", "../x", "a/b", "a\\b", "C:x", ".hidden", "-o", "é"]
)
def test_what_cannot_name_a_folder_is_refused_in_one_short_line(name):
    with pytest.raises(InputError, match="cannot name a folder") as caught:
        check_folder_name(name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("name", ["a", "digits-quick", "2.5_x", "console", "nulls", "com10", "x" * LONGEST])
def test_plain_names_are_taken_as_they_are(name):
    assert check_folder_name(name) == name


@pytest.mark.parametrize(
    "label", ["", " ", "\n", "a\nb", "a\rb", "a\u2028b", "\0", "\ud800", "x" * (LONGEST + 1)]
)
def test_what_cannot_be_a_label_is_refused_in_one_line(label):
    with pytest.raises(InputError, match="label") as caught:
        check_label(label)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("label", ["magnitude, retrained", "AP2/4 (x)", "方法", "../x", "con"])
def test_labels_are_words_of_which_a_name_is_made(label):
    assert check_label(label) == label


@pytest.mark.parametrize("name", BAD_ANYWHERE)
@pytest.mark.parametrize("place", ["{}", "{}/inside", "a/../{}"])
def test_a_folder_that_would_be_made_needs_a_good_name(tmp_path, name, place):
    with pytest.raises(InputError, match="cannot name a folder"):
        check_out(tmp_path / place.format(name))


def test_folders_that_are_there_may_have_any_name(tmp_path, monkeypatch):
    (tmp_path / "ends ").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("ends /new", "../x", ".", "..", "ünï cödé", "/"):
        path = tmp_path / text if text.startswith("ends") else type(tmp_path)(text)
        assert check_out(path) == path
