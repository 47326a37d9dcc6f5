"""The rules of the house as functions from source texts to complaints (see test_architecture.py).

A `Tree` maps a path relative to the repository to its text. A rule returns one line for every
breach, `path:line: what`, and an empty list when all is well. Nothing is imported, only parsed,
so that the rules hold for code that does not run on this machine too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

Tree = dict[str, str]

# Rooms by layer; a room may import rooms of a lower number, and itself. Modules directly under
# gossamer/ that are not named here are the surface (4). `gossamer/__init__.py` is the front door:
# it may import layers 0 to 5, and only layers 6 to 8 may come in through it.
LAYERS: dict[str, float] = {
    "core": 0, "ir": 0.5, "ops": 1, "compile": 2, "runtime": 3,
    "nn": 5, "optim": 5, "data": 5, "quantization": 5, "models": 6,
    "chat": 7, "tune": 7, "ask": 7, "export": 7, "distributed": 7, "inspect": 7,
    "cli": 8, "server": 8, "web": 8, "__main__": 8.5,
}
SURFACE = 4.0
APART = {"nn", "optim", "data"}  # siblings that do not import each other
ENGINE = {"ir", "ops", "compile", "runtime"}  # what the workbench (layers 6 and up) never sees

# Imported inside the function that needs them: extras of pyproject.toml, and llvmlite because
# `import gossamer` must not pay for it.
LAZY = {"IPython", "jinja2", "llvmlite", "matplotlib", "pyarrow", "rich", "safetensors",
        "starlette", "tokenizers", "typer", "uvicorn", "yaml"}
# Ours, imported late to turn the absence of an extra into a sentence: what it imports is why.
NEEDS_EXTRAS = {"gossamer.cli.app"}
FOREIGN = {"jax", "jaxlib", "mlx", "tensorflow", "tinygrad", "torch", "torchvision"}

MAX_FILE, MAX_BODY = 600, 60


def package(tree: Tree) -> Tree:
    """The modules of the package, by dotted name."""
    found = {}
    for path, text in tree.items():
        if path.startswith("src/gossamer/") and path.endswith(".py"):
            parts = PurePosixPath(path).with_suffix("").parts[1:]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = text
    return found


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def _everything(modules: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """(modules and packages, packages alone) by dotted name."""
    packages = {name.rpartition(".")[0] for name in modules}
    packages |= {name.rpartition(".")[0] for name in packages}
    return modules | packages, frozenset(packages)


def room(module: str) -> str:
    """`gossamer.nn.linear` -> `nn`; the front door is ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def level(module: str) -> float:
    return LAYERS.get(room(module), SURFACE)


def imports(module: str, text: str, modules: Tree) -> list[tuple[int, str, str]]:
    return _imports(module, text, frozenset(modules))


@cache
def _imports(module: str, text: str, modules: frozenset[str]) -> list[tuple[int, str, str]]:
    """(line, imported dotted name, where) of every import statement; where it stands is "top",
    "function", or "types" for one under `if TYPE_CHECKING`.

    `from gossamer.ir import node` names the module gossamer.ir.node if there is such a module,
    and gossamer.ir otherwise.
    """
    tree = parse(text)
    where: dict[int, str] = {}
    for outer in ast.walk(tree):
        typing = isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test)
        if typing or isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where |= {id(n): "types" if typing else "function" for n in ast.walk(outer)}
    names, packages = _everything(modules)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((node.lineno, alias.name, where.get(id(node), "top")))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + (1 if module in packages else 0)]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                # `from gossamer import compile` is the function, not the room of that name.
                known = name in names and name != "gossamer.compile"
                found.append((node.lineno, name if known else base, where.get(id(node), "top")))
    return found


def _ours(modules: Tree, types: bool = True) -> Iterator[tuple[str, int, str]]:
    for module, text in modules.items():
        for line, name, where in imports(module, text, modules):
            if name.split(".")[0] == "gossamer" and (types or where != "types"):
                yield module, line, name


def imports_point_down(tree: Tree) -> list[str]:
    """Layer by layer; the front door opens for layers 6 and up only."""
    bad = []
    for module, line, name in _ours(package(tree)):
        here, there = level(module), level(name)
        if module == "gossamer":
            if there > 5:
                bad.append(f"{module}:{line}: the front door imports {name} of layer {there:g}")
        elif name == "gossamer":
            if here < 6:
                bad.append(f"{module}:{line}: layer {here:g} imports the front door `gossamer`")
        elif there > here:
            bad.append(f"{module}:{line}: layer {here:g} imports {name} of layer {there:g}")
        elif {room(module), room(name)} <= APART and room(module) != room(name):
            bad.append(f"{module}:{line}: sibling {name} of layer 5")
        elif room(module) == room(name) == "models" and "." in module.removeprefix("gossamer."):
            bad.append(f"{module}:{line}: a model file is readable alone, but imports {name}")
        elif here >= 6 and room(name) in ENGINE:
            bad.append(f"{module}:{line}: the workbench imports {name}, not the public API")
    return bad + _reaching_through(package(tree))


