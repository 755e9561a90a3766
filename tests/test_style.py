"""Rules that the source keeps, read from its syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "medpipe"
FILES = sorted(PACKAGE.rglob("*.py"))
DOMAINS = ("steps", "graphcut", "centerline", "qmri", "synthesis", "outcome")

HOST_ALLOWED = {
    # the solvers of the host: numba, OR-tools and SciPy
    ("graphcut/residual.py", "_terminal"),
    ("graphcut/residual.py", "_add"),
    ("graphcut/residual.py", "_slices"),
    ("graphcut/general.py", "_edges"),
    ("graphcut/general.py", "_values"),
    # what the GPU leaves over is finished by the solver of the host
    ("graphcut/stencil.py", "_host"),
    # torch has no connected components; one byte per voxel crosses
    ("steps/_components.py", "_host"),
    # a number for each case, where predictions are evaluated
    ("outcome/crossval.py", "_host"),
    # SimpleITK optimises on the host; a copy of 2 mm or coarser crosses
    ("steps/registration.py", "to_sitk"),
    # torch has no search tree; the nodes cross once, and the points to look up
    ("graphcut/columns/nearest.py", "_host"),
    # torch has no connected components; one byte per voxel crosses
    ("centerline/airway.py", "_host"),
    # torch has no watershed; two bytes per voxel cross
    ("centerline/vessel_mask.py", "_host"),
    # torch has no nearest-neighbour tree; the points of two surfaces cross
    ("graphcut/thickness.py", "host"),
    # torch has no strongly connected components; one byte per voxel and arc crosses
    ("graphcut/shape_prior.py", "_strong_groups"),
    # the compiled sums of cosines of the host; tensors of the host alone, nothing is copied
    ("qmri/perk_kernel.py", "_host"),
    # the images that a model is trained for cross once: samples are drawn on the host
    ("qmri/perk.py", "_train_as_published"),
    # the compiled distances and neighbours; tensors of the host alone, nothing is copied
    ("centerline/distance.py", "_host"),
    ("centerline/graph.py", "_host"),
    # torch has no priority queue; the table of neighbours of a graph too small for sweeps crosses
    ("centerline/solve.py", "_host"),
    # torch has no search through a graph; the table of neighbours crosses
    ("centerline/topology.py", "_host"),
    # no library thins on a GPU; one byte per voxel of a box around the mask crosses
    ("centerline/metrics/voxel_facts.py", "_host"),
    # trees are traced on the host; what is known of each foreground voxel crosses once
    ("centerline/prepare.py", "_host"),
    # trees are on the host: some numbers for each of their points cross
    ("centerline/sections.py", "_host"),
    # statistics of generated sets are of the host: a number for each pair of cases crosses
    ("synthesis/metrics/_figures.py", "to_host"),
}
"""Functions that may bring a tensor to the host, and why."""

HOST_CALLS = {"cpu", "numpy", "item"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "joblib"}
FORBIDDEN_ATTRIBUTES = {"extractall", "unpack_archive"}
STEP_ATTRIBUTES = {"version", "reads", "writes", "files", "makes", "random"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def calls(tree: ast.AST):
    """Yield each call with the name of the function it stands in."""

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call):
                yield child, inner
            yield from walk(child, inner)

    yield from walk(tree, "<module>")


def host_calls(name: str, source: str) -> list[str]:
    """Return calls that bring a tensor to the host, outside HOST_ALLOWED."""
    found = []
    for call, function in calls(ast.parse(source)):
        if not isinstance(call.func, ast.Attribute) or (name, function) in HOST_ALLOWED:
            continue
        values = [a.value for a in call.args if isinstance(a, ast.Constant)]
        moves = call.func.attr == "to" and "cpu" in values
        if moves or (call.func.attr in HOST_CALLS and not call.args):
            found.append(f"{name}:{call.lineno} .{call.func.attr}() in {function}")
    return found


def forbidden(name: str, source: str) -> list[str]:
    """Return what could run code or shell text that came with the data."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name.split(".")[0] for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        found += [f"{name}:{node.lineno} {n}" for n in names if n in FORBIDDEN_IMPORTS]
    for call, _ in calls(tree):
        f = call.func
        shell = any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            for k in call.keywords
        )
        attr = f.attr if isinstance(f, ast.Attribute) else ""
        owner = f.value.id if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) else ""
        bad = (
            (isinstance(f, ast.Name) and f.id in FORBIDDEN_NAMES)
            or attr in FORBIDDEN_ATTRIBUTES
            or shell
            or (owner, attr) in {("yaml", "load"), ("os", "system"), ("os", "popen")}
        )
        if bad:
            found.append(f"{name}:{call.lineno} {ast.unparse(f)}")
    return found


