"""Tasks of lm-evaluation-harness on a tiny model, from local files, against log-likelihoods computed here."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.errors import DataError, MissingDependencyError, ModelError
from stillhouse.evaluation.lm_eval_bridge import (
    LOCAL_TASKS,
    HarnessRequest,
    evaluate_with_harness,
    local_tasks,
    run_harness,
)
from stillhouse.evaluation.lm_eval_tasks import rows as task_rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

QUESTIONS = [("What is hot?", ["ice", "fire", "snow"], "B"), ("What is cold?", ["snow", "lava"], "A")] + [
    (f"Spell {word}.", ["-".join(word), word, word[::-1]], "A") for word in ("cat", "tree", "house", "river")
]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    def write(name: str, records: list[dict[str, Any]]) -> None:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def turns(prompt: str, gold: str | None = None) -> list[dict[str, str]]:
        asked = [{"role": "user", "content": prompt}]
        return asked if gold is None else [*asked, {"role": "assistant", "content": gold}]

    listed = [
        (q + "".join(f"\n{letter}. {c}" for letter, c in zip("ABC", choices, strict=False)), choices, answer)
        for q, choices, answer in QUESTIONS
    ]
    write(
        "arc_easy",
        [
            {"messages": turns(q + "\nAnswer with the letter of the correct choice.", a), "choices": c, "answer": a}
            for q, c, a in listed
        ],
    )
    write("gsm8k", [{"messages": turns("1 + 1?", "It is 2.\n#### 2"), "answer": "2"}])
    instruction = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write("ifeval", [{"messages": turns("No commas."), **instruction}])
    write("mbpp", [{"messages": turns("Write f.", "f = 1"), "test_list": ["assert f"], "test_setup_code": ""}])
    return tmp_path


def run(model: Path, request: HarnessRequest) -> dict[str, Any]:
    return run_harness(str(model), request, dtype=torch.float32, device=torch.device("cpu"), base_dir=Path.cwd())


def log_prob(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> float:
    before, whole = (tokenizer(text)["input_ids"] for text in (context, context + continuation))
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probs[t - 1, whole[t]]) for t in range(len(before), len(whole)))


def test_multiple_choice_agrees_with_a_plain_computation(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, data_dir: Path
) -> None:
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    found = evaluate_with_harness(
        tiny_model, tiny_tokenizer, HarnessRequest(("local_arc_easy",), data_dir=data_dir, batch_size=2)
    )
    right = right_by_length = 0
    for question, choices, answer in QUESTIONS:
        scores = [log_prob(tiny_model, tiny_tokenizer, f"Question: {question}\nAnswer:", f" {c}") for c in choices]
        gold = "ABC".index(answer)
        right += int(np.argmax(scores)) == gold
        right_by_length += int(np.argmax([s / len(c) for s, c in zip(scores, choices, strict=True)])) == gold
    numbers = found["results"]["local_arc_easy"]
    assert numbers["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert numbers["acc_norm,none"] == pytest.approx(right_by_length / len(QUESTIONS))
    assert found["n-samples"]["local_arc_easy"]["effective"] == len(QUESTIONS)
    assert "data_dir" not in json.dumps(found)
    assert random.getstate() == state[0]
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[2])


def test_generated_tasks_use_our_checkers(tiny_model_dir: Path, data_dir: Path) -> None:
    request = HarnessRequest(
        ("local_gsm8k", "local_ifeval", "local_mbpp"), data_dir=data_dir, max_new_tokens=4, execute_code=True
    )
    found = run(tiny_model_dir, request)["results"]
    assert {k for k in found["local_gsm8k"] if k.startswith("exact_match,")} == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }
    assert found["local_ifeval"]["ifeval_prompt_strict,none"] in (0, 1)
    assert found["local_mbpp"]["pass_at_1,none"] == 0
    with pytest.raises(ModelError, match=r"maximum sequence length \(512\). Ask for shorter answers"):
        run(tiny_model_dir, replace(request, tasks=("local_ifeval",), max_new_tokens=600))


def test_documents_and_checkers(data_dir: Path) -> None:
    dataset = task_rows.load(data_dir=str(data_dir), file="arc_easy", version=1)["test"]
    assert dataset[0]["question"] == "What is hot?"
    assert dataset[0]["target"] == 1
    assert dataset[1]["choices"] == ["snow", "lava"]
    both = task_rows.load(data_dir=str(data_dir), file="arc_easy", fewshot_file="gsm8k")
    assert both["dev"][0]["answer"] == "2"
    (asked,) = task_rows.load(data_dir=str(data_dir), file="ifeval")["test"]
    assert task_rows.follow_instructions(asked, ["fine"])["ifeval_prompt_strict"] == (1.0, 1.0)
    assert task_rows.follow_instructions(asked, ["a, b"])["ifeval_instruction_loose"] == (0, 1)
    (tested,) = task_rows.load(data_dir=str(data_dir), file="mbpp")["test"]
    assert task_rows.pass_tests(tested, ["f = True"]) == {"pass_at_1": 1.0}
    assert task_rows.pass_tests(tested, ["f = False"]) == {"pass_at_1": 0.0}
    assert task_rows.ratio([(1, 2), (2, 2)]) == 0.75
    with pytest.raises(DataError, match="say where they are with --data-dir"):
        task_rows.load(file="arc_easy")
    with pytest.raises(DataError, match="carries no tests for code"):
        task_rows.pass_tests(asked, ["x"])


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ((), {}, "names no task; for example local_"),
        (("local_gsm",), {}, r"'local_gsm' is not known .* Did you mean 'local_gsm8k'"),
        (("local_gsm8k",), {"data_dir": None}, "tasks named local_\\* read rows from your own files"),
        (("local_mbpp",), {}, "local_mbpp runs what the model wrote; add --execute-code"),
        (("local_gsm8k",), {"data_dir": Path("no/such")}, "--data-dir: no/such is no folder"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    tasks: tuple[str, ...], options: dict[str, Any], message: str, data_dir: Path, tiny_model_dir: Path
) -> None:
    request = HarnessRequest(tasks, **{"data_dir": data_dir, **options})
    with pytest.raises(DataError, match=message):
        run_harness(str(tiny_model_dir), request, dtype=torch.float32, device=torch.device("cpu"), base_dir=Path.cwd())


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stillhouse\[lm-eval\]'"):
        run(Path("x"), HarnessRequest(("gsm8k",)))


def test_every_shipped_task_reads_its_real_file(shared_data: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    for name in local_tasks():
        config = load_yaml(LOCAL_TASKS / f"{name}.yaml", resolve_func=False)
        dataset = task_rows.load(data_dir=str(shared_data / "eval"), **config["dataset_kwargs"])["test"]
        document = dataset[0]
        assert document["prompt"], name
        if config["output_type"] == "multiple_choice":
            assert not any(document["question"].endswith(choice) for choice in document["choices"]), name
            assert "Answer with" not in document["question"], name
            assert 0 <= document["target"] < len(document["choices"]), name


@pytest.mark.slow
def test_the_harness_s_own_command_gives_the_same_numbers(tiny_model_dir: Path, data_dir: Path) -> None:
    ours = run(tiny_model_dir, HarnessRequest(("local_arc_easy",), data_dir=data_dir))["results"]["local_arc_easy"]
    output = data_dir / "out"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "local_arc_easy", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tiny_model_dir},dtype=float32", "--include_path", str(LOCAL_TASKS)]
    command += ["--metadata", json.dumps({"data_dir": str(data_dir)}), "--output_path", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = output.rglob("results_*.json")
    theirs = json.loads(written.read_text())["results"]["local_arc_easy"]
    for name in ("acc,none", "acc_norm,none", "acc_stderr,none"):
        assert ours[name] == theirs[name]
