"""The training loop of one stage: one explicit loop that reads from top to bottom.

Everything that differs between methods is handed in: the plan says which documents come next,
the teacher what they are compared with, the objective how.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.errors import TrainingError
from stillhouse.evaluation.nll import NLLReport
from stillhouse.mixture.controller import MixtureController
from stillhouse.randomness import derive_seed
from stillhouse.recipe import StageConfig
from stillhouse.training.batches import rank_share
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.distributed import World
from stillhouse.training.interrupt import Interrupt
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.on_policy import Answers, OnPolicy
from stillhouse.training.progress import Progress
from stillhouse.training.step import StepOutcome, TrainStep, cosine_learning_rate

_SPEED_WINDOW = 20


class StepPlan(Protocol):
    """Which documents each optimizer step sees; a function of seed and step alone."""

    def documents(self, step: int) -> Sequence[int] | Int64Array: ...


@dataclass
class LoopState:
    """All of a stage that is not a tensor; saved as JSON with every checkpoint."""

    step: int = 0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    best_nll: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    stopped_because: str | None = None


@dataclass(frozen=True)
class Cadence:
    """How often, in optimizer steps."""

    evaluate: int
    checkpoint: int
    patience: int | None


@dataclass
class StageLoop:
    """A stage ready to run. ``train()`` may be called again after an interruption."""

    stage: StageConfig
    num_steps: int
    plan: StepPlan
    documents: DocumentSet
    train_step: TrainStep
    evaluate: Callable[[], NLLReport]
    checkpoints: Checkpoints
    metrics: MetricsLog | None
    progress: Progress
    cadence: Cadence
    world: World
    seed: int
    pad_id: int
    mixture: MixtureController | None = None
    rollouts: OnPolicy | None = None
    state: LoopState = field(default_factory=LoopState)
    _answers: Answers | None = None
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_SPEED_WINDOW))

    def train(self) -> LoopState:
        """Train to the end, to early stopping, or to a signal; ``stopped_because`` says which.

        Raises TrainingError when a loss is not finite: the last good checkpoint stays.
        """
        started = time.monotonic() - self.state.seconds
        with Interrupt() as interrupt:
            if self.state.step == 0:
                self._evaluate()
                if self.cadence.patience is not None:
                    self._save()  # the start may turn out to be the best
            while self.state.step < self.num_steps and not self._out_of_patience():
                if self._begin_interval():
                    self.state.stopped_because = "discrepancy"
                    self._evaluate()
                    self._save()
                    return self.state
                outcome, learning_rate = self._one_step()
                self.state.seconds = time.monotonic() - started
                self._record(outcome, learning_rate)
                last = self.state.step == self.num_steps
                new_best = (last or self.state.step % self.cadence.evaluate == 0) and self._evaluate()
                interrupted = self.world.any(interrupt.signal is not None)
                self.state.seconds = time.monotonic() - started
                must_keep = new_best and self.cadence.patience is not None
                if last or interrupted or must_keep or self.state.step % self.cadence.checkpoint == 0:
                    self._save()
                if interrupted and not last:
                    self.state.stopped_because = "interrupted"
                    return self.state
        self.state.stopped_because = "early stopping" if self.state.step < self.num_steps else "budget"
        return self.state

    def _begin_interval(self) -> bool:
        """Let the mixture draw the next interval if one begins; True when its stop rule ends the run."""
        if self.mixture is None:
            return False
        report = self.mixture.prepare(self.state.step)
        if report is not None and self.metrics is not None:
            self.metrics.write("mixture", self.state.step, {"stage": self.stage.name, **report})
        return self.mixture.settled

    def _one_step(self) -> tuple[StepOutcome, float]:
        step, started = self.state.step, time.monotonic()
        documents, indices = self.documents, np.asarray(self.plan.documents(step), dtype=np.int64)
        answers = None if self.rollouts is None else self.rollouts.answers(step, self._planned)
        if answers is not None:
            documents, indices = answers.documents, np.arange(len(answers.documents), dtype=np.int64)
        targets = int(documents.num_targets[indices].sum())
        micro_batches = self._share(documents, indices)
        learning_rate = cosine_learning_rate(step, self.num_steps, self.stage.optimisation)
        try:
            with torch.random.fork_rng():
                # Dropout draws from the global generator; its draws depend on the step alone.
                torch.manual_seed(derive_seed(self.seed, "forward", step, self.world.rank))
                outcome = self.train_step.run(micro_batches, targets, learning_rate, on_policy=answers is not None)
        except TrainingError as error:
            good = self.checkpoints.steps()
            kept = f"the checkpoint of step {good[-1]} is kept" if good else "no checkpoint was written yet"
            raise TrainingError(f"step {step + 1}: {error}; {kept}") from error
        self.state.step += 1
        tokens = int(documents.lengths[indices].sum())
        self.state.tokens += tokens
        self.state.targets += targets
        self._recent.append((tokens, time.monotonic() - started))
        self._answers = answers
        return outcome, learning_rate

    def _planned(self, step: int) -> Int64Array | None:
        """The documents of a step that is planned already: in this stage, and in the interval that is drawn."""
        end = self.num_steps
        if (length := self.stage.mixture.interval_steps) is not None:
            end = min(end, (self.state.step // length + 1) * length)
        return np.asarray(self.plan.documents(step), dtype=np.int64) if step < end else None

    def _share(self, documents: DocumentSet, indices: Int64Array) -> list[Batch]:
        return rank_share(documents, indices, self.stage.optimisation, pad_id=self.pad_id, world=self.world)

    def _record(self, outcome: StepOutcome, learning_rate: float) -> None:
        state = self.state
        values = {
            "stage": self.stage.name,
            "tokens": state.tokens,
            **outcome.as_metrics(),
            "targets": state.targets,
            "lr": learning_rate,
            "tokens_per_second": self._speed(),
            "seconds": state.seconds,
        }
        if self.rollouts is not None:
            values |= {"on_policy": self._answers is not None}
        if self._answers is not None:
            values |= {"answer_tokens": self._answers.mean_tokens, "answers_finished": self._answers.finished}
        if self.metrics is not None:
            self.metrics.write("step", state.step, values)
        self.progress.step(state.step, self.num_steps, outcome, self._speed())

    def _speed(self) -> float:
        """Tokens per second over the last steps of this process, evaluations left out."""
        return sum(tokens for tokens, _ in self._recent) / sum(seconds for _, seconds in self._recent)

    def _evaluate(self) -> bool:
        report = self.evaluate()
        state = self.state
        improved = state.best_nll is None or report.nll < state.best_nll
        if improved:
            state.best_nll, state.best_step, state.evaluations_since_best = report.nll, state.step, 0
        else:
            state.evaluations_since_best += 1
        values = {
            "stage": self.stage.name,
            "nll": report.nll,
            "domains": {name: asdict(domain) for name, domain in report.domains.items()},
            "best": improved,
            "seconds": state.seconds,
        }
        if self.metrics is not None:
            self.metrics.write("evaluation", state.step, values)
        self.progress.evaluation(state.step, report, improved=improved)
        return improved

    def _out_of_patience(self) -> bool:
        patience = self.cadence.patience
        return patience is not None and self.state.evaluations_since_best >= patience

    def _save(self) -> None:
        state: dict[str, Any] = asdict(self.state)
        if self.mixture is not None:
            state["mixture"] = self.mixture.state_dict()
        if self.rollouts is not None:
            state["rollouts"] = self.rollouts.state_dict()
        if self.train_step.proxy is not None:
            state["proxy"] = self.train_step.proxy.state_dict()
        weights, optimizer = self.train_step.weights, self.train_step.optimizer
        self.checkpoints.save(self.state.step, weights, optimizer, state)
        self.checkpoints.prune(self.state.best_step if self.cadence.patience is not None else None)
