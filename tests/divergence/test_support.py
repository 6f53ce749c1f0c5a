"""The check that names the id which makes a divergence infinite."""

from __future__ import annotations

import pytest
import torch

from stillhouse.divergence.support import check_support
from stillhouse.divergence.table import build_divergence
from stillhouse.errors import ModelError
from stillhouse.recipe import JSD, ForwardKL, ReverseKL

FREE = torch.zeros(2, 3)
MASKED = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf]])


def test_names_the_id_that_the_student_masks() -> None:
    with pytest.raises(
        ModelError, match=r"forward_kl is infinite: the student masks token id 2 .*\(position 1; 1 such"
    ):
        check_support(build_divergence(ForwardKL()), FREE, MASKED)


def test_names_the_id_that_the_teacher_masks() -> None:
    with pytest.raises(ModelError, match=r"reverse_kl is infinite: the teacher masks token id 2"):
        check_support(build_divergence(ReverseKL(type="reverse_kl")), MASKED, FREE)


def test_accepts_what_stays_finite() -> None:
    check_support(build_divergence(ForwardKL()), MASKED, FREE)
    check_support(build_divergence(ForwardKL()), MASKED, MASKED)
    check_support(build_divergence(ReverseKL(type="reverse_kl")), FREE, MASKED)
    jsd = build_divergence(JSD(type="jsd"))
    check_support(jsd, FREE, MASKED)
    check_support(jsd, MASKED, FREE)
