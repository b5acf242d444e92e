"""A plain install has no torch: what it can do then, with the import of torch and its kin barred."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from goodspeed import catalog
from tests.gguf_files import require_llama_cpp, write_bundled
from tests.system.processes import complete, server

PROMPT = "def read_json(path):\n"
_BARRED = (
    "import sys; sys.modules.update(dict.fromkeys(("
    "'torch', 'transformers', 'safetensors', 'accelerate', 'psutil', 'prompt_toolkit')));"
)
"""The last is there, but only for who chats or draws the monitor; others do not wait for it."""


async def run_without_torch(module: str, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{_BARRED} from {module}.__main__ import app; app()", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), complaints.decode()


async def test_an_agent_writes_the_targets_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOODSPEED_CACHE", str(tmp_path))
    async with server("--dtype", "float32") as address:
        options = ("--prompt", PROMPT, "--max-new-tokens", "40")
        expected = await complete(address, "--draft", "none", *options)
        for drafter in ((), ("--draft", "suffix")):
            code, output, complaints = await run_without_torch(
                "goodspeed_agent", "complete", "--server", address, "--json", *drafter, *options
            )
            assert code == 0, complaints
            assert json.loads(output)["tokens"] == expected["tokens"]


async def test_an_agent_drafts_with_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_llama_cpp()
    draft = write_bundled(tmp_path / "draft.gguf", catalog.DEFAULT_DRAFT)
    monkeypatch.setenv("GOODSPEED_CACHE", str(tmp_path))
    async with server("--dtype", "float32", "--scheduler", "goodspeed") as address:
        options = ("--prompt", PROMPT, "--max-new-tokens", "40", "--temperature", "0.7")
        expected = await complete(address, "--draft", "none", *options)
        code, output, complaints = await run_without_torch(
            "goodspeed_agent", "complete", "--server", address, "--json", "--draft", str(draft), *options
        )
    assert (code, complaints) == (0, "")
    written = json.loads(output)
    assert written["tokens"] == expected["tokens"]
    assert written["speculative"]["num_accepted_tokens"] > 0


async def test_a_draft_model_is_refused_with_what_to_install() -> None:
    code, _, complaints = await run_without_torch(
        "goodspeed_agent", "complete", "--server", "ws://127.0.0.1:9", "--prompt", "x", "--draft", "pico-draft-s"
    )
    assert code != 0
    assert "pip install '.[models]'" in complaints


async def test_what_is_bundled_can_be_listed() -> None:
    code, output, _ = await run_without_torch("goodspeed", "models", "--json")
    assert code == 0
    listed = json.loads(output)
    assert [model["role"] for model in listed].count("target") == 1
    assert set(listed[0]) >= {"name", "role", "path", "parameters", "bytes", "acceptance", "acceptance_coupled"}
    drafts = [model for model in listed if model["role"] == "draft"]
    for rule in ("acceptance", "acceptance_coupled"):
        assert all(set(model[rule]) == {"0", "0.7", "1"} for model in drafts)


@pytest.mark.parametrize("options", [("--help",), ("run", "--help"), ("top", "--help")])
async def test_the_servers_help_needs_no_torch(options: tuple[str, ...]) -> None:
    code, output, complaints = await run_without_torch("goodspeed_server", *options)
    assert code == 0, complaints
    assert "Usage" in output


async def test_a_server_says_what_it_lacks() -> None:
    code, _, complaints = await run_without_torch("goodspeed_server", "run", "--port", "0")
    assert code != 0
    assert "pip install '.[models]'" in complaints
    assert "Traceback" not in complaints
