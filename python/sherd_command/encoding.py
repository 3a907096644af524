"""Texts as tokens: a model folder's tokenizer.json, through the library `tokenizers`.

A text longer than memory should hold is tokenized in windows that overlap. Two windows are joined in the middle of
their overlap where a run of RUN tokens is the same in both; if it is not, both become one window. Tokenizers that first
split a text into words (nearly all) give the same tokens as for the whole text.
"""
from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from .chat import Rendered, token_text
from .errors import Mistake, shown

RUN = 32  # tokens


@dataclasses.dataclass
class Encoded:
    ids: np.ndarray  # uint32
    targets: np.ndarray | None  # uint8; None: all are


class ModelFolder:
    """A folder's tokenizer and what its JSON files say about it. Raises Mistake for what is missing or broken."""

    def __init__(self, folder: str):
        try:
            import tokenizers
        except ImportError:
            raise Mistake("no Python package tokenizers", "it, to read tokenizer.json",
                          "pip install tokenizers") from None
        self.path = pathlib.Path(folder)
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise Mistake(f"the model folder {folder} without a tokenizer.json", "a folder with one",
                          "AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes it")
        self.tokenizer_bytes = file.read_bytes()
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer_bytes.decode())
        except Exception as error:  # the library raises nothing narrower
            raise Mistake(f"{file}, which the library tokenizers {tokenizers.__version__} cannot read ({error})",
                          "a tokenizer", "pip install --upgrade tokenizers, or to download it again") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocabulary = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.added_tokens = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]
        self.tokenizer_config = self.read_json("tokenizer_config.json")
        size = self.read_json("config.json").get("vocab_size")
        self.model_vocabulary: int | None = size if isinstance(size, int) else None

    def read_json(self, name: str) -> dict:
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise Mistake(f"{path}, which is not JSON ({error})", "a JSON object", "to download it again") from None
        if not isinstance(value, dict):
            raise Mistake(f"{shown(value)} in {path}", "a JSON object", "to download it again")
        return value

    def separator(self, wanted: str | None) -> int:
        """The id of a token given by its id (digits) or its text; None: the tokenizer's token that ends a text."""
        if wanted is not None:
            id = int(wanted) if wanted.isascii() and wanted.isdecimal() else self.tokenizer.token_to_id(wanted)
            if id is None or self.tokenizer.id_to_token(id) is None:
                raise Mistake(f"--separator {shown(wanted)}", f"a token of {self.path}/tokenizer.json or its id",
                              "an id below " + str(self.vocabulary))
            return id
        text = token_text(self.tokenizer_config.get("eos_token"))
        if text is not None:
            id = self.tokenizer.token_to_id(text)
            if id is None:
                raise Mistake(f"'eos_token' {shown(text)} in {self.path}/tokenizer_config.json",
                              "a token of tokenizer.json", "--separator with a token or its id")
            return id
        for name in ("generation_config.json", "config.json"):
            id = self.read_json(name).get("eos_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if isinstance(id, int):
                if self.tokenizer.id_to_token(id) is None:
                    raise Mistake(f"'eos_token_id' {id} in {self.path}/{name}", "a token of tokenizer.json",
                                  "--separator with a token or its id")
                return id
        raise Mistake(f"no token that ends a document ('eos_token' in {self.path}/tokenizer_config.json, "
                      "'eos_token_id' in generation_config.json and config.json)", "one of these",
                      "--separator with a token or its id")


def encode(tokenizer, texts: list[Rendered], wheres: list[str]) -> list[Encoded]:
    """The tokens of each text, tokenized by all threads at once."""
    results: list[Encoded | None] = [None] * len(texts)
    for kind in {(text.with_special, text.spans is None) for text in texts}:
        with_special, all_are_targets = kind
        which = [i for i, text in enumerate(texts) if (text.with_special, text.spans is None) == kind]
        encode_batch = tokenizer.encode_batch_fast if all_are_targets else tokenizer.encode_batch  # fast: no offsets
        try:
            encodings = encode_batch([texts[i].text for i in which], add_special_tokens=with_special)
        except Exception:
            for i in which:
                encode_one(tokenizer, texts[i].text, wheres[i], with_special)  # names the one that is broken
            raise
        for i, encoding in zip(which, encodings):
            ids = np.asarray(encoding.ids, dtype=np.uint32)
            results[i] = Encoded(ids, None if all_are_targets else targets_of(encoding, texts[i]))
    return results


def encode_one(tokenizer, text: str, where: str, with_special: bool):
    """Raises Mistake if the tokenizer cannot: for half of a surrogate pair, or without a token for the unknown."""
    try:
        text.encode()
        return tokenizer.encode(text, add_special_tokens=with_special)
    except UnicodeEncodeError as error:
        raise Mistake(f"{where}: the character U+{ord(text[error.start]):04X}, half of a pair", "Unicode text",
                      "to write this text again") from None
    except Exception as error:  # the library raises nothing narrower
        raise Mistake(f"{where}: a text that the tokenizer refuses ({error})", "a text that it knows",
                      "to leave this text out") from None


def targets_of(encoding, text: Rendered) -> np.ndarray:
    """1 for each token that has a character of a span. One that crosses the edge of a span must have more of it than
    blanks: a token <|assistant|> that swallows the blanks behind it is not what the assistant says."""
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], offsets[:, 1]
    targets = np.zeros(len(offsets), dtype=np.uint8)
    for first, last in text.spans:
        inside = (np.maximum(starts, first) < np.minimum(ends, last))
        inside |= (starts == ends) & (starts >= first) & (starts < last)
        for i in np.flatnonzero(inside & ((starts < first) | (ends > last))):
            inside[i] = not text.text[max(starts[i], first):min(ends[i], last)].isspace()
        targets |= inside.astype(np.uint8)
    targets[np.asarray(encoding.special_tokens_mask, dtype=bool)] = 0  # the tokenizer's own, which have no place
    return targets


