"""A recipe's synthesis: its seeds, what they must not give away, and the models it names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.data.dataset import HELD_OUT_SEED, drop_leaked, split_validation
from stillhouse.data.prepare import read_template
from stillhouse.data.rows import Row
from stillhouse.data.sources import load_rows
from stillhouse.errors import ModelError, RecipeError
from stillhouse.recipe import Recipe, SynthesisConfig, TeacherConfig
from stillhouse.run_directory import write_text_atomic
from stillhouse.synthesis.formats import Predicate, Verifier
from stillhouse.synthesis.leakage import guard_seeds
from stillhouse.synthesis.prompting import make_input_writer_rows
from stillhouse.synthesis.run import SERVED_ANSWERS, SynthesisModels, SynthesisOutcome, SynthesisProgress, synthesize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.rollout.generator import Generator
    from stillhouse.synthesis.scoring import AnswerScorer

Progress = Callable[[SynthesisProgress], None]


def synthesize_recipe(
    recipe: Recipe,
    *,
    base_dir: Path,
    predicate: Predicate | None = None,
    input_predicate: Predicate | None = None,
    verifier: Verifier | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SynthesisOutcome:
    """Run or go on with a recipe's synthesis: the work of ``stillhouse synthesize``, and functions that it cannot name.

    ``predicate`` and ``input_predicate`` serve ``type: predicate`` formats, and ``verifier`` judges
    whether an answer is right, as in :func:`stillhouse.synthesis.run.synthesize`.

    Raises as :func:`stillhouse.synthesis.run.synthesize` and as loading data and models do.
    """
    config = synthesis_config(recipe)
    seeds, evaluation = seeds_and_evaluation(recipe, base_dir)
    guard_seeds(seeds, evaluation, config)  # before a model is loaded
    directory = base_dir / Path(config.dir).expanduser()
    with ExitStack() as stack:
        return synthesize(
            config,
            seeds,
            load_models(recipe, base_dir, directory, stack),
            directory=directory,
            seed=recipe.seed,
            evaluation=evaluation,
            base_dir=base_dir,
            predicate=predicate,
            input_predicate=input_predicate,
            verifier=verifier,
            overwrite=overwrite,
            progress=progress,
        )


def write_writer_rows(recipe: Recipe, path: Path, *, rows_per_seed: int, base_dir: Path) -> int:
    """Write the rows that teach a model to write inputs (SFT on them), and return how many there are."""
    config = synthesis_config(recipe)
    seeds, evaluation = seeds_and_evaluation(recipe, base_dir)
    shown = config.human_examples + config.synthetic_examples
    # One seed is the answer, so a domain needs one more than a prompt shows.
    guarded = guard_seeds(seeds, evaluation, config.model_copy(update={"human_examples": shown + 1}))
    rows = make_input_writer_rows(
        list(guarded.domains.values()),
        description=config.description,
        num_examples=shown,
        rows_per_seed=rows_per_seed,
        seed=recipe.seed,
    )
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def synthesis_config(recipe: Recipe) -> SynthesisConfig:
    """Return the recipe's synthesis; RecipeError where it has none."""
    if recipe.synthesis is None:
        raise RecipeError(
            "synthesis: the recipe has no such section; add `synthesis: {dir: ..., ratio: 3, format: {...}}`"
            " (docs/how-to/low-resource.md)"
        )
    return recipe.synthesis


def seeds_and_evaluation(recipe: Recipe, base_dir: Path) -> tuple[list[Row], list[Row]]:
    """Return the seeds, and every row that training will hold out: no held-out row is a seed by default.

    Where the recipe splits its validation rows off the training rows, they are split off here as
    they will be then.
    """
    config, data = synthesis_config(recipe), recipe.data
    test = load_rows(recipe.evaluation.test, seed=HELD_OUT_SEED, base_dir=base_dir)
    train = load_rows(data.train, seed=recipe.seed, base_dir=base_dir)
    if data.validation:
        validation = load_rows(data.validation, seed=HELD_OUT_SEED, base_dir=base_dir)
        human = train
    else:
        left, _ = drop_leaked(train, test)
        _, validation = split_validation(left, data.validation_fraction, data.validation_limit_per_domain)
        held_out = {id(row) for row in validation}
        human = [row for row in train if id(row) not in held_out]
    seeds = load_rows(config.seeds, seed=recipe.seed, base_dir=base_dir) if config.seeds else human
    more = load_rows(config.evaluation, seed=HELD_OUT_SEED, base_dir=base_dir)
    return seeds, [*validation, *test, *more]


# --- models -----------------------------------------------------------------------------------


