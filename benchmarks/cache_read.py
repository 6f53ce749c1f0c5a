"""Reading teacher targets from a cache that is larger than the memory the process may take.

A synthetic cache (records of random targets, real codecs, shards and checksums) is written first. A
child process then opens it and lets its address space grow by ``--memory-mib`` and no further, so a
cache of several times that size can neither be mapped nor held. It reads all documents in random
order, batch by batch, as training does, and reports targets a second, the growth of its resident
memory (anonymous and file-backed), and what opening took. Pages stay in the system's file cache
between the passes unless ``--cold`` drops the files from it before each.

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.targets.cache import TargetCache
from stillhouse.targets.codec import Codec, Sampled, Selection, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.targets.shards import DocumentRecord, write_shard

MIB = 1 << 20
CODECS: dict[str, Codec] = {"topk_ghost": TopKGhost(k=12), "sampled": Sampled(draws=50)}
TEMPLATES = 256
"""Different records; each is written under many names."""


def identity(codec: Codec, vocab_size: int) -> CacheIdentity:
    """A cache of nobody's."""
    return CacheIdentity("synthetic", "synthetic", codec, 1.0, vocab_size, 0)


def make_records(codec: Codec, targets: int, vocab_size: int) -> list[bytes]:
    """Return packed records of random targets: as many ids as the codec keeps, values at random."""
    rng = np.random.default_rng(0)
    rows = TEMPLATES * targets
    slots = np.full(rows, 12) if isinstance(codec, TopKGhost) else rng.integers(1, 26, rows)
    total = int(slots.sum())
    chosen = Selection(
        slots=slots,
        ids=rng.integers(0, vocab_size, total),
        codes=rng.integers(1, 51 if isinstance(codec, Sampled) else 256, total),
        tail=rng.integers(0, 256, rows) if isinstance(codec, TopKGhost) else None,
    )
    chosen = replace(chosen, nll=rng.integers(0, 1 << 14, rows), entropy=rng.integers(0, 1 << 14, rows))
    buffer, offsets = codec.pack(chosen, np.full(TEMPLATES, targets), vocab_size)
    return [buffer[a:b].tobytes() for a, b in pairwise(offsets)]


def write_cache(folder: Path, codec: Codec, options: argparse.Namespace) -> int:
    """Write shards until the records reach the size; return the documents."""
    cache = TargetCache.open_or_create(folder, identity(codec, options.vocab_size))
    records = make_records(codec, options.targets, options.vocab_size)
    rng = np.random.default_rng(1)
    per_shard = max(1, int(options.shard_mib * MIB / len(records[0])))
    total = max(1, int(options.cache_mib * MIB / len(records[0])))
    for start in range(0, total, per_shard):
        count = min(per_shard, total - start)
        names = rng.bytes(16 * count)
        shard = [
            DocumentRecord(names[16 * i : 16 * i + 16], options.targets, records[i % TEMPLATES]) for i in range(count)
        ]
        write_shard(cache.path, shard)
    return total


def resident() -> dict[str, int]:
    """Resident memory of this process in KiB, by kind, and its address space."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines if "kB" in line)}
    return {name: values[name] for name in ("VmRSS", "RssAnon", "RssFile", "VmSize")}


def forget_pages(folder: Path) -> None:
    """Ask the system to drop the cache's files from its file cache."""
    for file in folder.rglob("*.safetensors"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Read the whole cache in random order within the bound."""
    torch.set_num_threads(1)
    folder = Path(options.child)
    rng = np.random.default_rng(2)
    # Whatever the libraries allocate on first use is not the cache's doing.
    make_records(CODECS[options.codec], 4, options.vocab_size)
    before = resident()
    limit = before["VmSize"] * 1024 + options.memory_mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = time.perf_counter()
    cache = TargetCache.open(folder)
    opened, after_open = time.perf_counter() - start, resident()
    uids = cache.document_ids()
    passes = []
    for _ in range(options.passes):
        if options.cold:
            forget_pages(folder)
        order = rng.permutation(len(uids))
        seconds, rows = 0.0, 0
        for at in range(0, len(order), options.batch_documents):
            start = time.perf_counter()
            found = cache.read(uids[order[at : at + options.batch_documents]])
            seconds += time.perf_counter() - start
            rows += len(found)
        passes.append(rows / seconds)
    after = resident()
    return {
        "targets_per_second": passes,
        "open_seconds": opened,
        "documents": len(uids),
        "growth_mib": {name: (after[name] - before[name]) / 1024 for name in after},
        "growth_on_opening_mib": {name: (after_open[name] - before[name]) / 1024 for name in after},
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-mib", type=float, default=2048, help="size of the cache (%(default)s)")
    parser.add_argument("--memory-mib", type=int, default=512, help="how much the reader may grow (%(default)s)")
    parser.add_argument("--codec", choices=CODECS, default="sampled", help="codec of the records (%(default)s)")
    parser.add_argument("--targets", type=int, default=200, help="targets of a document (%(default)s)")
    parser.add_argument("--batch-documents", type=int, default=16, help="documents of a batch (%(default)s)")
    parser.add_argument("--shard-mib", type=float, default=64, help="size of a shard (%(default)s)")
    parser.add_argument("--vocab-size", type=int, default=49152, help="ids of the vocabulary (%(default)s)")
    parser.add_argument("--passes", type=int, default=3, help="passes over the cache (%(default)s)")
    parser.add_argument("--cold", action="store_true", help="drop the files from the system's cache before each pass")
    parser.add_argument("--folder", type=Path, help="where to write the cache (a temporary folder, removed afterwards)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Write the cache and have a child read it."""
    options = parse(arguments)
    if options.child:
        print(json.dumps(child(options)))
        return
    work = Path(tempfile.mkdtemp(prefix="cache-read-", dir=options.folder))
    try:
        codec = CODECS[options.codec]
        start = time.perf_counter()
        documents = write_cache(work, codec, options)
        size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
        seconds = time.perf_counter() - start
        print(f"{documents} documents of {options.targets} targets, {size / MIB:.0f} MiB, written in {seconds:.0f} s")
        command = [sys.executable, __file__, *arguments, "--child", str(work)]
        found: dict[str, Any] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    finally:
        shutil.rmtree(work)
    growth = found["growth_mib"]
    print(
        f"allowed {options.memory_mib} MiB; grew by {growth['RssAnon']:.0f} MiB anonymous and {growth['RssFile']:.0f} MiB "
        f"file-backed; opened in {found['open_seconds']:.2f} s; "
        + ", ".join(f"{value:,.0f}" for value in found["targets_per_second"])
        + " targets/s"
    )
    about = {key: value for key, value in vars(options).items() if key not in ("folder", "child")}
    print(json.dumps({"benchmark": "cache_read", "setup": about, "cache_bytes": size, **found}))


if __name__ == "__main__":
    main(sys.argv[1:])
