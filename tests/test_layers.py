"""The layers: a module imports only modules below it, so that each can be understood without those above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "durableq"

# From the bottom up. The parts of one line may not import each other.
LAYERS = [
    ["errors"],
    ["_os"],
    ["_record"],
    ["_state"],
    ["_spool"],
    ["_checkpoint"],
    ["_locks", "_leases"],
    ["_owner", "_wakeup", "_commit", "_scan"],
    ["_reclaim", "_recovery"],
    ["_handle"],
    ["_head"],
    ["_settle"],
    ["_tail"],
    ["_store"],
    ["_watch", "_headers", "_unacked"],
    ["_serializers", "_delivery"],
    ["_reader"],
    ["_queue"],
    ["aio"],
    ["_dropin"],
    ["_check"],
    ["__init__"],
    ["_picture"],
    ["_demo_run"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports_of(module):
    """The modules of this package that a module imports, wherever in it that happens."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["durableq." + (node.module or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "durableq":
            names = [f"durableq.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "durableq":
                part = name.split(".")[1] if "." in name else "__init__"
                yield part if part in MODULES else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_place_among_the_layers(module):
    assert module in LEVEL


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_below_it(module):
    above = [name for name in imports_of(module) if LEVEL.get(name, 0) >= LEVEL.get(module, 0)]
    assert above == []


def test_every_part_of_a_layer_is_there():
    assert sorted(set(LEVEL) - set(MODULES)) == []
