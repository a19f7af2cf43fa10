"""Names that one system or another does not take for a folder of that name."""

import pytest

from prunekit.errors import InputError
from prunekit.files import LONGEST, check_folder_name, check_label, check_out

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
