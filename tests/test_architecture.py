"""Rules on the code itself: who imports whom, what importing costs, no special cases for models."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
ORDER = [
    "errors",
    "files",
    "alone",
    "inputs",
    "patterns",
    "plan_schema",
    "eigen",
    "gram",
    "windows",
    "heap",
    "capture",
    "structure",
    "evidence",
    "constants",
    "criteria",
    "allocation",
    "describe",
    "masks",
    "plan",
    "request",
    "decide",
    "surgery",
    "decomposition",
    "recovery",
    "tuning",
    "artefact",
    "report",
    "api",
    "cli",
]
# where a model may be named: what the user types or is shown
OUTER = {"cli", "report"}
MODELS = re.compile(
    r"\b(resnet|resnext|regnet|densenet|mobilenet|efficientnet|convnext|shufflenet|googlenet|inception|swin|deit|levit|"
    r"vit|bert|roberta|llama|mistral|gpt2?|t5|whisper|yolo|timm|torchvision|transformers)(\b|_|\d)",
    re.IGNORECASE,
)
OPERATOR = re.compile(r"\w+::\w+")  # a rule for a library's own operator names that operator


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def stage_of(path: Path) -> str:
    """The package or top-level module that a file belongs to; empty for ``prunus/__init__.py``."""
    first = path.relative_to(ROOT).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_stages(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Stages that a file imports, wherever in the file, with their lines; relative imports are resolved."""
    package = ["prunus", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names = [f"{module}.{alias.name}" if module == "prunus" else module for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "prunus" and len(parts) > 1:
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", sources(), ids=identify)
def test_a_stage_imports_only_from_those_before_it(path: Path) -> None:
    stage = stage_of(path)
    if not stage:
        return
    assert stage in ORDER, f"{stage} has no place in the pipeline yet: decide on it in ORDER"
    for line, imported in imported_stages(ast.parse(path.read_text()), path):
        if imported.startswith("__"):
            continue  # prunus.__version__
        assert imported in ORDER, f"{path}:{line} imports prunus.{imported}, which is no stage"
        assert ORDER.index(imported) <= ORDER.index(stage), f"{path}:{line}: {stage} comes before {imported}"


def test_the_import_rule_sees_every_form_of_import() -> None:
    code = "import prunus.plan\nfrom prunus.api import x\nfrom prunus import cli\n"
    code += "from ..surgery import y\nfrom . import z\n"
    found = [stage for _, stage in imported_stages(ast.parse(code), ROOT / "capture" / "file.py")]
    assert found == ["plan", "api", "cli", "surgery", "capture"]


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [path for path in sources() if path.name in drawers] == []


def test_importing_prunus_is_lean() -> None:
    heavy = ["typer", "rich", "jinja2", "torchvision", "timm", "transformers", "sklearn"]
    heavy += ["onnx", "onnxscript", "onnxruntime"]
    code = f"import sys, prunus; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_all_that_is_public_exists() -> None:
    for name in getattr(prunus, "__all__", []):
        assert getattr(prunus, name) is not None, name
    assert len(getattr(prunus, "__all__", [])) <= 45


def model_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names of models and zoos in code: identifiers, imports and strings, but not documentation."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        texts: list[str] = []
        if isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            texts = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            texts = [node.value]
        for text in texts:
            if MODELS.search(text) and not OPERATOR.fullmatch(text):
                yield getattr(node, "lineno", 0), text


@pytest.mark.parametrize("path", sources(), ids=identify)
def test_no_model_has_a_special_case(path: Path) -> None:
    if stage_of(path) not in OUTER:
        assert list(model_names(ast.parse(path.read_text()))) == []


def test_the_special_case_rule_sees_names_and_strings() -> None:
    code = (
        '"""About a resnet."""\nimport timm\nif type(m).__name__ == "swin_t" or resnet18: pass\nvital = 1\n'
    )
    found = {text for _, text in model_names(ast.parse(code))}
    assert found == {"timm", "swin_t", "resnet18"}
