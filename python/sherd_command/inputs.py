"""What is prepared: files, and the records in them.

A file .txt or .md is one text, a line of a .jsonl file is one record: a text, a chat, or a prompt with its completion.
Memory holds some pieces of a text file (of LONG bytes) and one line of a .jsonl file (at most LONGEST_LINE bytes).
"""
from __future__ import annotations

import codecs
import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from .errors import Mistake, shown

TEXT = (".txt", ".md")
LINES = (".jsonl",)
LONG = 1 << 16  # bytes of a text file that are read at once; malloc keeps far more for larger pieces
LONGEST_LINE = 64 << 20  # bytes


@dataclasses.dataclass
class Record:
    where: str  # the file, or file:line
    kind: str  # text, chat, pair
    value: Any  # text: a str, or an iterator of str if it is long; chat, pair: the object of the line


def find_inputs(patterns: list[str], format: str) -> list[str]:
    """The files that `patterns` name, pattern by pattern, each sorted by path, each file once: a file is itself; a
    folder is the files .txt, .md and .jsonl below it, without hidden ones; otherwise a glob (* ? [...] **). With the
    format "text", a file of any other name that is given or matched is a text too."""
    found: dict[str, None] = {}
    for pattern in patterns:
        files = list(expand(os.path.normpath(pattern), any_name=format == "text"))
        if not files:
            raise Mistake(f"{shown(pattern, 200)}, which names no file {', '.join(TEXT + LINES)}",
                          "a text, a .jsonl file, a folder or a glob",
                          "an absolute path" + ("" if format == "text" else ", or --format text for other names"))
        found.update(dict.fromkeys(sorted(files, key=os.fsencode)))
    return list(found)


def expand(path: str, any_name: bool) -> Iterator[str]:
    if os.path.isdir(path):
        yield from files_below(path)
    elif os.path.exists(path):
        if any_name or path.endswith(TEXT + LINES):
            yield path
    else:
        for match in glob.glob(path, recursive=True):
            if os.path.isdir(match):
                yield from files_below(match)
            elif any_name or match.endswith(TEXT + LINES):
                yield match


def files_below(folder: str) -> Iterator[str]:
    def refuse(error: OSError):
        raise Mistake(f"the folder {error.filename} ({error.strerror})", "one that can be listed", "chmod u+rx")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(TEXT + LINES) and not name.startswith("."):
                yield os.path.join(parent, name)


def read_records(path: str, format: str, field: str, on_bytes: Callable[[int], None]) -> Iterator[Record]:
    """The records of a file; `on_bytes` hears of what has been read. A record's iterator, if it has one, must be done
    with before the next record is asked for. Raises Mistake for what is broken, with its line."""
    if not path.endswith(LINES):
        if format == "chat":
            raise Mistake(f"{path} with --format chat", "a .jsonl file of chats", "--format auto")
        yield from read_text(path, on_bytes)
        return
    empty = True
    for number, line in read_lines(path, on_bytes):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Mistake(f"{where}: not JSON ({error})", "an object a line", "to write this line again") from None
        if not isinstance(record, dict):
            raise Mistake(f"{where}: {shown(record)}", "a JSON object", f'{{"{field}": ...}} or {{"messages": [...]}}')
        kind = kind_of(record, where, format, field)
        value = record[field] if kind == "text" else record
        if kind == "text" and not isinstance(value, str):
            raise Mistake(f"{where}: {shown(value)} for '{field}'", "a text", "another --field")
        empty = False
        yield Record(where, kind, value)
    if empty:
        raise Mistake(f"{path} without any record", "an object a line", "to leave this file out")


def kind_of(record: dict, where: str, format: str, field: str) -> str:
    kinds = {"text": field in record, "chat": "messages" in record,
             "pair": "prompt" in record and "completion" in record}
    allowed = {"text": ["text"], "chat": ["chat", "pair"], "auto": list(kinds)}[format]
    present = [kind for kind in allowed if kinds[kind]]
    if len(present) == 1:
        return present[0]
    keys = {"text": f"'{field}'", "chat": "'messages'", "pair": "'prompt' and 'completion'"}
    if present:
        raise Mistake(f"{where}: an object with {' and with '.join(keys[kind] for kind in present)}", "one of them",
                      "--format text or --format chat" if "text" in present else "to take the others out")
    raise Mistake(f"{where}: an object with the keys {shown(list(record))}",
                  " or ".join(keys[kind] for kind in allowed), "--field with the key of the text")


def read_text(path: str, on_bytes: Callable[[int], None]) -> Iterator[Record]:
    pieces = decoded_pieces(path, on_bytes)
    begin = list(itertools.islice(pieces, 2))
    if not begin:
        raise Mistake(f"{path} without any text", "a text", "to leave this file out")
    yield Record(path, "text", begin[0] if len(begin) == 1 else itertools.chain(begin, pieces))


def decoded_pieces(path: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines = 0
    with open_input(path) as file:
        at_end = False
        while not at_end:
            data = file.read(LONG)
            at_end = not data
            on_bytes(len(data))
            try:
                text = decoder.decode(data, final=at_end)
            except UnicodeDecodeError as error:
                raise not_utf8(path, lines + 1 + error.object.count(b"\n", 0, error.start), error) from None
            lines += text.count("\n")
            if text:
                yield text


def read_lines(path: str, on_bytes: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    with open_input(path) as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise Mistake(f"{path}:{number}: a line longer than {LONGEST_LINE} bytes", "an object a line",
                              "to write this file as JSON Lines, or long texts as .txt files")
            on_bytes(len(line))
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, error) from None
            if not text.isspace() and text:
                yield number, text


def open_input(path: str):
    try:
        return open(path, "rb")
    except OSError as error:
        raise Mistake(f"{path} ({error.strerror})", "a file that can be read", "chmod u+r") from None


def not_utf8(path: str, line: int, error: UnicodeDecodeError) -> Mistake:
    return Mistake(f"{path}:{line}: the byte 0x{error.object[error.start]:02x}, which is not UTF-8 ({error.reason})",
                   "UTF-8", f"iconv -f LATIN1 -t UTF-8 {path}, if it is Latin-1")
