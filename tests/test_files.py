"Files: whole or not at all, one winner, nothing left behind, and without torch."
import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from dals.lab.files import read_file, StoreError, write_new


def test_a_text_arrives_as_it_is_in_a_folder_that_is_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "7.json"
    write_new(path, text := "é\n" * 5000)
    assert read_file(path) == text and [*path.parent.iterdir()] == [path]


def test_a_name_is_given_once_unless_the_newer_shall_win(tmp_path):
    path = tmp_path / "7.json"
    write_new(path, "first")
    with pytest.raises(FileExistsError):
        write_new(path, "second")
    assert read_file(path) == "first"
    write_new(path, "third", replace=True)
    assert read_file(path) == "third" and [*tmp_path.iterdir()] == [path]


def test_of_many_writers_one_wins_and_its_text_is_whole(tmp_path):
    path, texts = tmp_path / "7.json", [str(i) * 20_000 for i in range(8)]

    def write(text):
        try:
            write_new(path, text)
            return text
        except FileExistsError:
            return None
    with ThreadPoolExecutor(8) as pool:
        (winner,) = filter(None, pool.map(write, texts))
    assert read_file(path) == winner and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_what_was_there_and_nothing_else(call, tmp_path):
    path = tmp_path / "index.html"
    write_new(path, "old")
    with mock.patch(f"os.{call}", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), \
            pytest.raises(StoreError, match="could not write index.html, and nothing of it was left behind .No space left"):
        write_new(path, "new", replace=True)
    assert read_file(path) == "old" and [*tmp_path.iterdir()] == [path]


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, words in (("file", "file is no folder"), ("link", "link is a link that leads nowhere")):
        with pytest.raises(StoreError, match=words):
            write_new(tmp_path / name / "7.json", "text")


def test_tables_pages_and_records_are_written_by_this_function_without_torch():
    from dals.lab import compare, files, render, store, sweep
    from dals.paper import page
    assert {module.write_new for module in (compare, render, store, sweep, page)} == {files.write_new}
    alone = ("import sys; sys.modules['torch'] = None; import dals.lab.files\n"
             "print(sorted(name for name in sys.modules if name[:9] == 'dals.lab.'))")
    said = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['dals.lab.files']"
