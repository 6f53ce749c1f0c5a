"""TRL's off-policy GKD on the benchmark's batches, run by kd_step.py in TRL's own environment.

The whole of TRL's loop is timed as a user gets it, less what would only slow it down here:
no logging, no saving, no evaluation, and no activation checkpointing (which TRL turns on by default).
``bfloat16`` means weights, gradients and optimizer state in bfloat16.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from _measure import STUDENT_FOLDER, TEACHER_FOLDER, Job, StepClock, job_from_arguments, num_tokens, read_batches
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

IGNORED = -100


class _Clock(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.step_done()


def collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows of ``input_ids`` and ``labels`` to the longest: three int64 tensors [B, T]."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([value + [fill] * (width - len(value)) for value in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }


def measure(job: Job) -> dict[str, Any]:
    """Train over the stored batches in their order and return the clock's result."""
    batches = read_batches(job.work)
    dtype = getattr(torch, job.dtype)
    tokenizer = AutoTokenizer.from_pretrained(job.work / STUDENT_FOLDER)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(job.work / folder, dtype=dtype)
        for folder in (STUDENT_FOLDER, TEACHER_FOLDER)
    )
    config = GKDConfig(
        output_dir=str(job.work / "trl"),
        lmbda=0.0,
        beta=0.0,
        seq_kd=False,
        max_steps=len(batches),
        per_device_train_batch_size=len(batches[0]),
        train_sampling_strategy="sequential",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [
        {
            "input_ids": row.input_ids,
            "labels": [
                token if target else IGNORED for token, target in zip(row.input_ids, row.loss_mask, strict=True)
            ],
        }
        for batch in batches
        for row in batch
    ]
    clock = StepClock(job.warmup)
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=lambda chosen: collate(chosen, tokenizer.pad_token_id),
        callbacks=[_Clock(clock)],
    )
    mean_loss = trainer.train().training_loss
    return {**clock.result([num_tokens(batch) for batch in batches]), "mean_loss": mean_loss}


if __name__ == "__main__":
    parsed = job_from_arguments(sys.argv[1:])
    if parsed is None:
        raise SystemExit("run this through benchmarks/kd_step.py")
    print(json.dumps(measure(parsed)))