def load_models(recipe: Recipe, base_dir: Path, directory: Path, stack: ExitStack) -> SynthesisModels:
    """Load or connect to who writes, labels and scores; equal ones once. ``stack`` closes connections."""
    config = synthesis_config(recipe)
    loader = _Loader(recipe, base_dir, directory, stack)
    inputs = loader.get(config.input_model, "synthesis.input_model", config.inputs.batch_tokens)
    labels = loader.get(config.label_model, "synthesis.label_model", config.labels.batch_tokens)
    scorer = loader.scorer(config.label_model)
    return SynthesisModels(inputs[0], labels[0], scorer, inputs[1], labels[1], *loader.special())


class _Loader:
    """Models by their configuration, so that a model with two roles is loaded once."""

    def __init__(self, recipe: Recipe, base_dir: Path, directory: Path, stack: ExitStack) -> None:
        import torch

        self._recipe, self._base, self._directory, self._stack = recipe, base_dir, directory, stack
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._template = read_template(recipe.data.chat_template, base_dir)
        self._loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerFast]] = {}
        self._remote: dict[str, TeacherConfig] = {}
        self._generators: dict[tuple[str, int], tuple[Generator, int | None]] = {}

    def get(self, config: TeacherConfig | None, field: str, batch_tokens: int) -> tuple[Generator, int | None]:
        """Return a generator and the number of its parameters, None for a served one."""
        chosen, field = self._chosen(config, field)
        if chosen.source == "server":
            self._remote[field] = chosen
            return self._served(chosen, field), None
        key = (chosen.model_dump_json(), batch_tokens)
        if key not in self._generators:
            from stillhouse.rollout.generator import ModelGenerator

            model, tokenizer = self._load(chosen, field)
            generator = ModelGenerator(model, tokenizer, template=self._template, batch_tokens=batch_tokens)
            self._generators[key] = generator, int(model.num_parameters())
        return self._generators[key]

    def scorer(self, config: TeacherConfig | None) -> AnswerScorer | None:
        """Return the labeller as a scorer of its answers; a served one gives no log-probabilities of texts."""
        chosen, field = self._chosen(config, "synthesis.label_model")
        if chosen.source == "server":
            return None
        from stillhouse.synthesis.scoring import ModelScorer

        return ModelScorer(*self._load(chosen, field), template=self._template)

    def special(self) -> tuple[tuple[re.Pattern[str], ...], tuple[str, ...]]:
        """Return what finds the models' special tokens, and notes on served models whose tokenizer is not here."""
        from stillhouse.data.masking import special_token_pattern
        from stillhouse.models.load import load_tokenizer

        tokenizers, notes = [tokenizer for _, tokenizer in self._loaded.values()], []
        for field, config in self._remote.items():
            try:
                tokenizers.append(load_tokenizer(config, base_dir=self._base))
            except ModelError:
                notes.append(
                    f"there is no tokenizer at {field}.path={config.path}, so text with special tokens of this served"
                    f" model was not dropped; name a folder with its tokenizer.json as {field}.path"
                )
        patterns = {special_token_pattern(tokenizer) for tokenizer in tokenizers}
        return tuple(sorted(patterns, key=lambda pattern: pattern.pattern)), tuple(notes)

    def _chosen(self, config: TeacherConfig | None, field: str) -> tuple[TeacherConfig, str]:
        if config is not None:
            return config, field
        assert self._recipe.teacher is not None, "the recipe's validation asks for one"
        return self._recipe.teacher, "teacher"

    def _load(self, config: TeacherConfig, field: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        key = config.model_dump_json()
        if key not in self._loaded:
            from stillhouse.models.load import load_model, load_tokenizer
            from stillhouse.models.placement import place_model
            from stillhouse.training.cached import teacher_dtype

            try:
                dtype: torch.dtype = teacher_dtype(self._recipe, config, self._device)
                model = load_model(config, dtype=dtype, base_dir=self._base)
                if config.quantization == "none":
                    place_model(model, config.placement, self._device)
                self._loaded[key] = model, load_tokenizer(config, base_dir=self._base)
            except ModelError as error:
                raise ModelError(str(error).replace("teacher.path", f"{field}.path")) from error
        return self._loaded[key]

    def _served(self, config: TeacherConfig, field: str) -> Generator:
        from stillhouse.teachers.server_client import ServerClient
        from stillhouse.teachers.server_generation import ServedGenerator

        assert config.server is not None, "the recipe's validation asks for it"
        client: Any = self._stack.enter_context(ServerClient(config.server, field=f"{field}.server"))
        # Answers of a batch that a kill cuts off were paid for: they are kept as they come.
        return ServedGenerator(client, journal=self._directory / f"{field.rpartition('.')[2]}{SERVED_ANSWERS}")
