"""Documents for the tiny models of this room."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from model_families import random_documents
from stillhouse.data.document import Document, DocumentSet, document_uid
from stillhouse.models.tokenizers import tokenizer_hash


@pytest.fixture
def documents() -> DocumentSet:
    """Random documents for the random families."""
    return random_documents(61)


@pytest.fixture
def text_documents(tiny_tokenizer: PreTrainedTokenizerFast) -> DocumentSet:
    """A few real texts of the tiny tokenizer."""
    texts = ["What is 3 plus 4?", "Greet Ada. Hello Ada, how are you?", "Spell 'cat'. c-a-t"]
    name = tokenizer_hash(tiny_tokenizer)
    documents = []
    for text in texts:
        ids = np.array(tiny_tokenizer.encode(text), np.int32)
        mask = np.arange(len(ids)) > 0
        documents.append(Document(ids, mask, 0, document_uid(ids, mask, name)))
    return DocumentSet.build(documents, range(len(texts)), ("all",), name)
