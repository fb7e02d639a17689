"""The arrows of the design: who may import whom, and what nobody does."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("guidance", "inversion", "attention", "training", "nodes")
TORCH = {"torch", "numpy", "PIL", "safetensors", "einops"}
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "nodes"}
MAY_IMPORT = {  # other rooms of the pack that a room may look into
    "guidance": set(),
    "attention": set(),
    "inversion": {"guidance"},
    "training": {"guidance", "attention"},
    "nodes": {"guidance", "inversion", "attention", "training"},
}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[tuple[str, bool]]:
    """(top name, whether it is a room of the pack) of everything a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(a.name.split(".")[0], False) for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module.split(".")[0], False))
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts[: len(path.relative_to(ROOT).parts) - node.level]
            target = [*package, *(node.module or "").split(".")] if node.module else [*package, node.names[0].name]
            found.add((target[0], True))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_the_design_allows(path):
    room = path.relative_to(ROOT).parts[0]
    allowed_outside = TORCH | sys.stdlib_module_names | (HOST if room == "nodes" else set())
    for name, inside in imports(path):
        if inside:
            assert name in {room} | MAY_IMPORT[room], f"{room} must not import the room {name}"
        else:
            assert name in allowed_outside, f"{room} must not import {name}"


def test_the_front_door_imports_nothing_before_the_host_asks():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_printed_asserted_executed_or_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    methods = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert not names & {"print", "eval", "exec", "setattr"}
    assert not methods & {"torch.load", "torch.save", "pickle.load", "pickle.loads", "torch.manual_seed", "subprocess.run"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_attribute_of_an_imported_module_is_assigned(path):
    """The host is never monkeypatched. The one flag that its own trainer sets, and restores as we do, is allowed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    targets = [
        t
        for n in ast.walk(tree)
        if isinstance(n, (ast.Assign, ast.AugAssign))
        for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
        if isinstance(t, ast.Attribute)
    ]
    assigned = {ast.unparse(t) for t in targets if ast.unparse(t).split(".")[0] in modules}
    assert not assigned - {"comfy.model_management.in_training"}


def test_functions_stay_short():
    """Half of all functions under 12 lines; none over 60 but schemas."""
    sizes = {
        f"{p.relative_to(ROOT)}:{n.name}": n.end_lineno - n.lineno + 1
        for p in FILES
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(n, ast.FunctionDef) and n.name != "define_schema"
    }
    assert sorted(sizes.values())[len(sizes) // 2] < 12
    assert not {name: size for name, size in sizes.items() if size > 60}
