"""Files of JSON lines: whatever a text holds, going on after a kill at any byte, and damage that no kill does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import numpy as np

from grpo.playing import folder, play
from grpo.rows import rows as rows_module
from grpo.training import collect, run_folder
from jaxsim_soc import json_lines

# All that ends a line for str.splitlines, and half a letter.
ENDS = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj\nk\ud800l"
TURNS = [{"tick": t, "texts": [f"{ENDS}{t}", None], "seconds": 0.0, "tokens": 1} for t in range(4)]


def as_others_write(values: list[Any]) -> bytes:
    """JSON lines whose texts are not in ASCII."""
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("write", [json_lines.encode, as_others_write])
def test_no_character_ends_a_line(tmp_path: Path, write: Any) -> None:
    turns = TURNS if write is json_lines.encode else json.loads(json.dumps(TURNS).replace("\\ud800", ""))
    path = tmp_path / "play.jsonl"
    path.write_bytes(write(turns))
    assert [t._asdict() for t in train_turns(path)] == [{"tick": t["tick"], "texts": t["texts"]} for t in turns]
    assert folder.read_part(path, 2) == turns == json_lines.read(path)
    assert path.read_bytes() == write(turns)  # reading on takes nothing away


def train_turns(path: Path) -> list[play.Turn]:
    """What training goes on from; its own lines have no more than the turn."""
    own = path.with_name("own.jsonl")
    own.write_bytes(b"".join(json_lines.encode([{k: t[k] for k in ("tick", "texts")}]) for t in json_lines.read(path)))
    return collect.turns(own, 2)


def test_an_older_file_of_training_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "play.jsonl"
    said = [{"tick": t, "texts": ["stay\u2028put\x85or\u2029not", None]} for t in range(3)]
    path.write_bytes(as_others_write(said))
    assert [t._asdict() for t in collect.turns(path, 2)] == said
    assert json_lines.read(path) == said


def test_the_training_log_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"loop": 0, "phase": "grpo", "step": t, "x": "one\u2028two\x85"} for t in (1, 2, 3)]
    path = tmp_path / "log.jsonl"
    path.write_bytes(as_others_write(lines))
    log = run_folder.Log(path)
    assert log.lines == lines
    log.add(0, "grpo", 4, {"x": ENDS})
    assert run_folder.Log(path).lines == log.lines and len(log.lines) == 4
    prompts = ["one\u2028", ENDS, "two\x85"]
    monkeypatch.setattr(rows_module.banks, "save", lambda *_: None)
    kept: Any = type("Bank", (), {"params_index": [0, 0, 0]})
    monkeypatch.setattr(rows_module.banks, "load", lambda *_: kept)
    one = np.zeros((3, 1))
    credit = rows_module.Credit(*(one for _ in rows_module.Credit._fields))
    game: Any = type("Game", (), {"dims": None, "params": None})
    rows_module.save(tmp_path / "rows", rows_module.Rows(kept, prompts, credit, one, one[:, 0] == 0), game)
    again = rows_module.load(tmp_path / "rows", game)
    assert again is not None and again.prompts == prompts


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=4))
def test_there_and_back(texts: list[str]) -> None:
    content = json_lines.encode(texts)
    assert content.isascii() and content.count(b"\n") == len(texts)
    assert [json.loads(line) for line in content.splitlines()] == texts


def test_a_file_cut_off_at_any_byte_loses_one_line_and_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.jsonl", json_lines.encode(TURNS)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        left = whole[:size].count(b"\n")
        assert json_lines.read(path) == TURNS[:left] and path.stat().st_size == size  # reads, and no more
        assert json_lines.resume(path) == TURNS[:left]
        for turn in TURNS[left:]:
            json_lines.append(path, turn)
        assert path.read_bytes() == whole
    assert json_lines.resume(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[" * 10**5, b'{"tick": 7, "texts": [1, 2]}'])
def test_damage_before_the_end_is_refused_and_nothing_is_deleted(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "play.jsonl"
    lines = json_lines.encode(TURNS).split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    before = path.read_bytes()
    for read in (folder.read_part, collect.turns):
        with pytest.raises(SystemExit) as ended:
            read(path, 2)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1
        assert "play.jsonl: line 2 is damaged or of another run, and 2 more follow it; put the file back" in said
    assert path.read_bytes() == before
