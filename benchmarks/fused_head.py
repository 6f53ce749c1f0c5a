"""Time the fused objective beside the bare matrix products that it cannot do without.

Everything is measured in one process, the contestants taking turns within every repeat, so that a
busy machine slows all of them alike. The floor runs the objective's four products over the same
chunks into buffers made beforehand (both models' logits, the gradients of hidden states and head
weight) and adds the weight gradient up in float32 with the objective's own routine; it does
nothing pointwise. The objective is 0.5 CE + 0.5 forward KL at temperature 1 on random hidden
states. ``of_floor`` is the floor's time over the objective's, repeat by repeat: 1 would mean that
softmaxes, divergence and gradients cost nothing.

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.head_gradients import add_product, product_buffer
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.divergence.rows import compiler_available
from stillhouse.randomness import torch_generator
from stillhouse.recipe import KDObjective
from stillhouse.teachers.protocol import Projection

LOGIT_SPREAD = 4.0


@dataclass(frozen=True)
class Problem:
    """One micro-batch of target tokens with both heads."""

    student: Projection
    teacher: Projection
    labels: Tensor
    weight_gradient: Tensor
    """float32 [V, H]; every contestant adds to it."""


def make_problem(arguments: argparse.Namespace) -> Problem:
    """Draw hidden states and heads whose logits have a standard deviation of about 4."""
    generator = torch_generator(0, "benchmark")
    dtype = getattr(torch, arguments.dtype)

    def projection() -> Projection:
        hidden = torch.randn(arguments.tokens, arguments.hidden, generator=generator)
        weight = torch.randn(arguments.vocab, arguments.hidden, generator=generator)
        weight *= LOGIT_SPREAD / arguments.hidden**0.5
        return Projection(hidden.to(dtype), weight.to(dtype))

    student, teacher = projection(), projection()
    student.hidden.requires_grad_()
    student.weight.requires_grad_()
    labels = torch.randint(arguments.vocab, (arguments.tokens,), generator=generator)
    return Problem(student, teacher, labels, torch.zeros(arguments.vocab, arguments.hidden))


def floor(problem: Problem, chunk: int) -> Callable[[], None]:
    """The four products; the student's logits stand in for their own gradient."""
    vocab = problem.student.weight.shape[0]
    student_logits = problem.student.hidden.new_empty(chunk, vocab)
    teacher_logits = torch.empty_like(student_logits)
    hidden_gradient = torch.empty_like(problem.student.hidden)
    product = product_buffer(problem.weight_gradient, problem.student.weight.dtype)

    @torch.no_grad()
    def run() -> None:
        for start in range(0, len(problem.labels), chunk):
            part = slice(start, start + chunk)
            student, teacher = problem.student.hidden[part], problem.teacher.hidden[part]
            torch.mm(student, problem.student.weight.t(), out=student_logits[: len(student)])
            torch.mm(teacher, problem.teacher.weight.t(), out=teacher_logits[: len(student)])
            torch.mm(student_logits[: len(student)], problem.student.weight, out=hidden_gradient[part])
            add_product(problem.weight_gradient, student_logits[: len(student)], student, product)

    return run


def fused(problem: Problem, chunk: int, *, compiled: bool) -> Callable[[], None]:
    """The objective, forward and backward."""
    terms = ObjectiveTerms.from_config(KDObjective(type="kd"), problem.student.weight.shape[0])

    def run() -> None:
        problem.student.hidden.grad = None
        fused_objective(
            problem.student,
            problem.labels,
            problem.teacher,
            terms,
            normaliser=len(problem.labels),
            chunk=chunk,
            compiled=compiled,
            weight_grad_accumulator=problem.weight_gradient,
        ).loss.backward()  # type: ignore[no-untyped-call]

    return run


def time_in_turns(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every repeat, after one uncounted turn each (which compiles)."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation, minimum and median."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.mean(values),
        "sd": spread,
        "min": min(values),
        "median": statistics.median(values),
    }


def measure(problem: Problem, chunk: int, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table for one chunk size."""
    contestants = {"floor": floor(problem, chunk)}
    if compiler_available():
        contestants["compiled"] = fused(problem, chunk, compiled=True)
    if not arguments.skip_eager:
        contestants["eager"] = fused(problem, chunk, compiled=False)
    seconds = time_in_turns(contestants, arguments.repeats)
    rows: list[dict[str, object]] = []
    for name, values in seconds.items():
        shares = summary([base / value for base, value in zip(seconds["floor"], values, strict=True)])
        times = summary(values)
        best = min(seconds["floor"]) / min(values)
        print(
            f"chunk {chunk:5d}  {name:8s}  {times['mean']:7.3f} s (sd {times['sd']:.3f}, min {times['min']:.3f})  "
            f"of floor {shares['mean']:.3f} (sd {shares['sd']:.3f}, median {shares['median']:.3f}, minima {best:.3f})",
            flush=True,
        )
        rows.append({"chunk": chunk, "contestant": name, "seconds": times, "of_floor": shares, "of_floor_minima": best})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="target tokens of the micro-batch (2048)")
    parser.add_argument("--vocab", type=int, default=49152, help="rows of both heads (49152, SmolLM2)")
    parser.add_argument("--hidden", type=int, default=576, help="width of both models (576, SmolLM2-135M)")
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 512, 1024], help="chunk sizes (256 512 1024)")
    parser.add_argument("--repeats", type=int, default=10, help="counted turns of each contestant (10)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of states and heads")
    parser.add_argument("--skip-eager", action="store_true", help="leave the slow uncompiled path out")
    arguments = parser.parse_args()
    problem = make_problem(arguments)
    rows = [row for chunk in arguments.chunks for row in measure(problem, chunk, arguments)]
    setup = {**vars(arguments), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "fused_head", "setup": setup, "results": rows}))


if __name__ == "__main__":
    main()
