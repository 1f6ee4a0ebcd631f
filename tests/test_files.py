# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, and nothing but a file is replaced by one."""

from __future__ import annotations

import os
import stat

import pytest

from pyvattn.files import write_whole


def test_a_file_is_replaced_by_what_was_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, ["a", "b"])
    assert path.read_text() == "ab"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_where_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def parts():
        yield "half"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, parts())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_or_folder_is_not_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(OSError, match="no ordinary file"):
            write_whole(path, ["text"])
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert folder.is_dir()
