"""`sherd data prepare`: texts and chats become a token file and a mask file for `sherd train`.

    sherd data prepare INPUT... --model FOLDER --out PREFIX

INPUT is a file, a folder or a glob: .txt and .md files (each a document), and .jsonl files with a record a line:

    {"text": "..."}                                              a document; --field names another key
    {"messages": [{"role": "user", "content": "..."}, ...]}      a chat, through the folder's chat template
    {"prompt": "...", "completion": "..."}                       a chat of two turns; without a template, both in a row

The tokens are those of FOLDER/tokenizer.json. A text gets the special tokens that the tokenizer adds (its truncation
and padding are off); a chat only those of its template. Each document ends with the separator, the tokenizer's token
that ends a text unless --separator names another; a document that already ends with it does not get a second one.

Written are

    PREFIX.bin    the tokens, little endian uint16 or uint32
    PREFIX.mask   a byte a token, 1: a target, 0: only read; written only if some are 0
    PREFIX.json   counts, the tokenizer's SHA-256, the inputs, and `data`: the section of a sherd configuration

A byte of the mask is about the token at its own place as the one to be predicted: with 1, the loss counts how well the
model foretells this token from those before it (sherd/data/target_rules.h). Of a chat these are what the assistant says
and the token that ends its turn (--train-on all: all tokens). The separator behind a chat is one if nothing else ends
the last answer. sherd does not count the first token of a document either, whatever the mask says: with the separator
in its configuration it sees where documents begin. `targets` in PREFIX.json is what remains.

--max-document-tokens N keeps the first N tokens of a longer document, the separator among them, which is then no
target: the document does not end there. Documents without a token are left out. Both are counted in PREFIX.json.

Memory: a piece of a text file a thread (64 KiB), or a line of a .jsonl file (at most 64 MiB) and a batch of what lines
hold (1 Mi characters), whatever the input's size. A chat or a pair is tokenized as a whole, a text piece by piece.
Exit codes: 0; 2 for a mistake of the user, 1 for what broke (a disk), 130 for an interrupt: then nothing is written.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from . import inputs
from .chat import Chats, Rendered
from .encoding import Encoded, ModelFolder, encode, encode_long
from .errors import Mistake, shown
from .inputs import Record, find_inputs, read_records
from .output import Output

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
IN_TYPE = {"uint16": 1 << 16, "uint32": 1 << 32}


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise Mistake(f"bad options ({message})", "those of --help", "sherd data prepare --help")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="sherd data prepare", description="Text files or chats to a token file and a mask file, with "
                    "a model folder's own tokenizer")
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help=".txt, .md and .jsonl files, folders with them, globs")
    add("--model", required=True, metavar="FOLDER", help="a Hugging Face folder with tokenizer.json")
    add("--out", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.mask (if some tokens are no targets) "
        "and PREFIX.json")
    add("--format", choices=["text", "chat", "auto"], default="auto", help="what .jsonl files hold; text also takes "
        "files of other names as texts (auto: by the keys of each line)")
    add("--field", default="text", help="the key of the text in a line of a .jsonl file (%(default)s)")
    add("--train-on", choices=["assistant", "all"], default="assistant",
        help="what of a chat is a target (%(default)s)")
    add("--token-type", choices=["auto", *IN_TYPE], default="auto", help="auto: uint16 if the vocabulary fits")
    add("--separator", metavar="TOKEN_OR_ID", help="the token that ends a document; digits are an id (the tokenizer's "
        "eos_token)")
    add("--max-document-tokens", type=int, metavar="N", help="keep the first N tokens of a longer document")
    add("--jobs", type=int, metavar="N", help="threads (one a core)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command with what follows `sherd data prepare`; returns its exit code."""
    try:
        options = make_parser().parse_args(argv)
        with one_interrupt():
            return prepare(options)
    except SystemExit as done:  # --help
        return int(done.code or 0)
    except Mistake as mistake:
        say(str(mistake))
        return 2
    except OSError as error:
        say(f"got {error.strerror or error} for {error.filename or 'a file'}, expected to read the inputs and to write "
            "the outputs; try again with a sound disk that has room")
        return 1
    except KeyboardInterrupt:
        say("interrupted: nothing is written")
        return 130


def say(message: str) -> None:
    print("sherd: [data prepare] " + " ".join(message.splitlines()), file=sys.stderr)


