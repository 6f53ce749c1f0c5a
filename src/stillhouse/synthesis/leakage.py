"""Seeds that give evaluation rows away are found before anything is generated from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stillhouse.data.rows import Row
from stillhouse.errors import DataError
from stillhouse.recipe import SynthesisConfig
from stillhouse.synthesis.decontamination import EvaluationIndex
from stillhouse.synthesis.seeds import SeedDomain, seed_domains

_NAMED = 20


@dataclass(frozen=True)
class GuardedSeeds:
    """The seeds that may be used, the evaluation rows, and their index. ``dropped`` seeds are told in words."""

    domains: dict[str, SeedDomain]
    evaluation: tuple[Row, ...]
    index: EvaluationIndex
    dropped: tuple[str, ...] = ()


def guard_seeds(rows: Sequence[Row], evaluation: Sequence[Row], config: SynthesisConfig) -> GuardedSeeds:
    """Group the seeds and hold them against the evaluation, frames aside.

    An instruction that all rows of a task share would make every row look like every other, so
    only what it frames is compared.

    Raises DataError for seeds that contaminate the evaluation under ``contaminated_seeds: abort``
    (all rows named, up to twenty), or when too few are left.
    """
    whole = seed_domains(rows, frame=config.frame, needed=1)
    index = EvaluationIndex(
        [prompt_without_frame(row, whole.values()) for row in evaluation], config.filters.contamination
    )
    leaks: dict[str, str] = {}
    for domain in whole.values():
        for seed in domain.seeds:
            if found := index.contaminated(seed.text):
                where = evaluation[found[0].index].where
                leaks[seed.where] = f"{seed.where} gives away {found[0].coverage:.0%} of {where}"
    if leaks and config.filters.contaminated_seeds == "abort":
        lines = "\n  ".join(list(leaks.values())[:_NAMED])
        more = f"\n  and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
        raise DataError(
            f"synthesis.seeds: {len(leaks)} of {len(rows)} seeds contaminate the evaluation; take them out of either"
            f" side, or leave them out with synthesis.filters.contaminated_seeds: drop\n  {lines}{more}"
        )
    clean = [row for row in rows if row.where not in leaks]
    if rows and not clean:
        raise DataError(f"synthesis.seeds: all {len(rows)} seeds contaminate the evaluation; give other seeds")
    domains = seed_domains(clean, frame=config.frame, needed=config.human_examples)
    return GuardedSeeds(domains, tuple(evaluation), index, tuple(leaks.values()))


def prompt_without_frame(row: Row, domains: Iterable[SeedDomain]) -> str:
    """Return what an evaluation row asks: the turns before the first answer, without a domain's frame."""
    if row.text is not None:
        return row.text
    turns: list[str] = []
    for message in row.messages or ():
        if message.role == "assistant":
            break
        if message.role != "system":
            turns.append(message.content)
    prompt = "\n".join(turns)
    for domain in domains:
        if domain.frame.fits(prompt):
            return domain.frame.unwrap(prompt)
    return prompt
