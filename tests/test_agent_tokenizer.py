from __future__ import annotations

import os
from pathlib import Path

import pytest
import tokenizers

from goodspeed.catalog import DEFAULT_TARGET, digest, tokenizer_files
from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed_agent.tokenizer import TargetTokenizer, TokenizerCache
from tests.fake_server import byte_tokenizer

FILES = byte_tokenizer()
DIGEST = digest(FILES)


def test_the_bytes_of_tokens_make_the_text() -> None:
    tokenizer = TargetTokenizer(tokenizer_files(DEFAULT_TARGET))
    text = "h\u00e9llo \U0001f389 \u65e5\u672c\n\tx = 1"
    tokens = tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(token) for token in tokens]
    assert b"".join(pieces).decode() == text
    assert any(not _is_text(piece) for piece in pieces)
    assert tokenizer.token_bytes(0) == b"<|endoftext|>"
    assert tokenizer.token_bytes(10**6) == b""


def test_a_sentencepiece_vocabulary_has_bytes_and_spaces_of_its_own() -> None:
    hub = tokenizers.Tokenizer(tokenizers.models.BPE({"\u2581the": 0, "<0xE9>": 1, "x": 2}, []))
    tokenizer = TargetTokenizer({"tokenizer.json": hub.to_str().encode(), "tokenizer_config.json": b"{}"})
    assert [tokenizer.token_bytes(token) for token in range(3)] == [b" the", b"\xe9", b"x"]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_what_was_stored_is_loaded(tmp_path: Path) -> None:
    assert TokenizerCache(tmp_path).load(DIGEST) is None
    TokenizerCache(tmp_path).store(DIGEST, FILES)
    assert TokenizerCache(tmp_path).load(DIGEST) == FILES


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOODSPEED_CACHE", str(tmp_path / "there"))
    TokenizerCache().store(DIGEST, FILES)
    assert [path.name for path in (tmp_path / "there" / "tokenizers").iterdir()] == [DIGEST]


def test_without_it_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOODSPEED_CACHE", raising=False)
    assert "goodspeed" in TokenizerCache().folder.parts


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path, damage: bytes | None) -> None:
    cache = TokenizerCache(tmp_path)
    cache.store(DIGEST, FILES)
    file = tmp_path / DIGEST
    flipped = file.read_bytes().replace(b'"type"', b'"tyPe"', 1)
    file.write_bytes(flipped if damage is None else damage)
    assert cache.load(DIGEST) is None
    cache.store(DIGEST, FILES)
    assert cache.load(DIGEST) == FILES


def test_half_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    TokenizerCache(tmp_path).store(DIGEST, FILES)
    assert TokenizerCache(tmp_path).load(DIGEST) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = TokenizerCache(tmp_path / "file")
    cache.store(DIGEST, FILES)
    assert cache.load(DIGEST) is None


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 32, "0" * 100])
def test_a_digest_that_is_none_never_touches_the_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError, match="digest"):
        TokenizerCache(tmp_path).load(name)
    with pytest.raises(ProtocolError, match="digest"):
        TokenizerCache(tmp_path).store(name, FILES)


def test_files_must_be_those_announced(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="does not match"):
        TokenizerCache(tmp_path).store("0" * 32, FILES)
    strange = FILES | {"../evil": b""}
    with pytest.raises(ProtocolError, match="evil"):
        TokenizerCache(tmp_path).store(digest(strange), strange)


def test_text_and_ids() -> None:
    tokenizer = TargetTokenizer(FILES)
    ids = tokenizer.encode("naïve 😀")
    assert len(ids) == len("naïve 😀".encode())
    assert tokenizer.decode([*ids, 256]) == "naïve 😀"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"},
        {**FILES, "tokenizer_config.json": b"\xff"},
    ],
)
def test_files_that_are_no_tokenizer(files: dict[str, bytes]) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        TargetTokenizer(files)


TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('system comes first') }}
    {%- endif %}
    {{- '<' + message.role + '>' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
{%- endif %}"""


def test_a_conversation_is_rendered_by_the_targets_template() -> None:
    tokenizer = TargetTokenizer(byte_tokenizer(TEMPLATE))
    messages = [{"role": "user", "content": "a < b"}]
    assert tokenizer.render_chat(messages) == "<user>a < b<|end|><assistant>"
    assert tokenizer.encode_chat(messages)[-len("<assistant>") - 1] == 256


def test_a_template_may_refuse() -> None:
    tokenizer = TargetTokenizer(byte_tokenizer(TEMPLATE))
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    with pytest.raises(InvalidRequest, match="system comes first"):
        tokenizer.render_chat(messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.at_all }}",
        "{% for %}",
        "{{ 'x' * 3 + 4 }}",
        "{% for i in range(100000000) %}{% endfor %}",
    ],
)
def test_a_template_that_does_harm_or_fails_is_an_error_with_a_sentence(template: str) -> None:
    tokenizer = TargetTokenizer(byte_tokenizer(template))
    with pytest.raises(InvalidRequest, match="chat template does not take"):
        tokenizer.render_chat([{"role": "user", "content": "a"}])


def test_json_in_a_template_is_not_escaped_for_html() -> None:
    tokenizer = TargetTokenizer(byte_tokenizer("{{ messages[0] | tojson }}{{ bos_token }}"))
    assert tokenizer.render_chat([{"role": "ü<"}]) == '{"role": "ü<"}'


def test_a_special_token_may_be_an_object() -> None:
    files = byte_tokenizer()
    files["tokenizer_config.json"] = b'{"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>"}}'
    assert TargetTokenizer(files).render_chat([]) == "<s>"


def test_without_a_template_a_conversation_is_refused() -> None:
    tokenizer = TargetTokenizer(FILES)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])
