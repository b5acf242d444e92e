"""The corpus: the running interpreter's standard library, in three domains, split by file.

Every text that comes from one file (its code, its docstrings) stays on one side of the split, and so do files
that share many lines with one another; a held-out loss therefore measures unseen files.
"""

import ast
import hashlib
import inspect
import json
import random
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Domain = Literal["code", "prose", "tests"]
Split = Literal["train", "held_out"]

DOMAINS: tuple[Domain, ...] = ("code", "prose", "tests")
SPLITS: tuple[Split, ...] = ("train", "held_out")

HELD_OUT_PERCENT = 4
SHINGLE_LINES = 4
MINHASH_BANDS = 16
MINHASH_ROWS = 4
MIN_BYTES = 200
MAX_BYTES = 400_000


@dataclass(frozen=True)
class Document:
    """One text of the corpus: `name` says which file (and which part of it) it comes from."""

    name: str
    domain: Domain
    source: str
    text: str


def read_standard_library(root: Path | None = None) -> list[Document]:
    """Reads every `.py` file under `root` (the running interpreter's `stdlib`) into documents, sorted by name."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    documents: list[Document] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if "site-packages" in relative.parts or "__pycache__" in relative.parts:
            continue
        text = _read_source(path)
        if text is None or not MIN_BYTES <= len(text.encode()) <= MAX_BYTES or _is_table(text):
            continue
        documents.extend(_documents_of(relative.as_posix(), text))
    documents.extend(_help_topics())
    return documents


def split(documents: Iterable[Document]) -> dict[Split, list[Document]]:
    """Puts every document on one side; near-duplicates and texts of one file go together."""
    documents = list(documents)
    groups = _near_duplicate_groups(documents)
    sides: dict[Split, list[Document]] = {"train": [], "held_out": []}
    for document, group in zip(documents, groups, strict=True):
        digest = hashlib.sha256(group.encode()).digest()
        side: Split = "held_out" if int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT else "train"
        sides[side].append(document)
    return sides


def digest(sides: dict[Split, list[Document]]) -> str:
    """SHA-256 over every document's side, domain, name and text, in a fixed order."""
    hasher = hashlib.sha256()
    for side in SPLITS:
        for document in sorted(sides[side], key=lambda item: (item.domain, item.name)):
            for field in (side, document.domain, document.name, document.text):
                hasher.update(field.encode() + b"\0")
    return hasher.hexdigest()


def save(sides: dict[Split, list[Document]], folder: Path) -> None:
    """Writes `train.jsonl` and `held_out.jsonl`, a document a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, documents in sides.items():
        lines = (json.dumps(asdict(document), ensure_ascii=False) for document in documents)
        (folder / f"{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(folder: Path) -> dict[Split, list[Document]]:
    """Reads what `save` wrote."""
    return {side: _load_documents(folder / f"{side}.jsonl") for side in SPLITS}


def _load_documents(path: Path) -> list[Document]:
    with path.open(encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def _read_source(path: Path) -> str | None:
    """The file's text, or None where it is deliberately not decodable (the library tests its own parser so)."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        text.encode()
    except (SyntaxError, UnicodeError):
        return None
    return text


def _is_table(text: str) -> bool:
    """Generated character maps teach nothing about code."""
    return "decoding_table = (" in text or "decoding_map = codecs.make_identity_dict" in text


def _documents_of(name: str, text: str) -> Iterator[Document]:
    if name == "pydoc_data/topics.py":
        return
    parts = name.split("/")
    domain: Domain = "tests" if {"test", "tests", "idle_test"} & set(parts[:-1]) else "code"
    yield Document(name=name, domain=domain, source=name, text=text)
    if domain == "code" and len(prose := _docstrings(text)) >= MIN_BYTES:
        yield Document(name=f"{name}#docstrings", domain="prose", source=name, text=prose)


def _docstrings(text: str) -> str:
    """Every docstring of the file, each under the name of what it describes."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    pieces: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= 40:
            heading = "" if isinstance(node, ast.Module) else f"{node.name}: "
            pieces.append(heading + inspect.cleandoc(docstring))
    return "\n\n".join(pieces) + "\n"


def _help_topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        if len(text) >= MIN_BYTES:
            yield Document(name=f"topic:{name}", domain="prose", source=f"topic:{name}", text=text)


def _near_duplicate_groups(documents: list[Document]) -> list[str]:
    """The group of each document: the least source name reachable through shared sources and MinHash bands."""
    parent: dict[str, str] = {document.source: document.source for document in documents}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    buckets: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for document in documents:
        for band in _minhash_bands(document.text):
            buckets[band].append(document.source)
    for sources in buckets.values():
        for other in sources[1:]:
            first, second = sorted((find(sources[0]), find(other)))
            parent[second] = first
    return [find(document.source) for document in documents]


_PRIME = (1 << 61) - 1
_COEFFICIENTS = [
    (rng.randrange(1, _PRIME), rng.randrange(_PRIME))
    for rng in [random.Random(0)]
    for _ in range(MINHASH_BANDS * MINHASH_ROWS)
]


def _minhash_bands(text: str) -> Iterator[tuple[int, ...]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shingles = {
        int.from_bytes(hashlib.blake2b("\n".join(lines[i : i + SHINGLE_LINES]).encode(), digest_size=7).digest(), "big")
        for i in range(len(lines) - SHINGLE_LINES + 1)
    }
    if not shingles:
        return
    minima = [min((a * value + b) % _PRIME for value in shingles) for a, b in _COEFFICIENTS]
    for band in range(MINHASH_BANDS):
        yield (band, *minima[band * MINHASH_ROWS : (band + 1) * MINHASH_ROWS])
