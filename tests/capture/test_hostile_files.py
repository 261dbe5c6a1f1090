"""Programs from strangers: nothing of a file is computed, nothing can take long, and all of it is refused in words."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from prunus.capture import capture
from prunus.capture.reading.expressions import is_size_expression
from prunus.capture.reading.operators import operator_problem
from prunus.capture.reading.plain import treespec_problem
from prunus.errors import SourceError
from tests.capture.archives import edit_json, rewrite, set_everywhere, walk


class Scaled(nn.Module):
    """A number out of a buffer, a table made of nothing, and a free batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("few", torch.ones(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu() + torch.zeros(6)) * self.few.sum().item()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    program = torch.export.export(Scaled().eval(), (torch.ones(2, 4),), dynamic_shapes={"x": {0: Dim.AUTO}})
    torch.export.save(program, path)
    return path


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "model.pt2"))


def of_node(name: str, **changes: Any) -> Callable[[str, bytes], bytes]:
    """Change the entries of the nodes whose names begin so."""

    def change(tree: Any) -> None:
        nodes = [node for node in tree["graph_module"]["graph"]["nodes"] if node["name"].startswith(name)]
        assert nodes, f"no node {name}"
        for node in nodes:
            node.update(changes)

    return edit_json("models/", change)


def argument(name: str, **value: Any) -> dict[str, Any]:
    return {"name": name, "arg": value, "kind": 1}


def refused(path: Path, *words: str) -> None:
    with pytest.raises(SourceError) as caught:
        capture(path)
    assert all(word in str(caught.value) for word in (path.name, *words)), str(caught.value)


def test_the_untouched_file_is_read(saved: Path) -> None:
    assert capture(saved).batch == 2


