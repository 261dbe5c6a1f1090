"""Read ``.pt2`` files without running anything that they contain.

``torch.export.load`` unpickles where a file asks for it, loads compiled libraries, and evaluates strings as
Python (sympy expressions of symbolic sizes). A file is therefore read through first, with the same reader,
and handed to torch only when all that is in it is plain data.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from prunus.errors import SourceError

__all__ = ["load_program"]

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".tar")
_EXPECTED = re.compile(
    r"(models/model\.json|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.*|archive_format|archive_version|byteorder|\.?data/\.?(version|serialization_id)"
    r"|version|\.data/.*)"
)
_TARGET = re.compile(
    r"torch\.ops\.higher_order\.[a-z]\w*"
    r"|torch\.ops\.[A-Za-z]\w*\.(?!__)\w+\.(?!_)\w+"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__\.\w+"
    r"|torch\.sym_[a-z]+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|lshift|rshift)"
)
_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv "
    "FloatTrueDiv PowByNatural FloatPow ModularIndexing Where Max Min Abs Eq Ne Equality Unequality Lt Le "
    "Gt Ge StrictLessThan StrictGreaterThan LessThan GreaterThan And Or Not Piecewise ExprCondPair Tuple "
    "floor ceiling sqrt CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt RoundDecimal ToFloat "
    "LShift RShift Identity "
    "IsNonOverlappingAndDenseIndicator".split()
)
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Name, ast.Load, ast.Call,
    ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Constant, ast.Tuple,
)  # fmt: skip


def load_program(path: str | Path) -> ExportedProgram:
    """Load an exported program from a ``.pt2`` file that holds plain data only.

    Raises:
        SourceError: If there is no such file, it is not a ``.pt2`` file, or it holds more than plain data.
    """
    path = Path(path)
    _require_pt2(path)
    with path.open("rb") as file:
        _require_plain(path, file)
        file.seek(0)
        try:
            program = torch.export.load(file)  # type: ignore[arg-type]  takes any open file
        except Exception as error:
            raise SourceError(
                f"{path} cannot be read by torch {torch.__version__}: {type(error).__name__}: {error}\n"
                "Save it again with torch.export.save in this version of torch."
            ) from error
    # program.module() would run these strings as Python
    program._guards_code = []
    return program


def _require_pt2(path: Path) -> None:
    if path.suffix.lower() in _PICKLES:
        raise SourceError(
            f"{path} is a pickle by its name, and opening a pickle can run any code, so prunus does not. "
            "Build the model's class yourself, load_state_dict(torch.load(path, weights_only=True)) into "
            "it, and pass the model; or save it once with "
            "torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')."
        )
    if not path.exists():
        raise SourceError(f"There is no file {path}.")
    if not path.is_file():
        raise SourceError(f"{path} is not a file; expected a .pt2 file.")
    if path.suffix.lower() != ".pt2" or not zipfile.is_zipfile(path):
        raise SourceError(f"{path} is not a .pt2 file, as torch.export.save writes it.")


def _require_plain(path: Path, file: Any) -> None:
    _require_stored(path, file)
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
        records = reader.get_all_records()
        texts = {name: reader.get_record(name) for name in records if name.endswith(".json")}
        samples = [reader.get_record(name) for name in records if name.startswith("data/sample_inputs/")]
    except RuntimeError as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    strange = [name for name in records if not _EXPECTED.fullmatch(name)]
    if strange or len(set(records)) != len(records):
        what = strange[0] if strange else "one entry twice"
        raise SourceError(
            f"{path} holds {what}, which is not plain data (or of a torch too old); it is not opened."
        )
    for name, text in texts.items():
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{path} is damaged: {name} is not JSON ({error}).") from error
        problem = next(_problems(content), None)
        if problem:
            raise SourceError(
                f"{path} holds {problem} in {name}, which is more than plain data; it is not opened."
            )
    for sample in samples:
        _require_weights_only(path, sample)


def _require_stored(path: Path, file: Any) -> None:
    """Torch writes archives uncompressed; anything else could unpack to any size."""
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise SourceError(f"{path} is a compressed archive, which torch.export.save does not write.")


def _require_weights_only(path: Path, sample: bytes) -> None:
    if not sample:
        return
    try:
        torch.load(io.BytesIO(sample), weights_only=True)
    except Exception as error:
        raise SourceError(
            f"{path} holds example inputs that need a pickle; save the program without them."
        ) from error


def _problems(content: Any) -> Iterator[str]:
    """What in a JSON document is not plain data."""
    if isinstance(content, list):
        for item in content:
            yield from _problems(item)
    elif isinstance(content, str):
        if "__enum__" in content:
            yield "the name of a class to import"
    elif isinstance(content, dict):
        for key, value in content.items():
            if key == "use_pickle" and value:
                yield "a pickled tensor"
            elif key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                yield f"a pickled object ({value})"
            elif (
                key == "target"
                and isinstance(value, str)
                and "inputs" in content
                and not _TARGET.fullmatch(value)
            ):
                yield f"a call of {value}"
            elif key == "expr_str" and not _is_size_expression(value):
                yield f"the expression {str(value)[:80]!r}"
            else:
                yield from _problems(value)


def _is_size_expression(text: Any) -> bool:
    """Whether a string is arithmetic on sizes: sympy evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return False
    names = []
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
                return False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value)
        elif isinstance(node, ast.Name):
            names.append(node.id)
    return all(re.fullmatch(r"[A-Za-z]\w*", name) for name in names)
