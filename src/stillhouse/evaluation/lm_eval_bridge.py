"""Run tasks of lm-evaluation-harness on our checkpoints, in this process.

The model is loaded as everywhere else here (folder, hub name, GGUF, package) and handed to the
harness, which writes its own prompts and computes its own scores. Tasks named ``local_*`` ship
with us and read rows from the user's own files, so nothing is downloaded for them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillhouse.errors import DataError, MissingDependencyError, ModelError, did_you_mean
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.placement import place_model
from stillhouse.recipe import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LOCAL_TASKS = Path(__file__).with_name("lm_eval_tasks")
LOCAL_PREFIX = "local_"
_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


@dataclass(frozen=True)
class HarnessRequest:
    """What to run. ``num_fewshot`` and ``max_new_tokens`` None: as the task says; ``limit`` None: all rows.

    ``data_dir`` holds the files of the ``local_*`` tasks, ``task_dir`` more task files of the
    user's own. ``execute_code`` allows tasks that run what the model wrote.
    """

    tasks: tuple[str, ...]
    data_dir: Path | None = None
    task_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    execute_code: bool = False


def run_harness(
    model: str, request: HarnessRequest, *, dtype: torch.dtype, device: torch.device, base_dir: Path
) -> dict[str, Any]:
    """Load a model as :func:`stillhouse.models.load.load_model` does, and run the tasks on it.

    Returns the harness's ``results``, ``groups``, ``versions``, ``n-shot``, ``n-samples`` and ``higher_is_better``.
    Raises as loading and :func:`evaluate_with_harness` do.
    """
    require_harness()
    config = ModelConfig(path=model)
    tokenizer = load_tokenizer(config, base_dir=base_dir)
    manager = _task_manager(request)
    loaded = place_model(load_model(config, dtype=dtype, base_dir=base_dir), "whole", device)
    return evaluate_with_harness(loaded, tokenizer, request, manager)


def evaluate_with_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, request: HarnessRequest, manager: Any = None
) -> dict[str, Any]:
    """Run the tasks on a model that is in its place already.

    Raises DataError for a task that is not known, whose rows cannot be read, or that runs generated
    code without leave; ModelError where the model's context is too short for a task's answers;
    MissingDependencyError without lm_eval.
    """
    require_harness()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = _task_manager(request) if manager is None else manager
    with _quiet(), _own_generators(), _room_for_answers():
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=request.batch_size),
            tasks=list(request.tasks),
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            apply_chat_template=request.chat_template,
            gen_kwargs=None if request.max_new_tokens is None else {"max_gen_toks": request.max_new_tokens},
            confirm_run_unsafe_code=request.execute_code,
            task_manager=tasks,
            log_samples=False,
            batch_size=request.batch_size,
        )
    assert found is not None, "one process, so this is rank 0"
    return {name: found[name] for name in _KEPT if name in found}


def require_harness() -> None:
    """Raise MissingDependencyError where lm_eval is not installed."""
    try:
        import lm_eval  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "tasks of lm-evaluation-harness need lm_eval; run `pip install 'stillhouse[lm-eval]'`"
        ) from error


def local_tasks() -> list[str]:
    """Return the names of the tasks that read the user's own files."""
    return sorted(path.stem for path in LOCAL_TASKS.glob(f"{LOCAL_PREFIX}*.yaml"))


def _task_manager(request: HarnessRequest) -> Any:
    """Index the tasks and refuse what cannot run, before a model is loaded."""
    from lm_eval.tasks import TaskManager

    for name, folder in (("--data-dir", request.data_dir), ("--task-dir", request.task_dir)):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{name}: {folder} is no folder")
    folders = [LOCAL_TASKS, *([] if request.task_dir is None else [request.task_dir])]
    metadata = {} if request.data_dir is None else {"data_dir": str(request.data_dir)}
    # The harness's own tasks are ten thousand files, which take seconds to index.
    ours_alone = request.task_dir is None and all(task.startswith(LOCAL_PREFIX) for task in request.tasks)
    with _quiet():
        manager = TaskManager(include_path=folders, include_defaults=not ours_alone, metadata=metadata)
    _refuse_unknown(request.tasks, manager.all_tasks)
    if request.data_dir is None and any(task.startswith(LOCAL_PREFIX) for task in request.tasks):
        raise DataError("tasks named local_* read rows from your own files; say where they are with --data-dir")
    if not request.execute_code:
        _refuse_code(request.tasks, manager)
    return manager


def _refuse_unknown(tasks: Sequence[str], known: Sequence[str]) -> None:
    if not tasks:
        raise DataError(f"--tasks names no task; for example {', '.join(local_tasks()[:3])}")
    for task in tasks:
        if task not in known:
            raise DataError(
                f"--tasks: {task!r} is not known to lm_eval and is not among {', '.join(local_tasks())}."
                f"{did_you_mean(task, known)}"
            )


def _refuse_code(tasks: Sequence[str], manager: Any) -> None:
    """The harness would refuse as well, but after the model is loaded and with a message of its own."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for task in tasks:
        path = manager.task_index[task].yaml_path
        if path is not None and load_yaml(path, resolve_func=False).get("unsafe_code"):
            raise DataError(f"--tasks: {task} runs what the model wrote; add --execute-code to allow it")


@contextmanager
def _room_for_answers() -> Iterator[None]:
    """The harness asserts that an answer fits the context, where a person needs an error."""
    try:
        yield
    except AssertionError as error:
        if "max tokens to generate" not in str(error):
            raise
        raise ModelError(f"{error} Ask for shorter answers with --max-new-tokens") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's notices on its own settings away from people; its errors still come through."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _own_generators() -> Iterator[None]:
    """Give the global generators their state back: the harness seeds and draws from all of them."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - what the harness uses
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
