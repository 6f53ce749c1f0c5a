"""An own small teacher and student: studies of many runs on two cores need a pair that trains in seconds.

Both have one byte-level BPE tokenizer, trained on the shared corpora and chat rows, and both are pre-trained on
the corpora (ordinary `stillhouse train` on text), the student for fewer tokens. Nothing is downloaded. The folders
`teacher/model` and `student/model` under --work are plain Hugging Face models. Finished parts are kept, so the
command can be stopped and run again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))
ENGLISH_DOMAINS = ("arxiv", "books", "code", "math", "stackexchange", "web", "wiki")
"""The Chinese corpus is left out: a vocabulary of 4,096 ids spells it byte by byte."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Shape:
    """A Llama of so many layers."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int


TEACHER = Shape(layers=6, hidden=256, heads=4, feed_forward=704)
STUDENT = Shape(layers=3, hidden=128, heads=4, feed_forward=352)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/small_pair"), help="folder of the pair")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the shared data")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--teacher-tokens", type=int, default=5_000_000)
    parser.add_argument("--student-tokens", type=int, default=2_000_000)
    parser.add_argument("--only", choices=("teacher", "student"), help="pre-train one of the two")
    options = parser.parse_args(arguments)
    if not (options.data / "corpora").is_dir():
        parser.error(f"--data {options.data}: no folder `corpora` there; give the shared data")
    return options


def texts(data: Path) -> Iterator[str]:
    """Training texts of the corpora, and every tenth chat row, for the tokenizer."""
    for domain in ENGLISH_DOMAINS:
        for line in (data / "corpora" / domain / "train.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["text"]
    for path in sorted((data / "chat").glob("*/train.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[::10]:
            yield "\n".join(message["content"] for message in json.loads(line)["messages"])


def write_base(work: Path, data: Path, vocabulary: int) -> None:
    """Train the tokenizer and write both random models, if they are not there."""
    if all((work / name / "config.json").exists() for name in ("teacher_base", "student_base")):
        return
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(data), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        chat_template=CHATML,
    )
    for seed, (name, shape) in enumerate((("teacher", TEACHER), ("student", STUDENT))):
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads // 2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        model.save_pretrained(work / f"{name}_base")
        tokenizer.save_pretrained(work / f"{name}_base")


def pretraining_recipe(options: argparse.Namespace, name: str, tokens: int) -> dict[str, Any]:
    """Continual pre-training on the corpora, from the random model, with early stopping on held-out documents."""
    sources = [{"path": str(options.data / "corpora" / d / "train.jsonl"), "domain": d} for d in ENGLISH_DOMAINS]
    held_out = [{"path": str(options.data / "corpora" / d / "validation.jsonl"), "domain": d} for d in ENGLISH_DOMAINS]
    return {
        "student": {"path": str(options.work / f"{name}_base")},
        "data": {
            "train": sources,
            "validation": held_out,
            "validation_limit_per_domain": 20,
            "max_seq_len": 512,
        },
        "stages": [
            {
                "objective": {"type": "sft"},
                "optimisation": {
                    "budget": {"tokens": tokens},
                    "learning_rate": 3e-3 if name == "student" else 2e-3,
                    "warmup_fraction": 0.02,
                    "weight_decay": 0.1,
                    "batch_tokens": 4096,
                    "micro_batch_tokens": 4096,
                },
            }
        ],
        "evaluation": {"early_stopping_patience": 3, "generation": {"rows": 0, "samples": 0}},
        "checkpoints": {"keep": 1},
        "output": {"dir": str(options.work / name), "license": "apache-2.0", "save_dtype": "float32"},
    }


def pretrain(options: argparse.Namespace, name: str, tokens: int) -> dict[str, Any]:
    """Pre-train one of the two, or read its finished result."""
    from rich.console import Console

    from stillhouse.recipe import Recipe
    from stillhouse.training.run import train

    finished = options.work / name / "result.json"
    if not finished.exists():
        recipe = Recipe.model_validate(pretraining_recipe(options, name, tokens))
        if train(recipe, console=Console()).interrupted:
            sys.exit(130)
    result: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    lines = [json.loads(x) for x in (options.work / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [line["ce"] for line in lines if line["event"] == "step"][-20:]
    validation = result["headline"]["student_after"]
    return {
        "parameters": result["parameters"]["student"],
        "tokens": result["training"]["tokens"],
        "seconds": result["training"]["seconds"],
        "train_nll": sum(ends) / len(ends),
        "validation_nll": validation,
        "domains": {d: v["nll"] for d, v in result["evaluation"]["student_after"]["domains"].items()},
    }


def main() -> None:
    """Write both models and print what they are."""
    options = parse(sys.argv[1:])
    started = time.monotonic()
    write_base(options.work, options.data, options.vocabulary)
    wanted = {"teacher": options.teacher_tokens, "student": options.student_tokens}
    report = {name: pretrain(options, name, n) for name, n in wanted.items() if options.only in (None, name)}
    print(json.dumps({"pair": report, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