def undocumented(name: str, source: str) -> list[str]:
    """Return public functions, classes and methods without a docstring."""

    def walk(body, prefix):
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_") or is_overload(node):
                continue
            if ast.get_docstring(node) is None:
                yield f"{name}:{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{node.name}.")

    return list(walk(ast.parse(source).body, ""))


def is_overload(node: ast.AST) -> bool:
    """Whether a method repeats one of a base class or a protocol, which documents it."""
    marks = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
    return any(m.split(".")[-1] in {"overload", "override", "setter"} for m in marks)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_is_evaluated_unpickled_or_unpacked(file):
    assert forbidden(name_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.relative_to(PACKAGE).parts[0] in DOMAINS], ids=name_of
)
def test_steps_stay_on_the_device(file):
    assert host_calls(name_of(file), file.read_text()) == []


def test_the_allowed_places_exist():
    for name, function in HOST_ALLOWED:
        tree = ast.parse((PACKAGE / name).read_text())
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert function in names


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.relative_to(PACKAGE).parts[0] != "cli"], ids=name_of
)
def test_only_the_command_line_prints(file):
    prints = [
        c.lineno
        for c, _ in calls(ast.parse(file.read_text()))
        if isinstance(c.func, ast.Name) and c.func.id == "print"
    ]
    assert prints == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_what_is_public_is_documented(file):
    assert undocumented(name_of(file), file.read_text()) == []


def step_classes():
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] not in DOMAINS or file.name.startswith("_"):
            continue
        bases = {"DictStep", "MapTransform"}
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b).split(".")[-1] in bases for b in node.bases
            ):
                if node.name.startswith("_"):
                    bases.add(node.name)
                    continue
                yield pytest.param(file, node, id=f"{name_of(file)}:{node.name}")


@pytest.mark.parametrize(("file", "node"), list(step_classes()))
def test_dictionary_steps_keep_the_contract(file, node):
    attributes = {
        t.id: s.value
        for s in node.body
        if isinstance(s, ast.Assign)
        for t in s.targets
        if isinstance(t, ast.Name)
    }
    assert set(attributes) >= STEP_ATTRIBUTES
    values = {k: ast.literal_eval(v) for k, v in attributes.items() if k in STEP_ATTRIBUTES}
    assert isinstance(values["version"], str)
    assert values["makes"] in {"volume", "labels", "table", "document"}
    assert ("suffix" in attributes) == (values["makes"] == "document")
    init = next(s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__")
    names = [a.arg for a in (*init.args.args, *init.args.kwonlyargs)]
    assert names[:2] == ["self", "keys"]
    assert names[-1] == "allow_missing_keys"
    for kind in ("reads", "writes", "files"):
        assert set(values[kind]) <= set(names)
    base = node.name.removesuffix("d")
    defined = {
        t.id
        for s in ast.parse(file.read_text()).body
        if isinstance(s, ast.Assign)
        for t in s.targets
        if isinstance(t, ast.Name)
    }
    assert {f"{base}D", f"{base}Dict"} <= defined


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (forbidden, "eval('1')"),
        (forbidden, "import pickle"),
        (forbidden, "from pickle import loads"),
        (forbidden, "import yaml\nyaml.load(f)"),
        (forbidden, "import subprocess\nsubprocess.run('ls', shell=True)"),
        (forbidden, "archive.extractall('x')"),
        (host_calls, "x = t.cpu()"),
        (host_calls, "x = t.to('cpu')"),
        (host_calls, "def f(t):\n    return t.numpy()"),
        (host_calls, "for v in t:\n    v.item()"),
        (undocumented, "class A:\n    pass"),
    ],
)
def test_the_rules_catch_what_they_forbid(rule, source):
    assert rule("steps/new.py", source)
