#!/usr/bin/env python3
"""Prints, as a JSON list of globs, some megabytes of Python source text that every machine with Python has."""
import glob
import json
import sysconfig

PACKAGES = ("asyncio", "collections", "concurrent/futures", "email", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest", "urllib", "xml/*")

if __name__ == "__main__":
    library = sysconfig.get_paths()["stdlib"]
    globs = [f"{library}/*.py"] + [f"{library}/{package}/*.py" for package in PACKAGES]
    print(json.dumps([pattern for pattern in globs if glob.glob(pattern)]))
