"""Section `students`: held-out NLL of students trained on each codec, beside dense KD and SFT.

Every run is an ordinary `stillhouse` run of a recipe on the same rows from the same first weights; seeds
change the order of the data (and nothing of what the teacher said: the cache is shared, as its users share
it). Results are lines of a JSONL file, so a benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _codec_setup import Setup, describe

from stillhouse.models.load import load_tokenizer
from stillhouse.models.save import save_model
from stillhouse.recipe import ModelConfig, Recipe
from stillhouse.targets.codec import Codec
from stillhouse.targets.maintenance import info
from stillhouse.training.cached import capture_recipe
from stillhouse.training.run import train

SFT, DENSE = "sft", "dense"
SETTINGS = ("teacher", "student", "layers", "data", "train_rows", "eval_rows", "steps", "batch_tokens", "kd_weight")


def measure_students(
    setup: Setup, codecs: Sequence[Codec], arguments: argparse.Namespace, work: Path
) -> list[dict[str, Any]]:
    """Train what the results file lacks, and return one row an arm."""
    study = _Study(setup, arguments, work)
    arms: list[Codec | str] = [SFT, DENSE, *codecs]
    for seed in arguments.seeds:  # all arms of a seed together, so that a stopped benchmark can be compared
        for arm in arms:
            study.run(arm, seed)
    return [study.summary(_name(arm), arguments.seeds) for arm in arms]


def _name(arm: Codec | str) -> str:
    return arm if isinstance(arm, str) else describe(arm)


class _Study:
    def __init__(self, setup: Setup, arguments: argparse.Namespace, work: Path) -> None:
        self._arguments, self._work = arguments, work
        self._file = Path(arguments.results)
        key = json.dumps({name: getattr(arguments, name) for name in SETTINGS}, sort_keys=True, default=str)
        self._key = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        self._found = {(line["arm"], line["seed"]): line for line in _lines(self._file) if line["key"] == self._key}
        self._first = self._first_weights(setup)
        self._sources = [
            {split: _head(path.parent / f"{split}.jsonl", count, work / "rows" / path.parent.name)}
            for path in sorted(Path(arguments.data).glob("*/train.jsonl"))
            for split, count in (("train", arguments.train_rows), ("validation", arguments.eval_rows))
        ]

    def run(self, arm: Codec | str, seed: int) -> None:
        """Train one student, unless the results file has it."""
        name = _name(arm)
        if (name, seed) in self._found:
            return
        recipe = Recipe.model_validate(self._recipe(arm, seed))
        size = None
        if not isinstance(arm, str):
            capture_recipe(recipe, base_dir=self._work, announce=lambda _: None)
            size = info(self._work / "caches" / name)["bytes_per_target"]
        outcome = train(recipe, base_dir=self._work, overwrite=True)
        assert outcome.result is not None, "it was stopped"
        line = {
            "key": self._key,
            "arm": name,
            "seed": seed,
            "bytes_per_token": size,
            "before": outcome.result["headline"]["student_before"],
            "nll": outcome.result["headline"]["student_after"],
            "teacher": outcome.result["headline"]["teacher"],
            "tokens_per_second": outcome.result["training"]["tokens_per_second"],
        }
        shutil.rmtree(outcome.directory)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._found[name, seed] = line
        print(f"{name:26s} seed {seed}: held-out NLL {line['nll']:.4f} (before {line['before']:.4f})", flush=True)

    def summary(self, name: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Mean over seeds, and the mean of the paired ratios to dense KD."""
        lines = [self._found[name, seed] for seed in seeds]
        ratios = [line["nll"] / self._found[DENSE, line["seed"]]["nll"] - 1 for line in lines]
        row = {
            "arm": name,
            "bytes_per_token": lines[-1]["bytes_per_token"],
            "nll": [line["nll"] for line in lines],
            "mean_nll": statistics.fmean(line["nll"] for line in lines),
            "over_dense": statistics.fmean(ratios),
            "over_dense_sd": statistics.stdev(ratios) if len(ratios) > 1 else None,
        }
        print(f"{name:26s} NLL {row['mean_nll']:.4f}, {row['over_dense']:+.2%} of dense KD's over {len(lines)} seeds")
        return row

    def _first_weights(self, setup: Setup) -> str:
        """A folder with the student that every run starts from."""
        if self._arguments.student is not None:
            return str(Path(self._arguments.student).absolute())
        folder = self._work / "first"
        config = ModelConfig(path=self._arguments.teacher)
        save_model(setup.student, load_tokenizer(config, base_dir=Path.cwd()), folder)  # type: ignore[arg-type]
        return str(folder.absolute())

    def _recipe(self, arm: Codec | str, seed: int) -> dict[str, Any]:
        options = self._arguments
        name = _name(arm)
        teacher: dict[str, Any] | None = {"path": _absolute(options.teacher)}
        objective: dict[str, Any] = {"type": "kd", "mixing": {"type": "convex", "kd_weight": options.kd_weight}}
        if arm == SFT:
            teacher, objective = None, {"type": "sft"}
        elif not isinstance(arm, str):
            assert teacher is not None
            # What is kept beside the targets is no choice of a recipe's.
            codec = {key: value for key, value in arm.describe().items() if key not in ("statistics", "entropy")}
            teacher |= {"source": "cache", "cache": {"dir": f"caches/{name}", "codec": codec}}
        return {
            "seed": seed,
            "teacher": teacher,
            "student": {"path": self._first},
            "data": {
                "train": [{"path": s["train"]} for s in self._sources if "train" in s],
                "validation": [{"path": s["validation"]} for s in self._sources if "validation" in s],
                "validation_limit_per_domain": None,
                "max_seq_len": 512,
            },
            "stages": [
                {
                    "objective": objective,
                    "optimisation": {
                        "budget": {"steps": options.steps},
                        "learning_rate": 4e-4,
                        "batch_tokens": options.batch_tokens,
                        "micro_batch_tokens": options.micro_batch_tokens,
                        "head_chunk": options.chunk,
                    },
                }
            ],
            "evaluation": {"every_steps": options.steps, "metrics": [], "generation": {"rows": 0, "samples": 0}},
            "checkpoints": {"keep": 1},
            "output": {"dir": f"run-{name}-{seed}"},
        }


def _absolute(path: str) -> str:
    """Recipes of this section are read from another folder; hub names and packages stay as they are."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _head(path: Path, count: int, folder: Path) -> str:
    """Write the first rows of a file where the runs find them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = path.read_text(encoding="utf-8").splitlines()[:count]
    target = folder / path.name
    target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(target.absolute())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The results so far; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]
