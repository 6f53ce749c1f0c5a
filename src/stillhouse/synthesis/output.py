"""The rows with their provenance, and the report on the set."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from stillhouse.data.rows import Row, content_digest
from stillhouse.recipe import LabelsFormat, SynthesisConfig
from stillhouse.rollout.generator import Generator
from stillhouse.synthesis.candidates import Candidate, Usage, count_reasons
from stillhouse.synthesis.diversity import describe_sets
from stillhouse.synthesis.formats import Verifier
from stillhouse.synthesis.leakage import GuardedSeeds
from stillhouse.synthesis.prompting import VERSION
from stillhouse.synthesis.seeds import Seed, SeedDomain

# These may change between two calls that go on with one journal.
_LIMITS = {"ratio", "count", "max_candidates", "max_fruitless_batches"}
# These stand in the identity by content.
_BY_CONTENT = {"dir", "seeds", "evaluation", "input_model", "label_model"}
_REFUSAL = re.compile(
    r"\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry,|i (?:can(?:no|')t|cannot|apologi[sz]e)|as an? (?:ai|language model))",
    re.IGNORECASE,
)


def identity_of(
    config: SynthesisConfig,
    seeds: Sequence[Seed],
    evaluation: Sequence[Row],
    inputs: Generator,
    labels: Generator,
    seed: int,
    verifier: Verifier | None = None,
) -> dict[str, Any]:
    """Return everything that the candidates depend on, but for limits that only end the work.

    Code has no content to compare, so a verifier stands in it by its name.
    """
    settings = config.model_dump(mode="json", exclude=_LIMITS | _BY_CONTENT)
    return {
        "version": version("stillhouse"),
        "prompts": VERSION,
        "seed": seed,
        "seeds": _digest(json.dumps([s.id, s.domain, s.system, s.text, s.answer]).encode() for s in seeds),
        "evaluation": _digest(content_digest(row) for row in evaluation),
        "input_model": inputs.fingerprint,
        "label_model": labels.fingerprint,
        "verifier": None if verifier is None else getattr(verifier, "__qualname__", type(verifier).__qualname__),
        "settings": settings,
    }


def _digest(parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def rows_jsonl(kept: Sequence[Candidate], domains: Mapping[str, SeedDomain], identity: Mapping[str, Any]) -> str:
    """Return the kept candidates as JSONL rows that any stage reads."""
    ids = {c.number: row_id(c) for c in kept}
    return "".join(json.dumps(_row(c, domains[c.domain], ids, identity), ensure_ascii=False) + "\n" for c in kept)


def row_id(candidate: Candidate) -> str:
    """Return a name that follows from what the row says."""
    said = json.dumps([candidate.domain, candidate.system, candidate.text, candidate.answer])
    return f"synthetic-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"


def _row(
    candidate: Candidate, domain: SeedDomain, ids: Mapping[int, str], identity: Mapping[str, Any]
) -> dict[str, Any]:
    answer = candidate.answer or ""
    turns = [*domain.conversation(candidate.text, candidate.system)]
    settings = identity["settings"]
    return {
        "id": row_id(candidate),
        "domain": candidate.domain,
        "source": "stillhouse-synthesis",
        "messages": [
            *({"role": m.role, "content": _clean(m.content)} for m in turns),
            {"role": "assistant", "content": _clean(answer)},
        ],
        **({"answer": _clean(answer)} if domain.answer_is_gold else {}),
        "provenance": {
            "candidate": candidate.number,
            "seeds": list(candidate.seeds),
            "synthetic": [ids.get(number, f"candidate {number}") for number in candidate.synthetic],
            "agreement": candidate.agreement,
            "nll": candidate.nll,
            "input_model": identity["input_model"],
            "label_model": identity["label_model"],
            "inputs": settings["inputs"],
            "labels": settings["labels"],
            "verifier": identity["verifier"],
            "seed": identity["seed"],
            "prompts": identity["prompts"],
            "version": identity["version"],
        },
    }


def _clean(text: str) -> str:
    """Half a surrogate pair fits no UTF-8 file; a model's decoder cannot write one, but a server's JSON can."""
    return text.encode("utf-8", "replace").decode()


def synthesis_report(
    *,
    config: SynthesisConfig,
    guarded: GuardedSeeds,
    candidates: Sequence[Candidate],
    target: int,
    stopped: str,
    identity: Mapping[str, Any],
    parameters: tuple[int | None, int | None],
    scored: bool,
    seconds: float,
    seed: int,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return ``synthesis_report.json``: counts, quality and diversity of the set; ``notes`` are further warnings."""
    seeds = [s for domain in guarded.domains.values() for s in domain.seeds]
    kept = [c for c in candidates if c.passed]
    return {
        "seeds": len(seeds),
        "target": target,
        "kept": len(kept),
        "ratio_wanted": target / len(seeds),
        "ratio_achieved": len(kept) / len(seeds),
        "candidates": len(candidates),
        "acceptance": len(kept) / len(candidates) if candidates else None,
        "stopped": stopped,
        "rejected": count_reasons(candidates),
        "warnings": [*_warnings(config, guarded, len(kept), target, stopped, scored), *notes],
        "contaminated_seeds": list(guarded.dropped),
        "domains": _domains(guarded.domains, kept),
        "labels": _labels(config, seeds, kept),
        "quality": _quality(candidates, kept),
        "diversity": describe_sets([s.text for s in seeds], [c.text for c in kept], seed=seed),
        "tokens": _tokens(candidates, parameters),
        "seconds": round(seconds, 3),
        "identity": dict(identity),
    }


