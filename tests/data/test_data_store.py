import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from synthetic_data_files import cifar_contents, idx_bytes, mnist_contents, write_cifar, write_mnist

from prunekit.data.dataset import DataSettings
from prunekit.data.images import load_cifar10, load_mnist, read_idx
from prunekit.data.store import SOURCES, Download, Source, Store, read_bytes
from prunekit.data.tabular import labels, numbers, read_rows
from prunekit.errors import DataError


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar_of(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def files_below(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


TABLE = b"1,2,3\n"


def table(url, **changes):
    source = Source(
        dataset="small",
        files=(("small.csv", "small.data"),),
        folders=("tables", "."),
        mirrors=(url,),
        downloads=(Download("small.data", sha256(TABLE)),),
        into="tables",
    )
    return replace(source, **changes)


@pytest.fixture
def zipped_mnist():
    return {f"{name}.gz": gzip.compress(content) for name, content in mnist_contents().items()}


def mnist_at(url, contents):
    downloads = tuple(Download(name, sha256(content)) for name, content in contents.items())
    return replace(SOURCES["mnist"], mirrors=(url,), downloads=downloads)


def test_a_download_goes_to_the_cache_and_is_used_without_the_server(serve, cache, zipped_mnist):
    server = serve(zipped_mnist)
    source = mnist_at(server.url, zipped_mnist)
    settings = DataSettings(name="mnist")
    first = load_mnist(settings, Store(cache), source)
    assert sorted(server.requests) == sorted(zipped_mnist)
    assert files_below(cache) == sorted(f"mnist/{name}" for name in zipped_mnist)
    server.stop()
    again = load_mnist(settings, Store(cache), source)
    assert len(server.requests) == 4
    assert first.train.inputs.equal(again.train.inputs)
    load_mnist(settings, Store(cache, download=False), source)


def test_the_data_folder_comes_before_the_cache(tmp_path, cache):
    write_mnist(cache / "mnist", train=60)
    write_mnist(tmp_path / "mine" / "mnist", train=40)
    dataset = load_mnist(DataSettings(name="mnist"), Store(cache, tmp_path / "mine"))
    assert len(dataset.train) + len(dataset.validation) == 40


def test_without_files_in_the_data_folder_the_cache_is_used(tmp_path, cache):
    write_mnist(cache / "mnist", train=60)
    (tmp_path / "mine").mkdir()
    dataset = load_mnist(DataSettings(name="mnist"), Store(cache, tmp_path / "mine", download=False))
    assert len(dataset.train) + len(dataset.validation) == 60


def test_a_wrong_checksum_is_refused_and_leaves_nothing(serve, cache):
    server = serve({"small.data": b"9,9,9\n"})
    with pytest.raises(DataError, match=r"small: .*hash of downloaded file \(small\.data\) does not match"):
        Store(cache).fetch(table(server.url))
    assert files_below(cache) == []


def test_a_transfer_that_breaks_off_leaves_nothing(serve, cache):
    server = serve({"small.data": TABLE * 100_000})
    server.cut.add("small.data")
    with pytest.raises(DataError, match=r"small: .*download failed"):
        Store(cache).fetch(table(server.url))
    assert files_below(cache) == []


def test_an_interrupt_leaves_nothing(serve, cache, monkeypatch):
    server = serve({"small.data": TABLE})

    def interrupted(self, url, output_file, pooch):
        Path(output_file).write_bytes(TABLE[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store(cache).fetch(table(server.url))
    assert files_below(cache) == []


def test_the_next_mirror_is_tried(serve, cache):
    bad, good = serve({"small.data": b"<html>"}), serve({"small.data": TABLE})
    (path,) = Store(cache).fetch(table("", mirrors=(bad.url, good.url)))
    assert path.read_bytes() == TABLE
    assert (len(bad.requests), len(good.requests)) == (1, 1)


def test_a_download_may_have_another_path_at_the_source(serve, cache):
    server = serve({"files/123": TABLE})
    source = table(f"{server.url}/files/", downloads=(Download("small.data", sha256(TABLE), path="123"),))
    assert Store(cache).fetch(source) == [cache / "tables" / "small.data"]


def test_one_error_names_every_place_and_the_way_out(serve, cache, tmp_path):
    server = serve({})
    server.stop()
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        Store(cache, folder).fetch(table(server.url))
    text = str(caught.value)
    expected = ("small:", "small.csv or small.data", f"{folder} (in tables, .)", str(cache))
    for part in (*expected, server.url, "data_dir", "PRUNEKIT_DATA", "download=True"):
        assert part in text


def test_a_missing_page_names_its_address(serve, cache):
    server = serve({})
    with pytest.raises(DataError, match=f"{server.url}/small.data: 404"):
        Store(cache).fetch(table(server.url))


def test_nothing_is_downloaded_against_the_users_will(serve, cache):
    server = serve({"small.data": TABLE})
    with pytest.raises(DataError, match="downloading was not allowed"):
        Store(cache, download=False).fetch(table(server.url))
    assert server.requests == []


def test_a_folder_that_is_not_there_is_told(cache, tmp_path):
    with pytest.raises(DataError, match=r"typo \(no such folder\)"):
        Store(cache, tmp_path / "typo", download=False).fetch(table(""))


def test_files_that_are_there_only_in_part_are_told(cache):
    write_mnist(cache / "MNIST" / "raw")
    (cache / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"missing there: t10k-labels-idx1-ubyte\.gz or t10k-labels"):
        Store(cache, download=False).fetch(SOURCES["mnist"])


def test_a_cache_that_cannot_be_written_is_named(serve, cache):
    cache.write_text("a file where the folder should be")
    server = serve({"small.data": TABLE})
    with pytest.raises(DataError, match=f"download failed: .*{cache.name}"):
        Store(cache).fetch(table(server.url))


def cifar_at(url, archive):
    return replace(
        SOURCES["cifar10"], mirrors=(url,), downloads=(Download("cifar-10-binary.tar.gz", sha256(archive)),)
    )


def test_an_archive_is_unpacked_and_not_kept(serve, cache):
    contents = {f"cifar-10-batches-bin/{name}": content for name, content in cifar_contents().items()}
    archive = tar_of(contents)
    server = serve({"cifar-10-binary.tar.gz": archive})
    source = cifar_at(server.url, archive)
    dataset = load_cifar10(DataSettings(name="cifar10"), Store(cache), source)
    assert dataset.input_shape == (3, 32, 32)
    assert files_below(cache) == sorted(f"cifar10/{name}" for name in contents)
    assert [path.name for path in (cache / "cifar10").iterdir()] == ["cifar-10-batches-bin"]
    server.stop()
    load_cifar10(DataSettings(name="cifar10"), Store(cache), source)


def test_an_archive_completes_what_another_process_left_undone(serve, cache):
    write_cifar(cache / "cifar10" / "cifar-10-batches-bin")
    (cache / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    archive = tar_of({f"cifar-10-batches-bin/{name}": content for name, content in cifar_contents().items()})
    server = serve({"cifar-10-binary.tar.gz": archive})
    assert len(Store(cache).fetch(cifar_at(server.url, archive))) == 6


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin"])
def test_an_archive_cannot_write_outside_of_the_cache(serve, cache, name):
    archive = tar_of({f"..{name}" if name.startswith("/") else name: b"x", "cifar-10-batches-bin/y": b"y"})
    server = serve({"cifar-10-binary.tar.gz": archive})
    with pytest.raises(DataError, match="outside"):
        Store(cache).fetch(cifar_at(server.url, archive))
    assert files_below(cache.parent) == []


def test_an_archive_that_holds_something_else_is_refused(serve, cache):
    archive = tar_of({"readme.txt": b"moved"})
    server = serve({"cifar-10-binary.tar.gz": archive})
    with pytest.raises(DataError, match=r"cifar10: .* the download does not hold them"):
        Store(cache).fetch(cifar_at(server.url, archive))


def test_what_is_no_archive_is_refused(serve, cache):
    server = serve({"cifar-10-binary.tar.gz": b"not a tar"})
    with pytest.raises(DataError, match="download failed"):
        Store(cache).fetch(cifar_at(server.url, b"not a tar"))
    assert files_below(cache) == []


def test_the_argument_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_DATA", str(tmp_path / "environment"))
    assert Store.open(tmp_path / "argument").folder == tmp_path / "argument"
    assert Store.open().folder == tmp_path / "environment"
    monkeypatch.setenv("PRUNEKIT_DATA", "")
    assert Store.open().folder is None


def test_the_cache_is_the_platforms_unless_the_environment_names_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "elsewhere"))
    assert Store.open().cache == tmp_path / "elsewhere"
    monkeypatch.delenv("PRUNEKIT_CACHE")
    assert Store.open().cache == Path(pooch.os_cache("prunekit"))


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
