import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.decoders import ByteFallback, Fuse, Metaspace, Sequence, Strip
from tokenizers.models import BPE

from goodspeed_agent.text import Detokenizer, StopFinder, TextStream
from goodspeed_agent.tokenizer import TargetTokenizer
from tests.fake_server import byte_tokenizer

TOKENIZER = TargetTokenizer(byte_tokenizer())


def sentencepiece() -> HubTokenizer:
    """Words that carry their leading space, and single bytes for everything else."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581hello", "\u2581world", "s"]
    tokenizer = HubTokenizer(
        BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = Sequence([ByteFallback(), Metaspace(), Fuse(), Strip(" ", 0, 0)])
    return tokenizer


def pieces(tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER.decode)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@given(st.text(max_size=60))
def test_the_pieces_make_up_the_text_and_none_splits_a_character(text: str) -> None:
    written = pieces(TOKENIZER.encode(text))
    assert "".join(written) == text
    for piece in written:
        assert "\ufffd" not in piece or "\ufffd" in text


@given(st.lists(st.integers(0, 255), max_size=200))
def test_any_bytes_at_all_come_out_as_the_whole_decodes(tokens: list[int]) -> None:
    assert "".join(pieces(tokens)) == TOKENIZER.decode(tokens)


@given(st.text(max_size=20), st.integers(0, 200))
def test_invalid_bytes_without_end_neither_block_nor_change_what_follows(text: str, size: int) -> None:
    (continuation,) = {token for token in range(256) if TOKENIZER._tokenizer.id_to_token(token) == "Ģ"}
    tokens = [continuation] * size + TOKENIZER.encode(text)
    assert "".join(pieces(tokens)) == "\ufffd" * size + text


def test_a_character_of_four_bytes_comes_with_its_last_byte() -> None:
    assert pieces(TOKENIZER.encode("a😀b")) == ["a", "", "", "", "😀", "b", ""]


def test_an_incomplete_character_at_the_end_shows_as_one() -> None:
    assert "".join(pieces(TOKENIZER.encode("a😀")[:-1])) == "a\ufffd"


def test_special_tokens_leave_no_trace() -> None:
    assert pieces([*TOKENIZER.encode("ab"), 256]) == ["a", "b", "", ""]


def test_leading_spaces_between_words_are_kept() -> None:
    tokenizer = sentencepiece()
    hello, world, s = 257, 258, 259
    tokens = [hello, world, s, *(1 + byte for byte in "é你好".encode()), world]
    detokenizer = Detokenizer(lambda ids: tokenizer.decode(list(ids)))
    written = [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]
    assert "".join(written) == tokenizer.decode(tokens) == "hello worldsé你好 world"
    assert "\ufffd" not in "".join(written)


def test_the_first_word_keeps_the_space_between_itself_and_the_prompt() -> None:
    tokenizer = sentencepiece()
    detokenizer = Detokenizer(lambda ids: tokenizer.decode(list(ids)), prompt=[258] * 10 + [257])
    assert [detokenizer.push(258), detokenizer.push(259), detokenizer.finish()] == [" world", "s", ""]


@given(st.text(max_size=10), st.text(max_size=10))
def test_a_prompt_changes_nothing_where_a_token_is_its_bytes(prompt: str, text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER.decode, TOKENIZER.encode(prompt))
    written = [*(detokenizer.push(token) for token in TOKENIZER.encode(text)), detokenizer.finish()]
    assert "".join(written) == text


def test_the_work_for_a_long_text_is_linear() -> None:
    decoded = 0

    def decode(tokens: object) -> str:
        nonlocal decoded
        decoded += len(tokens)  # type: ignore[arg-type]
        return TOKENIZER.decode(tokens)  # type: ignore[arg-type]

    for text in ("x" * 4000, "你好" * 700):
        tokens = TOKENIZER.encode(text)
        detokenizer = Detokenizer(decode)
        for token in tokens:
            detokenizer.push(token)
        assert decoded <= 12 * len(tokens)
        decoded = 0
    detokenizer = Detokenizer(decode)
    for token in [TOKENIZER.encode("é")[-1]] * 4000:
        detokenizer.push(token)
    assert decoded <= 40 * 4000


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
@example("abb", ["abb", "b"], [])
@example("abb", ["abb", "b"], [2])
def test_stop_strings_are_found_wherever_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    finder = StopFinder(stops)
    written = ""
    for start, end in itertools.pairwise(bounds):
        if finder.found is None:
            written += finder.push(text[start:end])
    if finder.found is None:
        written += finder.finish()
    # The one that is complete first, or the longest of those that are complete at once.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert (finder.found is None) == (not ends)
    assert written == (text[: min(ends)[1]] if ends else text)


def test_only_what_could_begin_a_stop_string_is_held_back() -> None:
    finder = StopFinder(["END"])
    assert [finder.push(piece) for piece in ("abcE", "N", "x", "EN", "DEN", "after")][:4] == ["abc", "", "ENx", ""]
    assert finder.found == "END"


@pytest.mark.parametrize("stop", ["。\n", "é", "lo w"])
def test_a_stop_string_cuts_the_text_before_and_the_tokens_behind_itself(stop: str) -> None:
    text = f"hello{stop}world"
    tokens = TOKENIZER.encode(text)
    stream = TextStream(TOKENIZER.decode, [stop])
    written = ""
    for token in tokens:
        written += stream.push(token)
        if stream.stopped:
            break
    written += stream.finish()
    assert stream.stopped
    assert written == text[: text.index(stop)]
    assert TOKENIZER.decode(stream.tokens).endswith(stop)
    assert stream.tokens == tokens[: len(TOKENIZER.encode(text[: text.index(stop) + len(stop)]))]


def test_an_unfinished_stop_string_is_written_at_the_end() -> None:
    stream = TextStream(TOKENIZER.decode, ["END"])
    written = "".join(stream.push(token) for token in TOKENIZER.encode("the EN"))
    assert written == "the "
    assert stream.finish() == "EN"
    assert not stream.stopped


def test_a_stop_string_completed_by_the_last_held_character_stops() -> None:
    stream = TextStream(TOKENIZER.decode, ["\ufffd"])
    for token in TOKENIZER.encode("aé")[:-1]:
        stream.push(token)
    assert not stream.stopped
    assert stream.finish() == ""
    assert stream.stopped
