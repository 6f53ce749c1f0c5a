"""Teacher, student before and student after, measured on the same held-out rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stillhouse.data.chat import ChatFormat
from stillhouse.data.dataset import Dataset
from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import prepare, read_template
from stillhouse.data.sources import draw, load_rows
from stillhouse.evaluation.held_out import HeldOut, build_held_out
from stillhouse.evaluation.suite import Evaluation, EvaluationSettings, Sample, evaluate_model
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import DataConfig, GenerationConfig, ModelConfig, Recipe, SourceConfig, TeacherConfig
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic
from stillhouse.teachers.live import LiveTeacher
from stillhouse.training.cached import teacher_dtype
from stillhouse.training.distributed import World
from stillhouse.training.models import Student
from stillhouse.training.precision import resolve_dtype

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
        self._held_out = build_held_out(
            dataset.test, student.tokenizer, self._chat, recipe.evaluation.generation, seed=_ROWS_SEED
        )

    def teacher(self) -> Measured:
        """Measure the teacher through its own protocol, in its own precision."""
        config = self._recipe.teacher
        assert config is not None
        return self._once("teacher", lambda: self._measure_teacher(config))

    def student_before(self) -> Measured:
        """Measure the untrained student."""
        return self._once("student_before", lambda: self._measure_student(self._student.config, shared=True))

    def student_after(self) -> Measured:
        """Measure the saved model as its users will load it."""
        saved = ModelConfig(path=str((self._directory / "model").absolute()), attention=self._student.config.attention)
        return self._once("student_after", lambda: self._measure_student(saved, shared=False))

    def _once(self, name: str, measure: Callable[[], Measured]) -> Measured:
        saved = self._directory.saved_evaluation(name)
        self._world.barrier()
        if saved is not None:
            return Measured.from_json(saved)
        measured = measure()
        if self._world.is_main:
            write_json_atomic(self._directory / "evaluation" / f"{name}.json", measured.to_json())
        self._world.barrier()
        return measured

    def _measure_teacher(self, config: TeacherConfig) -> Measured:
        dtype = teacher_dtype(self._recipe, config, self._world.device)
        model = load_model(config, dtype=dtype, base_dir=self._base)
        tokenizer = load_tokenizer(config, base_dir=self._base)
        key = self._key(model_fingerprint(model), str(self._student.vocab_size))

        def measure() -> Measured:
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

    def _key(self, fingerprint: str, *more: str) -> str:
        """Everything that a measurement depends on, as one name."""
        digest = hashlib.blake2b(digest_size=16)
        documents = self._held_out.documents
        rows = [[r.id, r.domain, r.answer, list(r.contents)] for r in (*self._held_out.scored, *self._held_out.shown)]
        parts = [version("stillhouse"), version("torch"), version("transformers"), fingerprint, str(self._dtype), *more]
        parts += [json.dumps(rows), json.dumps(documents.domains), self._recipe.evaluation.generation.model_dump_json()]
        for part in parts:
            digest.update(f"{len(part)}:{part}".encode())
        digest.update(documents.uids.tobytes())
        digest.update(documents.domain_ids.tobytes())
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


def evaluate_anything(
    model: str,
    data: str,
    *,
    base_dir: Path,
    precision: str,
    max_seq_len: int,
    limit_per_domain: int | None,
    generation: GenerationConfig,
) -> Measured:
    """Measure any model on any rows: the work of ``stillhouse evaluate``.

    Raises DataError and ModelError as loading does.
    """
    config, source = ModelConfig(path=model), SourceConfig(path=data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, base_dir=base_dir)
    rows = draw(load_rows([source], seed=0, base_dir=base_dir), None, limit_per_domain, seed=0)
    data_config = DataConfig(train=(source,), max_seq_len=max_seq_len, deduplicate=False)
    prepared = prepare(rows, tokenizer, data_config, tokenizer_hash=tokenizer_hash(tokenizer), base_dir=base_dir)
    chat = chat_format_for(prepared.rows, tokenizer, data_config, base_dir)
    held_out: HeldOut = build_held_out(prepared, tokenizer, chat, generation, seed=0)
    loaded = place_model(load_model(config, dtype=resolve_dtype(precision, device), base_dir=base_dir), "whole", device)
    settings = EvaluationSettings(
        device=device,
        micro_batch_tokens=max(4096, max_seq_len),
        head_chunk=_HEAD_CHUNK,
        max_new_tokens=generation.max_new_tokens,
        vocab_size=vocabulary_size(tokenizer),
    )
    return Measured(*evaluate_model(loaded, tokenizer, chat, held_out, settings, seed=0))
