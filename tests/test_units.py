# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvattn.errors import ConfigError
from pyvattn.units import format_page_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64K", 65536),
        ("64k", 65536),
        ("2M", 2 << 20),
        ("2 MiB", 2 << 20),
        ("60GiB", 60 << 30),
        ("1.5GB", 3 << 29),
        ("1T", 1 << 40),
        ("4096", 4096),
        ("512B", 512),
        (65536, 65536),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1K", "64Q", "64 K B", "0", 0, -5, "0.3", True, 1.5, None]
)
def test_what_is_no_size_is_refused_with_its_name(text):
    with pytest.raises(ConfigError, match="memory"):
        parse_size(text, "memory")


def test_page_sizes_print_as_they_are_named():
    assert [format_page_size(s) for s in (64 << 10, 2 << 20, 1 << 30, 1000)] == [
        "64K",
        "2M",
        "1G",
        "1000",
    ]


@pytest.mark.parametrize("size", [64 << 10, 128 << 10, 2 << 20, 1 << 30, 1000])
def test_page_size_names_read_back(size):
    assert parse_size(format_page_size(size)) == size


def test_sizes_print_with_three_digits():
    assert format_size(0) == "0 B"
    assert format_size(1536) == "1.50 KiB"
    assert format_size(10 << 20) == "10.0 MiB"
    assert format_size(600 << 30) == "600 GiB"
