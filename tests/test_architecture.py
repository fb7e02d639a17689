"""The arrows of the design: who may import whom, and what nobody does."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("guidance", "inversion", "attention", "training")
TORCH = {"torch", "numpy", "PIL", "safetensors", "einops"}
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server"}
BELOW = {"guidance": set(), "attention": set(), "inversion": {"guidance"}, "training": {"guidance", "attention"}}
COMMON = {Path("guidance/errors")}  # how errors quote what was given: a file that all rooms share
# What a room may import besides itself. `host` is the ground floor of nodes/host, `host/<field>` its mirror of a torch room.
MAY_IMPORT = {
    **BELOW,
    "host": set(FIELDS),
    **{f"host/{field}": {"host", field, *BELOW[field], *(f"host/{below}" for below in BELOW[field])} for field in FIELDS},
    "inputs": {"host", *FIELDS, *(f"host/{field}" for field in FIELDS)},
    "nodes": {"inputs", "host", *FIELDS, *(f"host/{field}" for field in FIELDS)},
}
FILES = sorted(p for room in (*FIELDS, "nodes") for p in (ROOT / room).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module of the pack, given as the parts of its path from the root."""
    if parts[:2] == ("nodes", "host"):
        return f"host/{parts[2]}" if len(parts) > 2 and parts[2] in FIELDS else "host"
    return "inputs" if parts[:2] == ("nodes", "inputs") else parts[0]


def imports(path: Path) -> tuple[set[str], set[Path]]:
    """(top names from outside of the pack, modules of the pack as paths from the root) that a file imports."""
    outside, inside = set(), set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            outside |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = Path(*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            inside |= {base / a.name if exists(base / a.name) else base for a in node.names}
    return outside, inside


def exists(module: Path) -> bool:
    return (ROOT / module).is_dir() or (ROOT / module).with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    room = room_of(path.relative_to(ROOT).parts)
    allowed_outside = TORCH | sys.stdlib_module_names | (set() if room in FIELDS else HOST)
    outside, inside = imports(path)
    assert not outside - allowed_outside, f"{room} must not import these"
    rooms = {room_of(module.parts) for module in inside - COMMON}
    assert not rooms - {room} - MAY_IMPORT[room], f"{room} must not import these rooms"


def test_the_top_level_holds_rooms_and_no_code_besides():
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_circle_of_imports():
    graph = {path.relative_to(ROOT).with_suffix(""): imports(path)[1] for path in FILES if path.name != "__init__.py"}
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join(map(str, [*open_, module]))
        if module in graph and module not in done:
            open_.append(module)
            for other in graph[module]:
                visit(other)
            done.add(open_.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_say_why_they_exist_and_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not text or ast.get_docstring(ast.parse(text)), "the first line says why the file exists"


def test_floors_of_the_host_side():
    assert max(len(p.relative_to(ROOT / "nodes" / "host").parts) for p in (ROOT / "nodes" / "host").rglob("*.py")) <= 2
    assert len(list((ROOT / "nodes" / "host").glob("*.py"))) <= 17


def test_the_front_door_imports_nothing_before_the_host_asks():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_print_assert_exec_or_pickle(path):
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


def functions(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]


def test_functions_stay_short():
    """Half of all functions at most 6 lines, nine of ten at most 15, none over 45; schemas and their inputs do not count."""
    sizes = {
        f"{path.relative_to(ROOT)}:{n.lineno}:{n.name}": n.end_lineno - n.lineno + 1
        for path in FILES
        for n in functions(path)
        if n.name != "define_schema" and not n.name.endswith("inputs")
    }
    in_order = sorted(sizes.values())
    assert in_order[len(in_order) // 2] <= 6
    assert in_order[len(in_order) * 9 // 10] <= 15
    assert not {name: size for name, size in sizes.items() if size > 45}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_state_in_modules_and_no_look_into_functions(path):
    """Runs keep their own state; nothing is decided by a function's name, bytecode or closure."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Global)]
    seen = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    seen |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not seen & {"__code__", "__closure__", "cell_contents", "co_names", "__qualname__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_errors_quote_by_quoted_alone(path):
    """No f-string writes quotes around a value by hand: `quoted` cuts long texts and shows control characters."""
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.JoinedStr)]
    by_hand = [
        string.lineno
        for string in found
        for before, value, after in zip(string.values, string.values[1:], string.values[2:])
        if isinstance(value, ast.FormattedValue) and _text(before).endswith("'") and _text(after).startswith("'")
    ]
    assert not by_hand


def _text(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) else ""
