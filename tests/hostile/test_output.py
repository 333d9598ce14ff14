"""Hostile ids on the console: unprintable characters are escaped, and long ids are shortened, wherever they appear."""

import time

import pytest

from ich import cli, console

UNPRINTABLE = {
    "escape sequence": ("\x1b[2J", r"\x1b[2J"),
    "carriage return": ("\r", r"\r"),
    "C1 control": ("\x9b", r"\x9b"),
    "right-to-left override": ("\u202e", r"\u202e"),
    "zero-width space": ("\u200b", r"\u200b"),
    "line separator": ("\u2028", r"\u2028"),
    "next line": ("\x85", r"\x85"),
    "undecodable byte": ("\udc80", r"\udc80"),
    "NUL": ("\0", r"\x00"),
}
LONG = {"word": "1." * 50_000, "words": "a b " * 50_000, "commas": "a," * 50_000, "wide": "\u8166 " * 50_000}


def printed(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What one way to print makes of a text."""
    if name == "say":
        console.say(text)
    elif name == "warn":
        console.warn(text)
    elif name == "table":
        console.table(["study"], [[text]], always=True)
    elif name == "title":
        console.table(["study"], [["x"]], text)
    elif name == "progress":
        with console.progress(text, 1) as advance:
            advance(1)
    else:
        with pytest.raises(SystemExit):
            cli._end(text)
    return "".join(capsys.readouterr())


WAYS = ("say", "warn", "table", "title", "progress", "error")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", UNPRINTABLE)
def test_unprintable_characters_are_escaped(capsys, way: str, name: str):
    raw, escaped = UNPRINTABLE[name]
    found = printed(way, f"id a{raw}b", capsys)
    assert f"id a{escaped}b" in found
    assert raw not in found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LONG)
def test_long_ids_are_shortened(capsys, way: str, name: str):
    started = time.process_time()
    found = printed(way, f"id {LONG[name]}", capsys)
    assert time.process_time() - started < 1
    assert "…" in found
    assert len(found) < 2200


def test_an_id_cannot_add_a_row_to_a_table(capsys):
    console.table(["study", "state"], [["a\nb  done", "missing"]], always=True)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:]] == [[r"a\nb", "done", "missing"]]
