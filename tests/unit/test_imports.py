"""What import-linter cannot say: what is really loaded when a module is imported, and who calls or imports what.

The directions of imports themselves are contracts in ``pyproject.toml``, checked by ``scripts/check``.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

HEAVY_PACKAGES = ("torch", "transformers")
HEAVY_WING = ("samplerpool.worker", "samplerpool.engine", "samplerpool.model", "samplerpool.rendering")
LIGHT_IN_HEAVY_WING = (
    "samplerpool.engine.answer",
    "samplerpool.engine.base",
    "samplerpool.engine.detokenizer",
    "samplerpool.engine.loop",
    "samplerpool.engine.scripted",
    "samplerpool.model.source",
    "samplerpool.rendering",
)
SIGNAL_OWNERS = (
    "samplerpool.worker.__main__",
    "samplerpool.pool.supervisor",
    "samplerpool.cli",
    "samplerpool.chat.editor",
)
PICKLES = ("pickle", "marshal", "shelve", "dill", "cloudpickle")

IMPORT_ONE_AFTER_THE_OTHER = """
import importlib, json, sys
watched, names = json.loads(sys.argv[1])
loaded = {}
for name in names:
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except BaseException as error:
        loaded[name] = [repr(error)]
        continue
    loaded[name] = [package for package in watched if package in sys.modules and package not in before]
print(json.dumps(loaded))
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def within(name: str, owners: tuple[str, ...]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


# A __main__ module runs when it is imported; what it imports is listed on its own.
LIGHT_MODULES = [
    name
    for name in MODULES
    if not name.endswith(".__main__") and (within(name, LIGHT_IN_HEAVY_WING) or not within(name, HEAVY_WING))
]


def loaded_by(*names: str, watched: tuple[str, ...] = HEAVY_PACKAGES) -> dict[str, list[str]]:
    """Which of the watched packages each of these modules brings in, imported in this order by a fresh interpreter.

    For a module that cannot be imported, the error.
    """
    child = subprocess.run(
        [sys.executable, "-c", IMPORT_ONE_AFTER_THE_OTHER, json.dumps([watched, names])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    loaded: dict[str, list[str]] = json.loads(child.stdout)
    return loaded


@pytest.fixture(scope="module")
def loaded_by_light_modules() -> dict[str, list[str]]:
    return loaded_by(*LIGHT_MODULES)


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_a_client_never_loads_the_model_libraries(name: str, loaded_by_light_modules: dict[str, list[str]]) -> None:
    assert loaded_by_light_modules[name] == []


def test_the_fresh_interpreter_would_notice() -> None:
    assert loaded_by("json", "sqlite3", watched=("sqlite3",)) == {"json": [], "sqlite3": ["sqlite3"]}


def test_the_walk_finds_the_modules_that_it_is_about() -> None:
    assert {"samplerpool", "samplerpool.client.connection", "samplerpool.samplers.sync_sampler"} <= set(LIGHT_MODULES)
    assert set(LIGHT_IN_HEAVY_WING) <= set(LIGHT_MODULES)


def test_the_package_alone_is_light() -> None:
    watched = (*HEAVY_PACKAGES, "zmq", "click", "rich", "prompt_toolkit", "asyncio")
    assert loaded_by("samplerpool", watched=watched) == {"samplerpool": []}


def test_every_public_name_resolves_without_the_model_libraries() -> None:
    script = f"from samplerpool import *; import sys; print([p for p in {HEAVY_PACKAGES} if p in sys.modules])"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (child.stdout.strip(), child.stderr) == ("[]", "")


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses_signal_handlers(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return "signal.signal" in called or "signal.signal" in imported_by(path)


def test_signal_handlers_have_owners() -> None:
    users = [name for name, path in MODULES.items() if uses_signal_handlers(path)]
    assert [name for name in users if not within(name, SIGNAL_OWNERS)] == []


def test_nothing_is_ever_unpickled() -> None:
    users = [
        (name, imported)
        for name, path in MODULES.items()
        for imported in imported_by(path)
        if within(imported, PICKLES)
    ]
    assert users == []


def test_imports_are_absolute() -> None:
    relative = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []
