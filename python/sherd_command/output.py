"""The files that are written: PREFIX.bin, PREFIX.mask, PREFIX.json.

They are written under other names in the same folder and get their own at the end, PREFIX.json last, so that whoever
sees it sees files that are whole. Leaving the `with` block by an error removes what has been written.
"""
from __future__ import annotations

import json
import os
from typing import BinaryIO

import numpy as np

from .errors import Mistake


class Output:
    def __init__(self, prefix: str, token_type: str, separator: int):
        folder = os.path.dirname(prefix) or "."
        if not os.path.basename(prefix) or os.path.isdir(prefix):
            raise Mistake(f"--out {prefix}, a folder", "the first part of file names", os.path.join(prefix, "train"))
        if not os.path.isdir(folder):
            raise Mistake(f"--out {prefix} in a folder that does not exist", "an existing folder", f"mkdir -p {folder}")
        self.prefix = prefix
        self.type = np.dtype(token_type).newbyteorder("<")
        self.separator = separator
        self.tokens = self.documents = 0
        self.targets = 0  # that sherd will count: the mask is 1, and the token before is not the separator
        self.last = separator
        self.bin: BinaryIO | None = None
        self.mask: BinaryIO | None = None

    def __enter__(self) -> Output:
        try:
            self.bin = open(self.part("bin"), "xb")
        except OSError as error:
            raise Mistake(f"--out {self.prefix} ({error.strerror})", "a folder that can be written to",
                          "another --out") from None
        return self

    def __exit__(self, *error) -> None:
        for file in (self.bin, self.mask):
            try:
                if file:
                    file.close()
            except OSError:
                pass  # a full disk: the error that is on its way
        for kind in ("bin", "mask", "json"):
            remove(self.part(kind))

    def part(self, kind: str) -> str:
        return f"{self.prefix}.{kind}.{os.getpid()}.part"

    def write(self, ids: np.ndarray, targets: np.ndarray | None) -> None:
        """Appends tokens; `targets` None: all are. The caller has checked that the ids fit into the type."""
        if not len(ids):
            return
        follows = np.concatenate(([self.last], ids[:-1])) == self.separator
        if targets is not None and not self.mask and not targets.all():
            self.begin_mask()
        if targets is None:
            targets = np.ones(len(ids), dtype=np.uint8)
        if self.mask:
            put(self.mask, targets.tobytes())
        put(self.bin, ids.astype(self.type).tobytes())
        self.tokens += len(ids)
        self.targets += int(np.count_nonzero(targets[~follows]))
        self.last = int(ids[-1])

    def begin_mask(self) -> None:
        self.mask = open(self.part("mask"), "xb")
        ones = b"\1" * (1 << 20)
        for done in range(0, self.tokens, len(ones)):
            put(self.mask, ones[:self.tokens - done])

    def finish(self, facts: dict) -> None:
        """Gives the files their names. `facts` goes into PREFIX.json with the section "data" of a configuration."""
        data = {"tokens": os.path.abspath(self.prefix + ".bin"), "token_type": self.type.name}
        if self.mask:
            data["mask"] = os.path.abspath(self.prefix + ".mask")
        facts = {**facts, "data": {**data, "separator": self.separator}}
        with open(self.part("json"), "xb") as file:
            put(file, json.dumps(facts, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")
            sync(file)
        for each in filter(None, (self.bin, self.mask)):
            sync(each)
            each.close()
        remove(self.prefix + ".json")  # of an earlier run: it must not describe these tokens
        if not self.mask:
            remove(self.prefix + ".mask")
        for kind in ("bin", "mask", "json") if self.mask else ("bin", "json"):
            os.replace(self.part(kind), f"{self.prefix}.{kind}")


def put(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def sync(file: BinaryIO) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def remove(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
