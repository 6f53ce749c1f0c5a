"""Students cut out of larger models."""

from stillhouse.models.shrink.build import ShrunkStudent, build_student

__all__ = ["ShrunkStudent", "build_student"]
