"""Amounts that are read, against values by hand and against how such values are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.measure import human_bytes, human_count, human_seconds, read_amount


@pytest.mark.parametrize(
    ("text", "value", "cost"),
    [
        ("100 MMACs", 100e6, "macs"),
        ("1.5 GMACs", 1.5e9, "macs"),
        ("7 MACs", 7, "macs"),
        ("7macs", 7, "macs"),
        ("2 kMAC", 2000, "macs"),
        ("41.0 M MACs", 41e6, "macs"),
        ("2.5 M parameters", 2.5e6, "parameters"),
        ("60K params", 60_000, "parameters"),
        ("1,000 parameters", 1000, "parameters"),
        ("1,234,567.5 MACs", 1234567.5, "macs"),
        ("512 B", 512, "bytes"),
        ("500 kB", 500e3, "bytes"),
        ("500KB", 500e3, "bytes"),
        ("2 MiB", 2 * 1024**2, "bytes"),
        ("1e3 bytes", 1000, "bytes"),
        ("5 ms", 0.005, "latency"),
        ("250 µs", 250e-6, "latency"),
        ("250us", 250e-6, "latency"),
        ("0.5 s", 0.5, "latency"),
    ],
)
def test_values_by_hand(text, value, cost):
    found, kind = read_amount(text)
    assert found == pytest.approx(value, rel=1e-12)
    assert kind == cost


@given(st.floats(1, 9e14))
def test_what_is_shown_is_read(value):
    for shown, cost in (
        (f"{human_count(value)} MACs", "macs"),
        (f"{human_count(value)} parameters", "parameters"),
        (human_bytes(value), "bytes"),
        (human_seconds(value * 1e-9), "latency"),
    ):
        found, kind = read_amount(shown)
        assert kind == cost
        assert found == pytest.approx(value * (1e-9 if cost == "latency" else 1), rel=0.006)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "ms",
        "5 parsecs",
        "-5 ms",
        "0 MACs",
        "5 mMACs",
        "5 ks",
        "1e999 B",
        "5 ms 3",
        "0,5 ms",
        "1,5 kB",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="is no amount: write a number above 0 and its unit"):
        read_amount(text)