@dataclasses.dataclass
class Window:
    text: str
    overlap: int  # characters that it shares with the window before
    ids: np.ndarray
    offsets: np.ndarray


def encode_long(tokenizer, pieces: Iterator[str], where: str, at_once: int = 1) -> Iterator[np.ndarray]:
    """The tokens of the text that is cut into `pieces`, its special tokens included; `at_once` pieces are tokenized by
    as many threads, and held in memory."""
    first = next(pieces)
    before, after = special_tokens_around(encode_one(tokenizer, first[:1000], where, True))
    if len(before):
        yield before
    windows = overlapping_windows(tokenizer, itertools.chain([first], pieces), where, at_once)
    window, given = next(windows), 0  # characters of the window whose tokens have been given
    for following in windows:
        joint = find_joint(window, following)
        if joint is None:
            text = window.text + following.text[following.overlap:]
            while len(text) < 2 * len(window.text) and (more := next(windows, None)):
                text += more.text[more.overlap:]
            window = make_window(text, 0, encode_one(tokenizer, text, where, False))
            continue
        end, begin = joint
        ids = window.ids[np.searchsorted(window.offsets[:, 0], given):end]
        if len(ids):
            yield ids
        window, given = following, int(following.offsets[begin, 0])
    for last in (window.ids[np.searchsorted(window.offsets[:, 0], given):], after):
        if len(last):
            yield last


def special_tokens_around(encoding) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that the tokenizer puts before and behind a text."""
    ids = np.asarray(encoding.ids, dtype=np.uint32)
    text = np.flatnonzero([sequence is not None for sequence in encoding.sequence_ids])
    return (ids[:text[0]], ids[text[-1] + 1:]) if len(text) else (ids[:0], ids[:0])


def overlapping_windows(tokenizer, pieces: Iterator[str], where: str, at_once: int) -> Iterator[Window]:
    """Each piece with the last eighth of the one before."""
    tail = ""
    while batch := list(itertools.islice(pieces, at_once)):
        texts, overlaps = [], []
        for piece in batch:
            texts.append(tail + piece)
            overlaps.append(len(tail))
            tail = piece[len(piece) - len(piece) // 8:]
        try:
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception:
            for text in texts:
                encode_one(tokenizer, text, where, False)  # names the one that is broken
            raise
        yield from map(make_window, texts, overlaps, encodings)


def make_window(text: str, overlap: int, encoding) -> Window:
    return Window(text, overlap, np.asarray(encoding.ids, dtype=np.uint32),
                  np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2))


def find_joint(window: Window, following: Window) -> tuple[int, int] | None:
    """The first token at or behind the middle of the overlap in both windows, if RUN tokens from there are the same."""
    shift = len(window.text) - following.overlap
    middle = following.overlap // 2
    i = int(np.searchsorted(window.offsets[:, 0], shift + middle))
    j = int(np.searchsorted(following.offsets[:, 0], middle))
    mine, theirs = slice(i, i + RUN), slice(j, j + RUN)
    if len(window.ids[mine]) < RUN or not np.array_equal(window.ids[mine], following.ids[theirs]):
        return None
    return (i, j) if np.array_equal(window.offsets[mine], following.offsets[theirs] + shift) else None