def _warnings(
    config: SynthesisConfig, guarded: GuardedSeeds, kept: int, target: int, stopped: str, scored: bool
) -> list[str]:
    warnings = []
    if stopped == "fruitless":
        warnings.append(
            f"stopped with {kept} of {target} rows: the last {config.max_fruitless_batches} batches of"
            f" {config.batch_size} candidates brought none, so the model repeats itself or fails the filters"
        )
    if stopped == "max_candidates":
        warnings.append(f"stopped with {kept} of {target} rows: synthesis.max_candidates was reached")
    if guarded.dropped:
        warnings.append(f"{len(guarded.dropped)} seeds were left out because they contaminate the evaluation")
    if not scored and config.filters.nll_tail > 0:
        warnings.append("the labeller gives no log-probabilities of texts, so answers were not filtered by NLL")
    if not len(guarded.index):
        warnings.append("there are no evaluation rows, so contamination was not looked for")
    return warnings


def _domains(domains: Mapping[str, SeedDomain], kept: Sequence[Candidate]) -> dict[str, Any]:
    counts = Counter(c.domain for c in kept)
    return {
        name: {"seeds": len(d.seeds), "kept": counts[name], "frame": [d.frame.before, d.frame.after]}
        for name, d in domains.items()
    }


def _labels(config: SynthesisConfig, seeds: Sequence[Seed], kept: Sequence[Candidate]) -> dict[str, Any] | None:
    """How often each label stands in both sets; None where answers are no labels."""
    if not isinstance(config.format, LabelsFormat):
        return None
    human, synthetic = Counter(s.answer.strip() for s in seeds), Counter((c.answer or "").strip() for c in kept)
    return {
        name: {"human": human[name], "synthetic": synthetic[name]}
        for name in sorted({*human, *synthetic}, key=lambda n: (-human[n], n))
    }


def _quality(candidates: Sequence[Candidate], kept: Sequence[Candidate]) -> dict[str, Any]:
    """What the answers were like: shares of all that were given, and means over the kept ones."""
    answered = [c for c in candidates if c.answer is not None]
    right_form = [
        c for c in answered if c.rejection is None or c.rejection.reason not in ("answer_format", "empty_answer")
    ]
    refusals = [c for c in answered if _REFUSAL.match(c.answer or "")]
    nlls = [c.nll for c in kept if c.nll is not None]
    agreements = [c.agreement for c in kept if c.agreement is not None]
    return {
        "answered": len(answered),
        "format_pass_rate": len(right_form) / len(answered) if answered else None,
        "refusal_rate": len(refusals) / len(answered) if answered else None,
        "mean_nll": sum(nlls) / len(nlls) if nlls else None,
        "nll_range": [min(nlls), max(nlls)] if nlls else None,
        "mean_agreement": sum(agreements) / len(agreements) if agreements else None,
    }


def _tokens(candidates: Sequence[Candidate], parameters: tuple[int | None, int | None]) -> dict[str, Any]:
    """Tokens and forward FLOPs (2 per parameter and token) of writing and labelling."""
    parts: dict[str, Any] = {}
    for name, usages, size in (
        ("inputs", [c.input_usage for c in candidates], parameters[0]),
        ("labels", [c.label_usage for c in candidates], parameters[1]),
    ):
        usage = sum(usages, Usage())
        flops = None if size is None else 2.0 * size * (usage.prompt_tokens + usage.tokens)
        parts[name] = {"prompt": usage.prompt_tokens, "generated": usage.tokens, "flops": flops}
    return parts
