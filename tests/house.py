"""Rules of the source, checked without running it: layers, cycles, names, docstrings."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

# From the bottom: a layer is files or folders; a file imports only from layers below its own, and
# from its own package. Folders end in /.
LAYERS: list[tuple[str, ...]] = [
    tuple(
        f"attribution/{name}.py"
        for name in (
            "__init__",
            "files",
            "tensors",
            "cli",
            "processes",
            "provenance",
            "hub",
            "draws",
            "progress",
            "fisher",
        )
    ),
    ("attribution/data/",),
    ("attribution/models.py",),
    ("pipeline.py",),
    ("attribution/training/",),
    ("attribution/engine/",),
    ("attribution/replay/",),
    ("attribution/influence/",),
    ("attribution/evidence/",),
    ("attribution/show/",),
    ("attribution/commands/",),
    ("train.py", "analyze.py", "evaluate_lds.py", "run_counterfactual.py"),
]
SCRIPTS = LAYERS[-1]
OUTSIDE = ("lab/", "demo/", "tests/")  # they import any layer, and no layer imports them
Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path) -> list[str]:
    """Every Python file that is or may be committed; where there is no git, every one outside
    hidden folders.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    try:
        listed = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        shown = [path for path in root.iterdir() if not path.name.startswith(".")]
        paths = [
            *(path for path in shown if path.suffix == ".py"),
            *(p for path in shown for p in path.rglob("*.py")),
        ]
        listed = [path.relative_to(root).as_posix() for path in paths]
    return sorted({name for name in listed if (root / name).is_file()})


