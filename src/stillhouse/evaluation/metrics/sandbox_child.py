"""Runs one untrusted program under limits; started by path in an isolated interpreter, never imported.

It reads a job (JSON) from standard input, gives up what the program shall not have, runs it with
its output thrown away, and only then writes the job's word: a program that ends the interpreter
early has not passed. Before the word stands whether the network is cut off.
"""

import ctypes
import json
import os
import resource
import sys
from typing import Any

NOBODY = 65534
PR_SET_DUMPABLE = 4
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def become_nobody() -> None:
    """Leave root, whom no limit on processes holds, for a user without rights.

    The standard library may lie where only root can go (``/root/.pyenv``). It is then imported
    through folders that were opened before.
    """
    folders = {path: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in sys.path if os.path.isdir(path)}  # noqa: PTH112
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    hidden = {path: f"/proc/self/fd/{fd}" for path, fd in folders.items() if not os.access(path, os.R_OK | os.X_OK)}
    for path, fd in folders.items():
        if path not in hidden:
            os.close(fd)
    if hidden:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self stays root's
        replace_paths(hidden)


def replace_paths(hidden: dict[str, str]) -> None:
    """Let every later import look into the opened folders."""

    def moved(path: str) -> str:
        parent = max((p for p in hidden if path == p or path.startswith(p + "/")), key=len, default=None)
        return path if parent is None else hidden[parent] + path[len(parent) :]

    sys.path[:] = [moved(path) for path in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [moved(path) for path in module.__path__]


def leave_network() -> bool:
    """Move to an empty network, where the system lets its users do so."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def limit(limits: dict[str, int]) -> None:
    """Set each limit by its name in ``resource``, hard, so that the program cannot lift it again."""
    for name, wanted in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (value, value))


def confine(job: dict[str, Any]) -> str:
    """Take everything away, and say how far the network is gone."""
    os.environ.clear()  # Python itself puts a locale there
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if os.getuid() == 0:
        become_nobody()
    network = "isolated" if leave_network() else "shared"
    limit(job["limits"])
    return network


def main() -> None:
    """Run the job of standard input."""
    job = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    word = job["word"]
    try:
        network = confine(job)
    except (OSError, ValueError) as error:
        answer.write(f"unusable {error}")
        answer.flush()
        os._exit(0)
    try:
        exec(compile(job["program"], "program.py", "exec"), {"__name__": "__main__"})  # noqa: S102
    except BaseException as error:  # noqa: BLE001 - the program may raise anything, SystemExit too
        verdict = f"failed {type(error).__name__}"
    else:
        verdict = word
    answer.write(f"{network} {verdict}")
    answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
