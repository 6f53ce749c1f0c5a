"""Overlap with reference texts: ROUGE-L and chrF, by the libraries that published scores use.

Both are between 0 and 1 here, the best over a row's references, and averaged over rows. ROUGE-L
(Lin 2004) is the F-measure of the longest common subsequence of words, without stemming; its
tokenizer knows Latin letters and digits only, so text in other scripts scores 0. chrF (Popovic
2015; characters up to 6-grams, beta 2) serves every script.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from stillhouse.errors import MissingDependencyError

INSTALL = "pip install 'stillhouse[metrics]'"


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F-measure over ``references``, at least one.

    Raises MissingDependencyError without rouge-score.
    """
    return float(_rouge_scorer().score_multi(list(references), prediction)["rougeL"].fmeasure)


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return the best sentence chrF over ``references``, at least one, divided by 100.

    Raises MissingDependencyError without sacrebleu.
    """
    return float(_chrf_scorer().sentence_score(prediction, list(references)).score) / 100


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the metric rouge_l needs rouge-score; run `{INSTALL}`") from error
    return RougeScorer(["rougeL"], use_stemmer=False)


@cache
def _chrf_scorer() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the metric chrf needs sacrebleu; run `{INSTALL}`") from error
    return CHRF()