def parse(root: Path, name: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((root / name).read_text(), name)


# --- imports --------------------------------------------------------------------------------------


def find_module(root: Path, dotted: str) -> str | None:
    """The file (or folder, ending in /) of a module; None if it is not of the repository."""
    path = root.joinpath(*dotted.split("."))
    for file in (path.with_name(path.name + ".py"), path / "__init__.py"):
        if file.is_file():
            return file.relative_to(root).as_posix()
    return f"{path.relative_to(root).as_posix()}/" if any(path.glob("*.py")) else None


def imports(root: Path, name: str) -> Iterator[tuple[int, str | None, str, str | None]]:
    """(line, name that it gets here, imported file, what is taken from it) for every import from
    the repository.

    Imports inside functions count. What is taken is None where it is the file itself; the name is
    None where it has dots.
    """
    package = name.split("/")[:-1]
    for node in ast.walk(parse(root, name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if target := find_module(root, alias.name):
                    yield (
                        node.lineno,
                        alias.asname or (None if "." in alias.name else alias.name),
                        target,
                        None,
                    )
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            for alias in node.names:
                if target := find_module(root, ".".join([*base, alias.name])):
                    yield node.lineno, alias.asname or alias.name, target, None
                elif base and (target := find_module(root, ".".join(base))):
                    yield node.lineno, alias.asname or alias.name, target, alias.name


def layer_of(name: str) -> int | None:
    """Number of the layer of a file or folder; None if it is in no layer."""
    for number, parts in enumerate(LAYERS):
        if any(name == part or (part.endswith("/") and name.startswith(part)) for part in parts):
            return number
    return None


def broken_rule(importer: int, imported: str) -> str | None:
    """Rule that forbids a file of this layer to import that file or folder, or None."""
    if imported.startswith(OUTSIDE):
        return f"no layer imports {', '.join(OUTSIDE)}"
    layer = layer_of(imported)
    if layer is None:
        return "an imported file must be in a layer"
    if imported in SCRIPTS:
        return "no script imports another script" if importer == layer else UPWARDS
    return None if layer <= importer else UPWARDS


UPWARDS = "a file imports only from layers below its own, or from its own package"


def layer_violations(root: Path, files: list[str]) -> list[str]:
    """One sentence, naming both files and the rule, for every import that breaks a rule."""
    found = []
    for name in files:
        if name.startswith(OUTSIDE):
            continue
        layer = layer_of(name)
        if layer is None:
            found.append(f"{name} is in no layer: give it a place in LAYERS")
            continue
        for line, _, target, _ in imports(root, name):
            if rule := broken_rule(layer, target):
                found.append(f"{name}, line {line}, imports {target}: {rule}")
    return found


def import_cycle(root: Path, files: list[str]) -> list[str]:
    """Files of one cycle of imports, in order; empty if there is none."""
    targets = {
        name: {target for _, _, target, _ in imports(root, name) if target in files}
        for name in files
    }
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(targets[name] - {name}):
            if cycle := follow(target, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in files if (cycle := follow(name, []))), [])


# --- names ----------------------------------------------------------------------------------------


def bound_names(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind: defined, imported or assigned, or compared with the name that a
    module's `__getattr__` was asked for.
    """
    names: set[str] = set()
    for node in body:
        if isinstance(node, (Function, ast.ClassDef)):
            names.add(node.name)
            if node.name == "__getattr__":
                compared = [one for one in ast.walk(node) if isinstance(one, ast.Compare)]
                sides = [side for one in compared for side in one.comparators]
                names |= {side.value for side in sides if isinstance(side, ast.Constant)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        else:
            inner = list(ast.walk(node))[1:]
            names |= {
                part.id
                for part in inner
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
            names |= bound_names(
                [part for part in inner if isinstance(part, (Function, ast.Import, ast.ImportFrom))]
            )
    return names


def attributes(node: ast.AST, modules: dict[str, str]) -> Iterator[tuple[ast.Attribute, str]]:
    """(expression, file) for every `module.name` below the node; modules: the name of a module ->
    its file.

    Where a function binds the name of a module to something else, its expressions are left out.
    """
    for child in ast.iter_child_nodes(node):
        inner = modules
        if isinstance(child, (Function, ast.Lambda)):
            own = {
                argument.arg for argument in ast.walk(child.args) if isinstance(argument, ast.arg)
            }
            own |= bound_names(child.body) if isinstance(child, Function) else set()
            inner = {name: file for name, file in modules.items() if name not in own}
        if (
            isinstance(child, ast.Attribute)
            and isinstance(child.value, ast.Name)
            and child.value.id in inner
        ):
            yield child, inner[child.value.id]
        yield from attributes(child, inner)


def missing_names(root: Path, files: list[str]) -> list[str]:
    """One sentence for every name that a file takes from another file of the repository, which does
    not have it.
    """
    known = {name: bound_names(parse(root, name).body) for name in files}
    found = []
    for name in files:
        taken, modules = [], {}
        for line, bound, target, part in imports(root, name):
            if part is not None:
                taken.append((line, part, target))
            elif bound is not None:
                modules[bound] = target
        taken += [
            (node.lineno, node.attr, target)
            for node, target in attributes(parse(root, name), modules)
        ]
        for line, part, target in taken:
            inside = target.removesuffix("__init__.py").replace("/", ".") + part
            if (
                part not in known.get(target, ())
                and not part.startswith("__")
                and not find_module(root, inside)
            ):
                found.append(
                    f"{name}, line {line}, takes {part} from {target}, which has no such name"
                )
    return found


# --- docstrings -----------------------------------------------------------------------------------


def undocumented(
    root: Path, files: list[str], overrides=lambda file, owner, method: False
) -> list[str]:
    """`file`, `file: name` or `file: class.method` of what is public and has no docstring.

    Methods with two underscores need none, nor those of which overrides(file, class, method) says
    that a base class documents them.
    """
    found = []
    for name in files:
        tree = parse(root, name)
        public = [
            node
            for node in tree.body
            if isinstance(node, (Function, ast.ClassDef)) and node.name[0] != "_"
        ]
        found += [name] * (ast.get_docstring(tree) is None)
        for node in public:
            found += [f"{name}: {node.name}"] * (ast.get_docstring(node) is None)
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if (
                    isinstance(method, Function)
                    and method.name[0] != "_"
                    and ast.get_docstring(method) is None
                ):
                    found += [f"{name}: {node.name}.{method.name}"] * (
                        not overrides(name, node.name, method.name)
                    )
    return found


def defines(root: Path, name: str, dotted: str) -> bool:
    """Whether the file defines this function, class, constant or `Class.method`."""
    body = parse(root, name).body
    *owners, last = dotted.split(".")
    for owner in owners:
        body = [
            part
            for node in body
            if isinstance(node, ast.ClassDef) and node.name == owner
            for part in node.body
        ]
    return last in bound_names(
        [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    )