def prepare(options: argparse.Namespace) -> int:
    for name, least in (("jobs", 1), ("max_document_tokens", 2)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise Mistake(f"--{name.replace('_', '-')} {value}", f"{least} or more", "to leave it out")
    options.jobs = options.jobs or len(os.sched_getaffinity(0))
    os.environ["RAYON_NUM_THREADS"] = str(options.jobs)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # both are read when the first batch is tokenized

    files = find_inputs(options.inputs, options.format)
    model = ModelFolder(options.model)
    separator = model.separator(options.separator)
    token_type = options.token_type
    if token_type == "auto":
        token_type = "uint16" if model.vocabulary <= IN_TYPE["uint16"] else "uint32"
    sizes = {file: os.path.getsize(file) for file in files}
    with progress(sum(sizes.values())) as on_bytes, Output(options.out, token_type, separator) as output:
        run = Run(options, model, output)
        counts = {}
        for file in files:
            before = output.documents
            run.take(read_records(file, options.format, options.field, on_bytes))
            counts[file] = output.documents - before
        if output.documents == 0:
            raise Mistake(f"inputs without any token ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})",
                          "at least one document", "other inputs")
        template = run.chats.template if run.chats else None
        output.finish({
            "tokens": output.tokens, "targets": output.targets, "documents": output.documents,
            "empty_documents": run.empty, "cut_documents": run.cut, "token_type": token_type,
            "vocabulary": model.vocabulary, "separator": separator,
            "separator_token": model.tokenizer.id_to_token(separator), "model": os.path.abspath(options.model),
            "tokenizer_sha256": hashlib.sha256(model.tokenizer_bytes).hexdigest(),
            "chat_template": str(template.path.absolute()) if template else None, "train_on": options.train_on,
            "inputs": [{"path": os.path.abspath(file), "bytes": sizes[file], "documents": counts[file]}
                       for file in files],
        })
    if run.hidden:
        say(f"warning: {run.hidden} tokens of the assistant follow the separator inside of a chat, and sherd does not "
            "count them; try another --separator")
    print(f"{options.out}.bin: {output.tokens} tokens ({token_type}) of {output.documents} documents, "
          f"{output.targets} of them targets; {options.out}.json has the section for a configuration")
    return 0


class Run:
    """Turns records into tokens, a batch at a time."""

    def __init__(self, options: argparse.Namespace, model: ModelFolder, output: Output):
        self.options, self.model, self.output = options, model, output
        self.limit = min(IN_TYPE[output.type.name], model.model_vocabulary or IN_TYPE["uint32"])
        self.check_id(output.separator, "the separator")
        self.chats: Chats | None = None  # made when a chat comes: without any, a broken template does not matter
        self.batch: list[tuple[Rendered, str]] = []
        self.characters = 0
        self.empty = self.cut = 0  # documents
        self.hidden = 0  # targets by the mask that follow a separator

    def take(self, records: Iterator[Record]) -> None:
        for record in records:
            if record.kind != "text":
                self.chats = self.chats or Chats(self.model.path, self.model.tokenizer_config, self.model.added_tokens,
                                                 self.options.train_on)
                render = self.chats.chat if record.kind == "chat" else self.chats.pair
                self.add(render(record.value, record.where), record.where)
            elif isinstance(record.value, str) and len(record.value) <= inputs.LONG:
                self.add(Rendered(record.value, None, with_special=True), record.where)
            else:
                self.flush()
                pieces = slices(record.value) if isinstance(record.value, str) else record.value
                ids = encode_long(self.model.tokenizer, pieces, record.where, self.options.jobs)
                encoded = (Encoded(each, None) for each in ids)
                self.write(without_last(encoded, self.output.separator), True, record.where)
        self.flush()

    def add(self, text: Rendered, where: str) -> None:
        if not text.text:
            self.empty += 1
            return
        self.batch.append((text, where))
        self.characters += len(text.text)
        if len(self.batch) == BATCH_DOCUMENTS or self.characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        texts, wheres = [text for text, _ in self.batch], [where for _, where in self.batch]
        self.batch, self.characters = [], 0
        for text, where, encoded in zip(texts, wheres, encode(self.model.tokenizer, texts, wheres)):
            end_is_target = text.open_end or encoded.targets is None
            if len(encoded.ids) and encoded.ids[-1] == self.output.separator and encoded.targets is not None:
                end_is_target |= bool(encoded.targets[-1])
            self.write(without_last(iter([encoded]), self.output.separator), end_is_target, where)

    def write(self, pieces: Iterator[Encoded], end_is_target: bool, where: str) -> None:
        """A document, which comes without its separator."""
        separator, room = self.output.separator, (self.options.max_document_tokens or sys.maxsize) - 1
        written, cut = 0, False
        for piece in pieces:
            cut = written + len(piece.ids) > room
            ids = piece.ids[:room - written]
            targets = None if piece.targets is None else piece.targets[:room - written]
            if len(ids):
                self.check_id(int(ids.max()), where)
            if targets is not None:
                self.hidden += int(np.count_nonzero(targets[1:][ids[:-1] == separator]))
            self.output.write(ids, targets)
            written += len(ids)
            if cut:
                break
        if written == 0:
            self.empty += 1
            return
        self.cut += cut
        is_target = np.array([end_is_target and not cut], dtype=np.uint8)
        self.output.write(np.array([separator], dtype=np.uint32), is_target)
        self.output.documents += 1

    def check_id(self, id: int, where: str) -> None:
        if id < self.limit:
            return
        token = shown(self.model.tokenizer.id_to_token(id))
        if self.limit == IN_TYPE[self.output.type.name]:
            raise Mistake(f"{where}: the token {id} ({token})", f"ids that fit into {self.output.type.name}",
                          "--token-type uint32")
        raise Mistake(f"{where}: the token {id} ({token})",
                      f"one below the model's vocabulary of {self.limit} (vocab_size in {self.model.path}/config.json)",
                      "the tokenizer of this model, or a model with a larger vocabulary")


def slices(text: str) -> Iterator[str]:
    return (text[first:first + inputs.LONG] for first in range(0, len(text), inputs.LONG))


def without_last(pieces: Iterator[Encoded], token: int) -> Iterator[Encoded]:
    """The same, without the last token if it is this one."""
    held = None
    for piece in pieces:
        if held is not None:
            yield held
        held = piece
    if held is not None:
        ends = len(held.ids) > 0 and held.ids[-1] == token
        yield Encoded(held.ids[:-1], None if held.targets is None else held.targets[:-1]) if ends else held


@contextlib.contextmanager
def progress(size: int) -> Iterator[Callable[[int], None]]:
    """What is to be called with the number of bytes that have been read: a bar on a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """SIGTERM is taken as Ctrl-C is, so that it leaves no files either; further ones do not disturb the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    before = {each: handler for each, handler in before.items() if handler is not signal.SIG_IGN}

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    sys.exit(main())
