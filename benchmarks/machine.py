"""What kind of machine this is and which commit is measured: no host names."""
import datetime
import os
import pathlib
import re
import subprocess

from engines import ROOT


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def describe() -> dict:
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()

    def field(name: str) -> str:
        return re.search(rf"^{name}\s*: (.*)$", cpuinfo, re.M).group(1)

    flags = set(field("flags").split())
    vector = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f"), ("AVX512-BF16", "avx512_bf16"),
                                      ("AMX", "amx_tile")) if flag in flags]
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)
    return {"cpu": field("model name"), "cores": len(os.sched_getaffinity(0)), "vector": vector,
            "memory_gib": round(int(memory) / 2**20, 1), "kernel": os.uname().release.split("-")[0]}


def slug(machine: dict) -> str:
    vector = machine["vector"][-1] if machine["vector"] else ""
    words = f"{machine['cpu'].split('@')[0]} {machine['cores']} cores {vector}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def commit() -> str:
    """With a + when sources differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "sherd", "cli", "benchmarks", "cmake",
                   ":!benchmarks/results")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def today() -> str:
    return datetime.date.today().isoformat()
