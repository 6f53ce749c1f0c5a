"""The recipe itself, and what its parts must have in common."""

from __future__ import annotations

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config
from stillhouse.recipe.data import DataConfig
from stillhouse.recipe.mixtures import FollowingMixture
from stillhouse.recipe.models import PrunedStudent, StudentConfig, TeacherConfig
from stillhouse.recipe.objectives import (
    CrossTokenizerObjective,
    DistillationObjective,
    DoReMiProxyObjective,
    ForwardKL,
    GKDObjective,
    SequenceKDObjective,
    SFTObjective,
    TEDObjective,
)
from stillhouse.recipe.running import CheckpointConfig, EvaluationConfig, OutputConfig, ParallelConfig
from stillhouse.recipe.stages import StageConfig
from stillhouse.recipe.synthesis import SynthesisConfig


class Recipe(Config):
    seed: int = Field(default=0, ge=0)
    teacher: TeacherConfig | None = None
    student: StudentConfig
    data: DataConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    synthesis: SynthesisConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Recipe:
        if self.teacher is None:
            for i, stage in enumerate(self.stages):
                if isinstance(stage.mixture, FollowingMixture):
                    raise ValueError(
                        f"stages.{i}.mixture.type={stage.mixture.type} compares the student with a teacher; add `teacher`"
                    )
                if not isinstance(stage.objective, SFTObjective | DoReMiProxyObjective):
                    raise ValueError(
                        f"stages.{i}.objective.type={stage.objective.type} needs a teacher; "
                        "add `teacher: {path: ...}` or use type: sft"
                    )
            if self.synthesis and not (self.synthesis.input_model and self.synthesis.label_model):
                raise ValueError(
                    "synthesis needs a model to ask; add `teacher`, or synthesis.input_model and label_model"
                )
            if isinstance(self.student, PrunedStudent) and self.student.source is None:
                raise ValueError(
                    "student.type=pruned prunes the teacher, and there is none; add `teacher` or `student.source`"
                )
        return self

    @model_validator(mode="after")
    def _ted_and_doremi(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            field = f"stages.{i}"
            if isinstance(stage.objective, TEDObjective):
                if self.teacher is not None and self.teacher.source != "live":
                    raise ValueError(
                        f"{field}.objective.type=ted reads the teacher's layers, which teacher.source="
                        f"{self.teacher.source} does not have; use source: live"
                    )
                if self.parallel.strategy == "fsdp":
                    raise ValueError(
                        f"{field}.objective.type=ted trains its filters on whole copies of the student; "
                        "use parallel.strategy: ddp"
                    )
            if isinstance(stage.objective, DoReMiProxyObjective) and isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"{field}.mixture.type={stage.mixture.type}: a proxy weighs domains by the shares in which they are "
                    "drawn, so these must not move; use proportional, equal, fixed or doremi"
                )
        return self

    @model_validator(mode="after")
    def _targets_serve_the_objective(self) -> Recipe:
        """What sparse targets allow: methods of section 4, "which divergence is legal on which targets"."""
        if self.teacher is None:
            return self
        cache = self.teacher.cache
        if self.teacher.source != "server" and (self.teacher.source == "cache") != (cache is not None):
            raise ValueError("teacher.source=cache and teacher.cache belong together; give both or neither")
        for i, stage in enumerate(self.stages):
            objective = stage.objective
            if cache is None or not isinstance(objective, DistillationObjective):
                continue
            field = f"stages.{i}.objective"
            if isinstance(objective, GKDObjective) and objective.on_policy_fraction > 0:
                raise ValueError(
                    f"{field}.on_policy_fraction={objective.on_policy_fraction}: a cache knows nothing of what the "
                    "student writes; use teacher.source=live, or on_policy_fraction: 0"
                )
            if cache.codec.type != "topk_ghost" and not isinstance(objective.divergence, ForwardKL):
                raise ValueError(
                    f"{field}.divergence.type={objective.divergence.type} cannot be used with "
                    f"teacher.cache.codec.type={cache.codec.type}, which serves forward_kl only; use topk_ghost"
                )
            if objective.temperature != cache.temperature:
                raise ValueError(
                    f"{field}.temperature={objective.temperature} differs from teacher.cache.temperature="
                    f"{cache.temperature}, at which the targets are captured; make them equal"
                )
        return self

    @model_validator(mode="after")
    def _a_server_can_give_it(self) -> Recipe:
        """A server shows its likeliest tokens at temperature 1, of its own vocabulary; its weights are elsewhere."""
        teacher = self.teacher
        if teacher is None:
            return self
        if (teacher.source == "server") != (teacher.server is not None):
            raise ValueError("teacher.source=server and teacher.server belong together; give both or neither")
        if teacher.source != "server":
            return self
        for i, stage in enumerate(self.stages):
            if isinstance(stage.objective, DistillationObjective) and teacher.cache is None:
                raise ValueError(
                    f"stages.{i}.objective.type={stage.objective.type} reads what a server said from a cache; add "
                    "`teacher.cache: {dir: ..., codec: {type: topk_ghost, k: 20}}`, and fill it with `stillhouse capture`"
                )
            if isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"stages.{i}.mixture.type={stage.mixture.type} measures the teacher while it trains, which needs its "
                    "weights here; use another mixture, or teacher.source live or cache"
                )
        if teacher.cache is not None and teacher.cache.codec.type != "topk_ghost":
            raise ValueError(
                f"teacher.cache.codec.type={teacher.cache.codec.type}: a server gives only its likeliest tokens; use "
                "`codec: {type: topk_ghost, k: 20}`, with k up to the server's --max-logprobs (20 is vLLM's default; "
                "raise it for more)"
            )
        if teacher.cache is not None and teacher.cache.temperature != 1.0:
            raise ValueError(
                f"teacher.cache.temperature={teacher.cache.temperature}: a server gives its log-probabilities at "
                "temperature 1 alone; set it and the objective's temperature to 1, or use teacher.source=cache with the "
                "weights here"
            )
        if isinstance(self.student, PrunedStudent) and (
            self.student.source is None or self.student.vocabulary is not None
        ):
            raise ValueError(
                "student.type=pruned: the weights of a served teacher are not here to be pruned, and it answers for its "
                "own vocabulary; name student.source, without student.vocabulary"
            )
        return self

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"stages.{i}.name={name}: an earlier stage has this name; give each its own")
        if self.stages[0].optimizer == "continued":
            raise ValueError("stages.0.optimizer=continued: there is no stage before the first; use fresh")
        return self

    @model_validator(mode="after")
    def _someone_answers(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            objective = stage.objective
            if isinstance(objective, GKDObjective) and objective.weights[1] == 0:
                raise ValueError(
                    f"stages.{i}.objective.mixing: gkd with a divergence of weight 0 learns nothing; raise the weight"
                )
            if isinstance(objective, SequenceKDObjective) and self.teacher and self.teacher.placement == "sharded":
                raise ValueError(
                    f"stages.{i}.objective.type=sequence_kd: each process has the teacher write its own share of the "
                    "answers, so teacher.placement=sharded cannot be used; use whole or offload"
                )
        return self

    @model_validator(mode="after")
    def _other_tokens_need_the_teacher_itself(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            if not isinstance(stage.objective, CrossTokenizerObjective) or self.teacher is None:
                continue
            field = f"stages.{i}.objective.type=cross_tokenizer"
            if self.teacher.source != "live":
                raise ValueError(
                    f"{field}: cached and served targets name the student's own tokens; use teacher.source=live, "
                    f"not {self.teacher.source}"
                )
            if isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"stages.{i}.mixture.type={stage.mixture.type} compares NLL per token, which another tokenizer's is "
                    "not; use another mixture"
                )
            if isinstance(self.student, PrunedStudent) and self.student.vocabulary is not None:
                raise ValueError(
                    f"{field}: student.vocabulary keeps the tokens of a source that the teacher does not share; leave the "
                    "vocabulary whole"
                )
        return self

    @model_validator(mode="after")
    def _offload_needs_fsdp(self) -> Recipe:
        if self.parallel.cpu_offload and self.parallel.strategy != "fsdp":
            raise ValueError("parallel.cpu_offload=true needs parallel.strategy=fsdp")
        return self
