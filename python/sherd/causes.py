"""What other ranks hear of an exception."""
from __future__ import annotations

import linecache
import os

import torch

OURS = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, __file__))
LONGEST = 400  # of what an exception says


def cause_of(error: BaseException) -> str:
    """Its type, what it says, and the innermost line of the program (not of torch's
    or sherd's) that it came through."""
    said = str(error)
    said = f"{type(error).__name__}: {said[:LONGEST]}{'...' if len(said) > LONGEST else ''}"
    place, step = None, error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if place is None or not file.startswith(OURS):
            place = file, step.tb_lineno
        step = step.tb_next
    if place is None:
        return said
    line = linecache.getline(*place).strip()
    return f"{said} (in {place[0]}, line {place[1]}{f': {line}' if line else ''})"
