"""The tokenizer that all bundled models share, and the corpus as arrays of its tokens."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bench.recipe.corpus import DOMAINS, SPLITS, Document, Domain, Split

VOCAB_SIZE = 2048
END_OF_TEXT, USER, ASSISTANT, END = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Tokens = npt.NDArray[np.uint16]


def train(documents: Iterable[Document]) -> Tokenizer:
    """Trains a byte-level BPE on the documents' texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def for_transformers(tokenizer: Tokenizer, context_length: int) -> PreTrainedTokenizerFast:
    """Wraps the tokenizer with its special tokens and the chat template."""
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[USER, ASSISTANT, END],
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode_corpus(tokenizer: Tokenizer, sides: dict[Split, list[Document]], folder: Path) -> None:
    """Writes `{split}-{domain}.npy`: the documents of a domain in order, each ended by `<|endoftext|>`."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    for side in SPLITS:
        for domain in DOMAINS:
            texts = [document.text for document in sides[side] if document.domain == domain]
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            pieces = [np.asarray([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]
            np.save(folder / f"{side}-{domain}.npy", np.concatenate(pieces))


def load_tokens(folder: Path, side: Split) -> dict[Domain, Tokens]:
    """Reads one side's token arrays, uint16 [tokens] a domain."""
    return {domain: np.load(folder / f"{side}-{domain}.npy") for domain in DOMAINS}
