"""What two tokenizers have in common, and a name for what one tokenizer does."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HASH_BYTES = 16


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hex digest of how text becomes ids: vocabulary, merges, normalizer, added tokens.

    Padding and truncation settings and the chat template are left out: they do not change what an
    id means, and the documents' ids already tell what the template did.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    text = json.dumps(state, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return V*, the number of real ids (the largest id plus one, added tokens included)."""
    return max(tokenizer.get_vocab().values()) + 1


def shared_vocabulary_size(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> int:
    """Return V* of two tokenizers whose token to id maps are identical (methods.md section 0).

    Embedding tables may be padded differently; ids beyond V* mean nothing and must be sliced off
    before a softmax. Raises ModelError naming the first id whose tokens differ.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (student, teacher))
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            raise ModelError(
                f"student and teacher have different vocabularies: id {index} is {_shown(ours, index)} for the "
                f"student and {_shown(theirs, index)} for the teacher ({len(ours)} and {len(theirs)} tokens); "
                "choose a student and a teacher of one family, or prune the student from the teacher"
            )
    return vocabulary_size(student)


def _shown(tokens: dict[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "no token"
