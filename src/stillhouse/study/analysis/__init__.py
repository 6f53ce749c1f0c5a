"""What a study's numbers say, and how surely: pure functions over the rows of ``study_result.json``."""

from stillhouse.study.analysis.analyse import Analysis, analyse

__all__ = ["Analysis", "analyse"]
