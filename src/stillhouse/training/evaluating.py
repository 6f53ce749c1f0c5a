"""Teacher, student before and student after, measured on the same held-out rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stillhouse.data.chat import ChatFormat
from stillhouse.data.dataset import Dataset
from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import Prepared, prepare, read_template
from stillhouse.evaluation.assess import EvaluationSettings
from stillhouse.evaluation.held_out import HeldOut, build_held_out
from stillhouse.evaluation.plan import MetricRequest
from stillhouse.evaluation.scored_rows import with_scores
from stillhouse.evaluation.served import evaluate_served
from stillhouse.evaluation.suite import Evaluation, Sample, evaluate_model
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import DataConfig, ModelConfig, Recipe, ServerConfig, TeacherConfig
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic
from stillhouse.teachers.aligned_documents import require_chat_template
from stillhouse.teachers.live import LiveTeacher
from stillhouse.training.cached import known_dtype, known_fingerprint, teacher_dtype, weights_are_here
from stillhouse.training.distributed import World
from stillhouse.training.models import Student
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.served import answers_digest, open_server, refuse_trimmed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_HEAD_CHUNK = 512
_ROWS_SEED = 0
"""Which rows are generated does not follow the recipe's seed: runs with other seeds answer the same ones."""


@dataclass(frozen=True)
class Measured:
    """One model's numbers and its answers to the shown rows."""

    evaluation: Evaluation
    samples: list[Sample]

    def to_json(self) -> dict[str, Any]:
        return {"evaluation": self.evaluation.to_json(), "samples": [asdict(s) for s in self.samples]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measured:
        return cls(Evaluation.from_json(data["evaluation"]), [Sample(**s) for s in data["samples"]])


_M = TypeVar("_M", bound=Measured | None)


class Evaluator:
    """Measures the models of one run; what was measured once is kept in ``evaluation/``.

    Teacher and untrained student are also kept across runs, under the fingerprint of their
    weights, the documents and the settings: a grid of runs pays for them once.
    """

    def __init__(
        self, recipe: Recipe, base_dir: Path, directory: RunDirectory, dataset: Dataset, student: Student, world: World
    ) -> None:
        self._recipe, self._base, self._directory = recipe, base_dir, directory
        self._student, self._world = student, world
        self._dtype = resolve_dtype(recipe.stages[0].optimisation.precision, world.device)
        self._chat = chat_format_for(dataset.test.rows, student.tokenizer, recipe.data, base_dir)
        self._test = dataset.test
        self._held_out = self._scored(dataset.test, student.tokenizer, self._chat, recipe.data)
        self._unmeasured: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not measured, and why."""
        return (*self._unmeasured, *self._held_out.notes)

    def _scored(
        self, test: Prepared, tokenizer: PreTrainedTokenizerFast, chat: ChatFormat | None, data: DataConfig
    ) -> HeldOut:
        """The rows of every measurement; those of the scores do not follow the recipe's seed."""
        config = self._recipe.evaluation
        held_out = build_held_out(test, tokenizer, chat, config.generation, seed=_ROWS_SEED)
        request = MetricRequest(config.metrics, config.generation.rows, config.multiple_choice_rows, _ROWS_SEED)
        return with_scores(held_out, test, tokenizer, request, data, self._base)

    def teacher(self) -> Measured | None:
        """Measure the teacher through its own protocol, in its own precision.

        None, with a note, for that of a cache whose weights are not here and that was never measured.
        """
        config = self._recipe.teacher
        assert config is not None
        if config.source == "server":
            return self._once("teacher", lambda: self._measure_served(config, config.server))
        if self._student.other_tokenizer is not None:
            return self._once("teacher", lambda: self._measure_other_teacher(config))
        return self._once("teacher", lambda: self._measure_teacher(config))

    def student_before(self) -> Measured:
        """Measure the untrained student."""
        return self._once("student_before", lambda: self._measure_student(self._student.config, shared=True))

    def student_after(self) -> Measured:
        """Measure the saved model as its users will load it."""
        saved = ModelConfig(path=str((self._directory / "model").absolute()), attention=self._student.config.attention)
        return self._once("student_after", lambda: self._measure_student(saved, shared=False))

    def _once(self, name: str, measure: Callable[[], _M]) -> Measured | _M:
        saved = self._directory.saved_evaluation(name)
        self._world.barrier()
        if saved is not None:
            return Measured.from_json(saved)
        measured = measure()
        if self._world.is_main and measured is not None:
            write_json_atomic(self._directory / "evaluation" / f"{name}.json", measured.to_json())
        self._world.barrier()
        return measured

    def _measure_teacher(self, config: TeacherConfig) -> Measured | None:
        fingerprint = known_fingerprint(self._recipe, config, self._base)
        dtype = known_dtype(self._recipe, config, self._base, self._world.device)
        if fingerprint is None:
            self._go_without_teacher(config)
            return None
        key = self._key(fingerprint, str(self._student.vocab_size), dtype=dtype)
        if not weights_are_here(config, self._base):
            path = evaluation_cache() / f"{key}.json"
            if path.exists():
                return Measured.from_json(read_json(path))
            self._go_without_teacher(config)
            return None

        def measure() -> Measured:
            model = load_model(config, dtype=dtype, base_dir=self._base)
            tokenizer = load_tokenizer(config, base_dir=self._base)
            if config.quantization == "none":
                place_model(model, config.placement, self._world.device)
            teacher = LiveTeacher(
                model, vocabulary_map=self._student.vocabulary_map, vocab_size=self._student.vocab_size
            )
            # A trimmed student reads other ids: the teacher's prompts are made with its own tokenizer.
            chat = self._chat
            if chat is not None and self._student.vocabulary_map is not None:
                chat = ChatFormat(tokenizer, read_template(self._recipe.data.chat_template, self._base))
            settings = self._settings()
            return Measured(
                *evaluate_model(model, tokenizer, chat, self._held_out, settings, seed=_ROWS_SEED, teacher=teacher)
            )

        return self._shared(key, measure)

    def _go_without_teacher(self, config: TeacherConfig) -> None:
        self._unmeasured = (
            f"the teacher was not measured on the held-out rows: teacher.path={config.path} holds no weights here, and "
            "no run has left a measurement of it on this machine; the share of the gap that training closed is unknown",
        )

    def _measure_other_teacher(self, config: TeacherConfig) -> Measured:
        """Measure a teacher with another tokenizer on its own tokens of the same rows."""
        model = load_model(config, dtype=teacher_dtype(self._recipe, config, self._world.device), base_dir=self._base)
        tokenizer = load_tokenizer(config, base_dir=self._base)
        require_chat_template(self._test.rows, tokenizer)
        data = self._recipe.data.model_copy(update={"chat_template": None})
        own = prepare(
            self._test.rows,
            tokenizer,
            data,
            domains=self._test.documents.domains,
            tokenizer_hash=tokenizer_hash(tokenizer),
            base_dir=self._base,
        )
        chat = chat_format_for(self._test.rows, tokenizer, data, self._base)
        # All models answer the same rows, so they are drawn from the same list.
        held_out = self._scored(
            replace(own, rows=self._test.rows, questions=self._test.questions), tokenizer, chat, data
        )
        vocab_size = vocabulary_size(tokenizer)

        def measure() -> Measured:
            if config.quantization == "none":
                place_model(model, config.placement, self._world.device)
            settings = replace(self._settings(), vocab_size=vocab_size)
            return Measured(*evaluate_model(model, tokenizer, chat, held_out, settings, seed=_ROWS_SEED))

        return self._shared(self._key(model_fingerprint(model), str(vocab_size), held_out=held_out), measure)

    def _measure_served(self, config: TeacherConfig, server: ServerConfig | None) -> Measured:
        """Ask the server; what it said is shared between runs of one cache, which knows the teacher by its answers."""
        assert server is not None, "the recipe's validation asks for it"
        refuse_trimmed(self._student.vocabulary_map)
        settings = self._settings()
        at_once = server.concurrency * self._recipe.data.max_seq_len
        settings = replace(settings, micro_batch_tokens=max(settings.micro_batch_tokens, at_once))

        def measure() -> Measured:
            with open_server(config) as client:
                return Measured(*evaluate_served(client, self._student.tokenizer, self._chat, self._held_out, settings))

        said = answers_digest(config, self._base)
        return measure() if said is None else self._shared(self._key(said, str(self._student.vocab_size)), measure)

    def _measure_student(self, config: ModelConfig, *, shared: bool) -> Measured:
        model = load_model(config, dtype=self._dtype, base_dir=self._base)
        key = self._key(model_fingerprint(model), str(self._student.vocab_size)) if shared else None

        def measure() -> Measured:
            place_model(model, "whole", self._world.device)
            return Measured(
                *evaluate_model(
                    model,
                    self._student.tokenizer,
                    self._chat,
                    self._held_out,
                    self._settings(),
                    seed=_ROWS_SEED,
                )
            )

        return measure() if key is None else self._shared(key, measure)

    def _settings(self) -> EvaluationSettings:
        return EvaluationSettings(
            device=self._world.device,
            micro_batch_tokens=self._recipe.stages[0].optimisation.micro_batch_tokens,
            head_chunk=_HEAD_CHUNK,
            max_new_tokens=self._recipe.evaluation.generation.max_new_tokens,
            vocab_size=self._student.vocab_size,
        )

    def _key(
        self, fingerprint: str, *more: str, held_out: HeldOut | None = None, dtype: torch.dtype | None = None
    ) -> str:
        """Everything that a measurement depends on, as one name; ``held_out`` and ``dtype`` None: the student's."""
        digest = hashlib.blake2b(digest_size=16)
        parts = [
            version("stillhouse"),
            version("torch"),
            version("transformers"),
            fingerprint,
            str(dtype or self._dtype),
        ]
        parts += more
        parts.append(self._recipe.evaluation.generation.model_dump_json())
        for part in parts:
            digest.update(f"{len(part)}:{part}".encode())
        digest.update((self._held_out if held_out is None else held_out).identity())
        return digest.hexdigest()

    def _shared(self, key: str, measure: Callable[[], Measured]) -> Measured:
        path = evaluation_cache() / f"{key}.json"
        found = path.exists() and not self._world.is_distributed  # ranks must all decide alike
        if found:
            return Measured.from_json(read_json(path))
        measured = measure()
        if self._world.is_main:
            write_json_atomic(path, measured.to_json())
        return measured


def evaluation_cache() -> Path:
    """Where measurements are shared between runs: $STILLHOUSE_CACHE, else the user's cache folder."""
    root = os.environ.get("STILLHOUSE_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillhouse"
    return base / "evaluations"