def _reaching_through(modules: Tree) -> list[str]:
    """`gs.runtime.x` above layer 5 is an import of the engine in disguise."""
    bad = []
    for module, text in modules.items():
        if level(module) < 6:
            continue
        parsed = parse(text)
        names = {alias.asname or alias.name for node in ast.walk(parsed)
                 if isinstance(node, ast.Import) for alias in node.names
                 if alias.name == "gossamer"}
        bad += [f"{module}:{node.lineno}: the workbench reaches into {node.value.id}.{node.attr}"
                for node in ast.walk(parsed)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                and node.value.id in names and node.attr in ENGINE - {"compile"}]
    return bad


def no_cycles(tree: Tree) -> list[str]:
    """Depth-first over the modules; reports cycles as paths. Imports for types alone do not count:
    they never run (but they too must point down)."""
    modules = package(tree)
    edges: dict[str, list[str]] = {m: [] for m in modules}
    for module, _, name in _ours(modules, types=False):
        if name in modules and name != module:
            edges[module].append(name)
    done: set[str] = set()
    bad: list[str] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            bad.append("cycle: " + " -> ".join([*path[path.index(module):], module]))
            return
        if module in done:
            return
        for name in edges[module]:
            visit(name, [*path, module])
        done.add(module)

    for module in modules:
        visit(module, [])
    return bad


def only_optional_imports_in_functions(tree: Tree) -> list[str]:
    modules = package(tree)
    return [f"{module}:{line}: `import {name}` inside a function"
            for module, text in modules.items()
            for line, name, where in imports(module, text, modules)
            if where == "function" and name.split(".")[0] not in LAZY and name not in NEEDS_EXTRAS]


def no_other_framework(tree: Tree) -> list[str]:
    modules = package(tree)
    return [f"{module}:{line}: imports {name} at run time"
            for module, text in modules.items()
            for line, name, _ in imports(module, text, modules)
            if name.split(".")[0] in FOREIGN]


def only_settings_read_the_environment(tree: Tree) -> list[str]:
    bad = []
    for module, text in package(tree).items():
        if module == "gossamer.core.settings":
            continue
        for node in ast.walk(parse(text)):
            attribute = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            imported = isinstance(node, ast.ImportFrom) and node.module == "os" and any(
                a.name in ("environ", "getenv") for a in node.names)
            if attribute or imported:
                bad.append(f"{module}:{node.lineno}: reads the environment; add a row to SETTINGS")
    return bad


def small_files(tree: Tree) -> list[str]:
    return [f"{path}: {lines} lines, at most {MAX_FILE}" for path, text in tree.items()
            if path.endswith(".py") and (lines := len(text.splitlines())) > MAX_FILE]


def small_functions(tree: Tree) -> list[str]:
    """A body counts from the first statement after the docstring to its last line."""
    bad = []
    for path, text in tree.items():
        if not path.endswith(".py"):
            continue
        for node in ast.walk(parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and (n := (body[-1].end_lineno or 0) - body[0].lineno + 1) > MAX_BODY:
                bad.append(f"{path}:{node.lineno}: {node.name} has {n} lines, at most {MAX_BODY}")
    return bad


def modules_say_what_they_are(tree: Tree) -> list[str]:
    return [f"{path}: no docstring at its head" for path, text in tree.items()
            if path.endswith(".py") and text.strip() and ast.get_docstring(parse(text)) is None]


def all_names_exist(tree: Tree) -> list[str]:
    """Every name in a module's literal `__all__` is bound at its top level."""
    bad = []
    for module, text in package(tree).items():
        parsed = parse(text)
        names, bound = [], set()
        for node in parsed.body:
            bound |= _bound(node)
            if isinstance(node, ast.Assign) and any(
                    isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                literal = isinstance(node.value, (ast.List, ast.Tuple))
                names = [str(ast.literal_eval(e)) for e in node.value.elts] if literal else []
        if "*" not in bound and "__getattr__" not in bound:
            missing = [n for n in names
                       if n not in bound and f"{module}.{n}" not in package(tree)]
            bad += [f"{module}: __all__ names {name!r}, which is not there" for name in missing]
    return bad


def _bound(node: ast.stmt) -> set[str]:
    """Names that one top-level statement binds; {'*'} when that cannot be read off."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).split(".")[0] for a in node.names}
    if isinstance(node, (ast.For, ast.With)) or (isinstance(node, ast.Expr)
                                                 and "globals" in ast.dump(node)):
        return {"*"}
    found: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            found.add(child.id)
        elif isinstance(child, (ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
            found |= _bound(child)
    return found


# Written in two pieces each, or this file would be the first breach.
_FOLDERS = re.compile(r"(?<![\w.])/(?:" + "|".join(("wo" "rk", "ro" "ot", "tm" "p", "fa" "rm",
                                                    "opt/pyp" "i", "opt/whe" "els")) + r")\b/?")
_HOSTS = re.compile("|".join(("pypi" r"\.org", "python" r"hosted\.org", "download" r"\.pytorch")))


def no_machine_is_named(tree: Tree) -> list[str]:
    """No text names a folder of the machine it was written on, or a package registry's host."""
    return [f"{path}:{number}: {found[0]}"
            for path, text in tree.items()
            for number, line in enumerate(text.splitlines(), 1)
            if (found := _FOLDERS.search(line) or _HOSTS.search(line))]


RULES = (imports_point_down, no_cycles, only_optional_imports_in_functions, no_other_framework,
         only_settings_read_the_environment, small_files, small_functions,
         modules_say_what_they_are, all_names_exist, no_machine_is_named)
