import gzip
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from synthetic_data_files import idx_bytes

from prunekit.data.idx import read_idx
from prunekit.data.reading import read_bytes
from prunekit.data.table import labels, numbers, read_rows
from prunekit.errors import DataError


def file(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_gzip_is_told_by_content(tmp_path):
    assert read_bytes(file(tmp_path, gzip.compress(b"abc"), "plain.txt")) == b"abc"
    assert read_bytes(file(tmp_path, b"abc", "named.gz")) == b"abc"


DAMAGED = {
    "truncated gzip": (gzip.compress(os.urandom(500))[:200], "truncated"),
    "gzip without its end": (gzip.compress(b"abc")[:-8], "truncated"),
    "gzip with a wrong checksum": (gzip.compress(b"abc")[:-8] + bytes(8), "damaged"),
    "gzip with a wrong stream": (gzip.compress(b"")[:10] + b"\xff" * 20, "damaged"),
    "empty": (b"", "empty"),
    "empty gzip": (gzip.compress(b""), "empty"),
    "a web page": (b"\n <!DOCTYPE html><html>Not found</html>", "web page"),
    "a gzipped web page": (gzip.compress(b"<html>Sign in</html>"), "web page"),
    "an error of a cloud store": (b"<?xml version='1.0'?><Error/>", "web page"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(tmp_path, kind):
    content, message = DAMAGED[kind]
    path = file(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_bytes(path)
    assert str(path) in str(caught.value)
    assert "replace this file" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        read_bytes(tmp_path / "gone")


@given(values=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=6)), zipped=st.booleans())
def test_idx_gives_back_what_was_written(tmp_path_factory, values, zipped):
    content = idx_bytes(values)
    path = file(tmp_path_factory.mktemp("idx"), gzip.compress(content) if zipped else content)
    assert np.array_equal(read_idx(path, values.ndim), values)


IMAGES = idx_bytes(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES[:-1], r"39 bytes found, 40 expected for the shape \(2, 3, 4\)"),
        (IMAGES + b"x", "41 bytes found, 40 expected"),
        (IMAGES[:10], "header is truncated: 10 bytes found, 16 expected"),
        (IMAGES[:2], "magic number is 0000, expected 00000803"),
        (idx_bytes(np.arange(24)), "magic number is 00000801, expected 00000803"),
        (b"\x00\x00\x0d\x03" + IMAGES[4:], "magic number is 00000d03"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "16 bytes found"),
        (b"<html>", "web page"),
    ],
)
def test_idx_refuses(tmp_path, content, message):
    path = file(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_rows_are_stripped_and_empty_lines_skipped(tmp_path):
    path = file(tmp_path, "1, 2 ,a\r\n\n3,4,b\n\n")
    assert read_rows(path, rows=2, columns=3) == [["1", "2", "a"], ["3", "4", "b"]]


def test_a_header_is_optional_but_must_be_right(tmp_path):
    header = ("x", "y")
    assert read_rows(file(tmp_path, "x, y\n1,2\n"), rows=1, columns=2, header=header) == [["1", "2"]]
    assert read_rows(file(tmp_path, "1,2\n"), rows=1, columns=2, header=header) == [["1", "2"]]
    with pytest.raises(DataError, match="columns are y, x, expected x, y"):
        read_rows(file(tmp_path, "y,x\n1,2\n"), rows=1, columns=2, header=header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n3\n", "line 2 has 1 columns, expected 2"),
        ("1,2,3\n", "line 1 has 3 columns, expected 2"),
        ("1,2\n", "1 rows found, 2 expected"),
        ("1,2\n" * 3, "3 rows found, 2 expected"),
        (" \n", "0 rows found, 2 expected"),
        (b"\xff\xfe1,2\n", "not a text file"),
        ("<html>\n", "web page"),
    ],
)
def test_tables_refuse(tmp_path, content, message):
    path = file(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(path, rows=2, columns=2)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("two", "not a number .*'two'"),
        ("0.6\t8", "not a number"),
        ("?", "not a number"),
        ("", "not a number"),
        ("nan", "row 2, feature 1 is nan, expected 0 to 5"),
        ("inf", "row 2, feature 1 is inf"),
        ("5.1", "row 2, feature 1 is 5.1, expected 0 to 5"),
    ],
)
def test_numbers_refuse(tmp_path, cell, message):
    with pytest.raises(DataError, match=message):
        numbers(tmp_path / "table.csv", [["0", "5"], [cell, "1"]], low=0, high=5)


def test_an_unknown_class_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"table.csv: the class 'c' is none of a, b"):
        labels(tmp_path / "table.csv", ["a", "b", "c"], {"a": 0, "b": 1})
