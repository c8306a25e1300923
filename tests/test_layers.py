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
    ["_fork", "_leases"],
    ["_locks", "_ledger"],
    ["_runs"],
    ["_owner", "_wakeup", "_commit", "_scan"],
    ["_reclaim", "_recovery", "_trust", "_lifetimes"],
    ["_fast"],
    ["_compiled"],
    ["_stepping"],
    ["_handle"],
    ["_returned"],
    ["_head"],
    ["_settle"],
    ["_tail"],
    ["_inspect"],
    ["_store"],
    ["_watch", "_headers", "_unacked"],
    ["_serializers", "_delivery"],
    ["_reader"],
    ["_queue"],
    ["_dropin", "failures"],
    ["_check"],
    ["_picture"],
    ["_progress"],
    ["_map"],
    ["_map_svg"],
    ["pool._settings"],
    ["pool._link"],
    ["pool._keeper"],
    ["pool._worker"],
    ["pool._crew"],
    ["pool._supervisor"],
    ["pool"],
    ["__init__", "pytest_plugin"],
    ["_demo_run"],
    ["demo"],
    ["integrations"],
    ["integrations._broker_directory", "integrations._metrics"],
    ["integrations._broker_spools"],
    ["integrations._extras", "integrations._urls", "integrations.logging", "integrations.message"],
    ["aio", "integrations.kombu", "integrations.otel", "integrations.prometheus"],
    ["integrations.sinks"],
    ["integrations.sinks.base"],
    ["integrations.sinks.amqp", "integrations.sinks.kafka", "integrations.sinks.redis"],
    ["integrations.sinks.open"],
    ["integrations.forward"],
    ["integrations.engines"],
    ["integrations.engines.base"],
    ["integrations.engines.queue", "integrations.engines.redis_scripts"],
    ["integrations.engines.kombu", "integrations.engines.redis"],
    ["integrations.connect"],
    # A subcommand may import everything below, and is loaded by its name.
    ["cli._command", "cli._framing", "cli._guard", "cli._pipe", "cli._signals"],
    ["cli._grammar", "cli._input", "cli._items", "cli._jobs", "cli._loans", "cli._output", "cli._registry"],
    ["cli.check", "cli.compact", "cli.completion", "cli.demo", "cli.forward", "cli.get", "cli.man", "cli.map", "cli.peek"],
    ["cli.purge", "cli.put", "cli.redrive", "cli.run", "cli.stat", "cli.work"],
    ["cli"],
    ["__main__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)
COMPILED = ["_fast"]


class _Running(ast.NodeTransformer):
    """Leaves out what only a type checker reads."""

    def visit_If(self, node):
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def imports_of(module):
    """The modules of this package that a module imports, wherever in it that happens."""
    for node in ast.walk(_Running().visit(ast.parse(FILES[module].read_text()))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{module}: imports are written in full, from durableq on")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "durableq":
            # `from package import name`: the name may be a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in COMPILED]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            root, *parts = name.split(".")
            if root == "durableq":
                while parts and ".".join(parts) not in MODULES:
                    parts.pop()
                yield ".".join(parts) or "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_place_among_the_layers(module):
    assert module in LEVEL


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_below_it(module):
    above = [name for name in imports_of(module) if LEVEL.get(name, 0) >= LEVEL.get(module, 0)]
    assert above == []


def test_every_part_of_a_layer_is_there():
    assert sorted(set(LEVEL) - {*MODULES, *COMPILED}) == []