class Mixed(nn.Module):
    """Regions with other types, without gradients, and with a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.up(x).relu()
        with torch.no_grad():
            scale = hidden.float().abs().mean() + 1
        return self.down(hidden.float() / scale)


def test_regions_are_read_as_they_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Mixed().eval(), (torch.ones(2, 4),)), path)
    with torch.autocast("cpu"):
        captured = capture(path)
    assert {node.meta["val"].dtype for node in captured.graph.nodes if node.name == "linear"} == {
        torch.bfloat16
    }

    def change(tree: Any) -> None:
        for item in walk(tree):
            if "linear" in item.get("tensor_values", {}):
                item["tensor_values"]["linear"]["dtype"] = 7

    rewrite(path, edit_json("models/", change))
    refused(path, "linear", "bfloat16, where the file says (2, 6) float32")


# --- operators


def test_a_file_is_not_created(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    inputs = [
        argument("filename", as_string=str(mark)),
        argument("shared", as_bool=True),
        argument("size", as_int=1),
        argument("dtype", as_scalar_type=5),
    ]
    rewrite(saved, of_node("sum", target="torch.ops.aten.from_file.default", inputs=inputs))
    refused(saved, "from_file", "could name a file")
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten._foreach_add.Scalar",
        "torch.ops.aten.manual_seed.default",
        "torch.ops.prim.rpc_async.default",
        "torch.ops.rngprims.philox_rand.default",
        "torch.ops.c10d.barrier.default",
        "torch.ops.unheard_of.anything.default",
        "torch.ops.higher_order.call_torchbind",
        "torch.ops.higher_order.with_effects",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "math.factorial",
        "math.comb",
        "_operator.call",
    ],
)
def test_operators_that_do_more_than_compute(saved: Path, target: str) -> None:
    rewrite(saved, of_node("relu", target=target))
    refused(saved, "a call of", target)


def test_operators_of_libraries_are_judged_by_their_schemas() -> None:
    library = torch.library.Library("prunus_tests", "DEF")
    library.define("twice(Tensor x, int times=2) -> Tensor")
    library.define("write(str path, Tensor x) -> Tensor")
    library.define("send(Tensor x) -> ()")
    library.define("fetch(int number) -> Tensor")
    said = {
        name: operator_problem(f"torch.ops.prunus_tests.{name}.default")
        for name in ("twice", "write", "send", "fetch")
    }
    assert said["twice"] is None
    assert "name a file" in str(said["write"])
    assert "returns nothing" in str(said["send"])
    assert "takes no tensor" in str(said["fetch"])


@pytest.mark.parametrize(
    "target",
    "relu_.default conv2d.padding einsum.default lstm.input scatter_reduce.two full.default item.default "
    "_assert_scalar.default _safe_softmax.default __and__.Tensor scaled_dot_product_attention.default".split(),
)
def test_operators_of_models_are_allowed(target: str) -> None:
    assert operator_problem(f"torch.ops.aten.{target}") is None


def test_a_function_as_an_argument_is_refused(saved: Path) -> None:
    rewrite(saved, of_node("relu", inputs=[argument("self", as_operator="torch.hub.load")]))
    refused(saved, "a function by its name")


# --- names that would become code, classes that would be imported


@pytest.mark.parametrize("key", ["name", "as_name"])
def test_a_name_does_not_become_code(saved: Path, tmp_path: Path, key: str) -> None:
    mark = tmp_path / "mark"
    code = f"x=__import__('pathlib').Path({str(mark)!r}).touch()"
    rewrite(saved, edit_json("models/", set_everywhere(key, code)))
    refused(saved, "no identifier")
    assert not mark.exists()


def test_an_argument_of_the_forward_does_not_become_code(saved: Path) -> None:
    rewrite(saved, edit_json("models/", set_everywhere("forward_arg_names", ["x=print()"])))
    refused(saved, "no identifier")


@pytest.mark.parametrize("key", ["parameter_name", "buffer_name"])
def test_a_name_that_cannot_be_printed(saved: Path, key: str) -> None:
    rewrite(saved, edit_json("models/", set_everywhere(key, "up\x1b[2J.weight")))
    refused(saved, "cannot be printed")


def spec(kind: str, context: str) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


@pytest.mark.parametrize(
    "text",
    [
        spec("builtins.dict", '["a", {"__enum__": true, "fqn": "antigravity:X", "name": "Y"}]'),
        spec("builtins.dict", '["a", {"\\u005f_enum__": true, "fqn": "antigravity:X", "name": "Y"}]'),
        json.dumps([1, {"type": "collections.defaultdict", "children_spec": [], "context": {
            "default_factory_module": "antigravity", "default_factory_name": "X", "dict_context": []}}]),
        spec("collections.defaultdict", '{"default_factory_module": "os", "default_factory_name": "system"}'),
        "[" * 100_000,
        "not json",
    ],
)  # fmt: skip
def test_a_structure_imports_nothing(saved: Path, text: str) -> None:
    assert treespec_problem(text)
    rewrite(saved, edit_json("models/", set_everywhere("in_spec", text)))
    refused(saved)


def test_structures_of_plain_containers_are_fine() -> None:
    from collections import OrderedDict, defaultdict

    tree = ({"a": [1, (2,)]}, OrderedDict(b=3), defaultdict(list, c=4))
    assert (
        treespec_problem(torch.utils._pytree.treespec_dumps(torch.utils._pytree.tree_structure(tree))) is None
    )


# --- sizes


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Integer(9), Symbol('s0', integer=True))",
        "PowByNatural(Integer(9), Integer(100000))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        "LShift(Integer(1), Integer(10000000000))",
        f"Pow({'+'.join(f's{i}' for i in range(40))}, Integer(8))",
        "Mul(" + ", ".join(["Add(s0, s1, s2, s3)"] * 8) + ")",
        "-" * 100_000 + "1",
        "(" * 300 + "1" + ")" * 300,
        "+".join(["s0"] * 20_000),
        "1" * 5_000,
        "Symbol('u99999999999', integer=True)",
        "Symbol('s0', **{})",
        "factorial(Integer(99999999))",
        "s0 if s0 else s1",
        "s0 @ s1",
        "",
    ],
)
def test_expressions_that_take_long_are_refused(text: str) -> None:
    assert not is_size_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(24), Max(Integer(1), Add(Symbol('s53', positive=True, integer=True), Integer(-2))))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(1)), Integer(2))",
        "Mul(Rational(1, 2), Pow(Symbol('s0', integer=True), Rational(1, 2)))",
        "Float('0.5', precision=53)",
        "Equality(Mod(Symbol('s0', integer=True), Integer(8)), Integer(0))",
        "s0*(s1 + 2)//4",
    ],
)
def test_expressions_of_programs_are_read(text: str) -> None:
    assert is_size_expression(text)


def test_a_size_that_takes_long_is_refused(saved: Path) -> None:
    rewrite(saved, edit_json("models/", set_everywhere("expr_str", "9**9**9")))
    refused(saved, "the expression")


def test_a_symbol_that_torch_would_count_to(saved: Path) -> None:
    bounds = {"u99999999999": {"min_val": 0, "max_val": 8}}
    rewrite(saved, edit_json("models/", set_everywhere("range_constraints", bounds)))
    refused(saved, "u99999999999")


# --- what is computed, and how large it is


def test_arithmetic_that_takes_long(saved: Path) -> None:
    inputs = [argument("a", as_int=7), argument("b", as_int=50_000_000)]
    rewrite(saved, of_node("item", target="_operator.pow", inputs=inputs))
    refused(saved, "pow", "too large")


@pytest.mark.parametrize(("target", "key"), [("ones.default", "as_ints"), ("arange.default", "as_int")])
def test_constants_that_fill_the_memory(saved: Path, target: str, key: str) -> None:
    size = 500_000_000
    value = argument("size" if key == "as_ints" else "end", **{key: [size] if key == "as_ints" else size})
    rewrite(saved, of_node("sum", target=f"torch.ops.aten.{target}", inputs=[value]))
    refused(saved, "where the file says")

    def claim(tree: Any) -> None:
        about = tree["graph_module"]["graph"]["tensor_values"]["sum_1"]
        about["sizes"], about["strides"] = [{"as_int": size}], [{"as_int": 1}]
        about["dtype"] = 7 if key == "as_ints" else 5

    rewrite(saved, edit_json("models/", claim))
    refused(saved, "out of nothing")


def test_values_of_other_sizes_than_the_file_says(saved: Path) -> None:
    def change(tree: Any) -> None:
        tree["graph_module"]["graph"]["tensor_values"]["linear"]["sizes"][1] = {"as_int": 5}

    rewrite(saved, edit_json("models/", change))
    refused(saved, "linear", "(2, 6) float32", "where the file says (2, 5) float32")


def test_operands_that_an_operator_cannot_take(saved: Path) -> None:
    inputs = [
        argument("input", as_tensor={"name": "x"}),
        argument("weight", as_tensor={"name": "p_down_weight"}),
    ]
    rewrite(saved, of_node("linear", inputs=inputs))
    refused(saved, "linear", "cannot be computed")


def test_an_example_input_that_claims_more_than_it_has(saved: Path) -> None:
    content = io.BytesIO()
    torch.save(((torch.zeros(1).expand(10**6, 10**6),), {}), content)
    rewrite(saved, lambda name, data: content.getvalue() if "sample_inputs" in name else data)
    refused(saved, "example input claims")


def test_a_weight_that_claims_more_than_the_file_has(saved: Path) -> None:
    def change(tree: Any) -> None:
        meta = tree["config"]["up.bias"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 10**12}], [{"as_int": 0}]

    rewrite(saved, edit_json("weights_config", change))
    refused(saved, "up.bias", "larger than the file")


def test_an_empty_weight_that_claims_memory(saved: Path) -> None:
    rewrite(saved, lambda name, data: b"" if name.endswith("weight_0") else data)
    refused(saved)


# --- damage


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", [], {}, [[]], {"as_int": 2**70}, 2**70])
def test_values_of_other_types(saved: Path, value: Any) -> None:
    for key in ("sizes", "inputs", "dtype", "nodes", "graph_module", "range_constraints"):

        def change(tree: Any, key: str = key) -> None:
            next(item for item in walk(tree) if key in item)[key] = value

        path = Path(shutil.copy(saved, saved.with_name(f"{key}.pt2")))
        rewrite(path, edit_json("models/", change))
        try:
            capture(path)
        except SourceError as error:
            assert path.name in str(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"graph_module": ' * 1000, "1" * 10_000, "NaN", "\x00"]
)
def test_what_is_no_json(saved: Path, text: str) -> None:
    rewrite(saved, lambda name, data: text.encode() if name.endswith("models/model.json") else data)
    refused(saved)


def central(data: bytearray) -> int:
    return data.rfind(b"PK\x01\x02")


@pytest.mark.parametrize("at", [6, 8, 10, 16, 20, 24, 28, 42, 46])
def test_one_bit_of_the_directory(saved: Path, at: int) -> None:
    data = bytearray(saved.read_bytes())
    data[central(data) + at] ^= 4
    saved.write_bytes(data)
    try:
        capture(saved)
    except SourceError as error:
        assert "damaged" in str(error)


def test_a_name_that_is_no_text(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    at = central(data)
    data[at + 46], data[at + 9] = 0x93, data[at + 9] | 8
    saved.write_bytes(data)
    refused(saved, "damaged")


def test_what_lies_behind_the_directory(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    refused(saved, "does not end with its directory")


def test_entries_that_share_their_bytes(saved: Path) -> None:
    """Ten thousand names for the same bytes would be ten thousand copies."""
    with zipfile.ZipFile(saved, "a") as archive:
        info = archive.infolist()[0]
        twin = zipfile.ZipInfo(f"{info.filename.rpartition('_')[0]}_99")
        twin.header_offset, twin.CRC, twin.file_size, twin.compress_size = (
            info.header_offset, info.CRC, info.file_size, info.compress_size,
        )  # fmt: skip
        archive.filelist.append(twin)
        archive._didModify = True  # type: ignore[attr-defined]
    refused(saved, "overlap")


def test_a_weight_with_one_other_byte(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("weight_0")))
    data = bytearray(saved.read_bytes())
    data[data.find(content)] ^= 1
    saved.write_bytes(data)
    refused(saved, "cannot be read")
