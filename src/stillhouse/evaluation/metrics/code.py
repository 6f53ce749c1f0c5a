"""Pass@1 of generated Python on its row's tests, run only where the caller allows it."""

from __future__ import annotations

import re

from stillhouse.data.checkable import CodeTest
from stillhouse.evaluation.metrics.sandbox import RunOutcome, Sandbox

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


def extract_code(answer: str) -> str:
    """Return the first fenced block (to the end where the fence stays open), or the whole answer."""
    fenced = _FENCED.search(answer)
    return fenced.group(1) if fenced else answer


def program_of(answer: str, test: CodeTest) -> str:
    """Return setup, the answer's code and the tests as one program.

    Where the model was to complete a function and wrote the whole of it, only what stands before
    the function in the prompt (its imports) is kept; otherwise the code continues the prompt.
    """
    code = extract_code(answer)
    beginning = test.prompt
    if test.entry_point is not None:
        definition = rf"^(?:async\s+)?def\s+{re.escape(test.entry_point)}\b"
        if re.search(definition, code, re.MULTILINE):
            # HumanEval's prompts end with the function that is asked for; helpers may stand before it.
            found = list(re.finditer(definition, beginning, re.MULTILINE))
            beginning = beginning[: found[-1].start()] if found else beginning
    return "\n".join(part for part in (test.setup, f"{beginning}{code}", test.test) if part) + "\n"


def run_tests(answer: str, test: CodeTest, sandbox: Sandbox) -> RunOutcome:
    """Whether the answer passes the tests within the sandbox's limits."""
    return sandbox.run(program_of(answer, test))
