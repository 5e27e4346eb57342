"""The register's file: nothing in it changes without showing, and no kill or crowd breaks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.register.chain import append_records, read_register


def write_chain(path: Path, count: int = 4) -> bytes:
    for i in range(count):
        append_records(path, lambda _, i=i: [{"kind": "forecast", "C": 1e13 * (i + 1), "answer": {"N": [i, 0.1]}}])
    return path.read_bytes()


def broken(path):
    return [one.line for one in read_register(path).breaks]


def test_every_byte_of_the_file_is_under_a_hash(tmp_path):
    path = tmp_path / "f.jsonl"
    content = write_chain(path, 3)
    last = content.rstrip(b"\n").rfind(b"\n")
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1
        path.write_bytes(changed)
        found = read_register(path)
        assert found.breaks or (i > last and found.torn), i  # a broken newline at the very end looks like a kill


def test_records_cannot_be_removed_moved_repeated_or_put_between(tmp_path):
    path = tmp_path / "f.jsonl"
    a, b, c, d = write_chain(path).splitlines()
    for lines, at in (([b, c, d], 0), ([a, c, d], 1), ([a, c, b, d], 1), ([a, b, b, c, d], 2), ([a, a, b, c, d], 1)):
        path.write_bytes(b"\n".join(lines) + b"\n")
        assert broken(path)[0] == at
    path.write_bytes(b"\n".join([a, b"no record", c, d]) + b"\n")
    assert broken(path) == [1] and len(read_register(path).records) == 3
    with pytest.raises(VerdictError, match="record 1 breaks the chain"):
        append_records(path, lambda _: [{"kind": "forecast"}])


def test_a_cut_or_rewritten_file_is_whole_in_itself_and_the_published_hash_or_the_commit_shows_it(tmp_path, capsys):
    path = tmp_path / "f.jsonl"
    content = write_chain(path)
    head = read_register(path).head
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "f.jsonl")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "registered")
    check = ["register", "check", "--register", str(path)]
    assert dispatch([*check, "--head", head]) == 0
    path.write_bytes(b"\n".join(content.splitlines()[:-1]) + b"\n")
    assert read_register(path).breaks == ()
    assert dispatch(check) == 1 and "does NOT go on from" in capsys.readouterr().out
    assert dispatch([*check, "--head", head]) == 1 and "cut or written anew" in capsys.readouterr().out
    path.write_bytes(content)
    write_chain(path, 1)
    assert dispatch([*check, "--head", head]) == 0
    assert "goes on from the register of commit" in capsys.readouterr().out


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def test_an_append_killed_at_any_byte_loses_nothing_that_was_whole(tmp_path):
    path = tmp_path / "f.jsonl"
    content = write_chain(path, 3)
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(content)):
        path.write_bytes(content[:end])
        (tmp_path / "f.jsonl.torn").unlink(missing_ok=True)
        whole = end == len(content) - 1  # all but the newline
        assert len(read_register(path).records) == (3 if whole else 2) and broken(path) == []
        _, told = append_records(path, lambda _: [{"kind": "forecast", "C": 5.0}])
        found = read_register(path)
        assert [r["number"] for r in found.records] == list(range(4 if whole else 3)) and found.breaks == ()
        if start < end and not whole:
            assert (tmp_path / "f.jsonl.torn").read_bytes() == content[start:end] + b"\n"
            assert "set aside" in told[0]


def test_processes_that_add_at_once_make_one_chain(tmp_path):
    path = tmp_path / "f.jsonl"
    code = f"""
from pathlib import Path
from jaxscale.register.chain import append_records
for i in range(25):
    append_records(Path({str(path)!r}), lambda _: [{{'kind': 'forecast', 'C': i}}])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    found = read_register(path)
    assert len(found.records) == 100 and found.breaks == () and found.notes == ()


def test_what_is_no_register_is_left_alone(tmp_path):
    for text in ("hello", "a,b\n1,2\n", '{"schema": "other"}', '{"schema": "other"}\n'):
        path = tmp_path / "other"
        path.write_text(text)
        with pytest.raises(MisuseError, match="no register"):
            append_records(path, lambda _: [{"kind": "forecast"}])
        assert path.read_text() == text
