"""The form of the captured graph, and that it computes what the model computes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.capture import architecture_hash, capture, concrete, is_symbolic, size_of
from prunus.inputs import Inputs, as_inputs
from tests.capture.running import ConvNet, TiedLanguageModel, assert_same, calls, run_graph

IDS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))


def test_the_graph_is_lifted_and_flat() -> None:
    model = ConvNet()
    captured = capture(model, torch.randn(2, 3, 8, 8))
    ops = [node.op for node in captured.graph.nodes]
    first_call = ops.index("call_function")
    assert set(ops[:first_call]) == {"placeholder"}
    assert set(ops[first_call:-1]) == {"call_function"} and ops[-1] == "output"
    assert isinstance(captured.graph.output_node().args[0], tuple)
    assert calls(captured) == [
        "aten.conv2d.default",
        "aten.batch_norm.default",
        "aten.relu_.default",
        "aten.conv2d.default",
        "aten.relu_.default",
        "aten.add.Tensor",
        "aten.mean.dim",
        "aten.dropout.default",
        "aten.linear.default",
    ]
    for node in captured.graph.nodes:
        if node.op == "call_function":
            assert isinstance(node.meta["val"], Tensor)
            assert node.meta["nn_module_stack"] and "forward" in node.meta["stack_trace"]


def test_tensors_are_the_models_own_under_their_own_names() -> None:
    model = ConvNet()
    captured = capture(model, torch.randn(2, 3, 8, 8))
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert set(captured.names.values()) == set(own)
    for placeholder, tensor in captured.tensors.items():
        name = captured.names[placeholder]
        assert tensor is own[name]
        assert captured.kinds[placeholder] == (
            "buffer" if "running" in name or "tracked" in name else "parameter"
        )
    assert captured.model is model and captured.aliases == {}


def test_tied_weights_are_one_placeholder() -> None:
    model = TiedLanguageModel()
    captured = capture(model, {"ids": IDS})
    assert captured.aliases == {"embed.weight": ("head.weight",)}
    shared = [placeholder for placeholder, tensor in captured.tensors.items() if tensor is model.embed.weight]
    assert [captured.names[placeholder] for placeholder in shared] == ["embed.weight"]
    node = next(node for node in captured.graph.nodes if node.name == shared[0])
    assert sorted(str(user.target) for user in node.users) == [
        "aten.embedding.default",
        "aten.linear.default",
    ]


def test_unused_parameters_and_unsaved_buffers_are_there() -> None:
    model = TiedLanguageModel()
    captured = capture(model, {"ids": IDS})
    kind = {captured.names[placeholder]: captured.kinds[placeholder] for placeholder in captured.names}
    assert kind["unused"] == "parameter" and kind["positions"] == "buffer"


def test_constants_have_names_of_their_own() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lifted_tensor_0 = nn.Parameter(torch.ones(4))
            self.table = torch.arange(4.0)

        def forward(self, x: Tensor) -> Tensor:
            return (
                x * self.lifted_tensor_0
                + self.table
                + torch.tensor([1.0, 2, 3, 4])
                + torch.tensor([4.0, 3, 2, 1])
            )

    model = Clash()
    captured = capture(model, torch.randn(2, 4))
    names = list(captured.names.values())
    assert len(names) == len(set(names)) == 4
    constants = [captured.names[name] for name, kind in captured.kinds.items() if kind == "constant"]
    assert len(constants) == 3 and "table" in constants and "lifted_tensor_0" not in constants
    assert_same(run_graph(captured, captured.example), model(captured.example.args[0]))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_graph_holds_for_every_batch_size(size: int) -> None:
    model = ConvNet().eval()
    captured = capture(model, torch.randn(size, 3, 8, 8))
    assert captured.batch == max(size, 2) and captured.static_reason is None
    assert captured.example.args[0].shape[0] == size
    assert captured.run_inputs.args[0].shape[0] == max(size, 2)
    for other in (1, 2, 5):
        x = torch.randn(other, 3, 8, 8)
        assert_same(run_graph(captured, Inputs((x,))), model(x))


def test_several_inputs_share_the_batch() -> None:
    model = TiedLanguageModel().eval()
    captured = capture(model, {"ids": IDS[:1], "mask": torch.ones(1, 7)})
    assert captured.batch == 2
    other = {"ids": IDS, "mask": torch.rand(3, 7)}
    assert_same(run_graph(captured, Inputs((), other)), model(**other))


def test_a_fixed_batch_is_captured_as_given_and_said() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(x.shape[0])):
                x = self.fc(x)
            return x

    for size in (1, 3):
        captured = capture(Fixed(), torch.randn(size, 4))
        assert captured.batch is None and f"needs {size} there, at {__file__}" in str(captured.static_reason)
        assert captured.run_inputs is captured.example
        assert calls(captured) == ["aten.linear.default"] * size
        assert not any(
            is_symbolic(size) for size in captured.graph.find_nodes(op="placeholder")[-1].meta["val"].shape
        )


def test_a_model_for_one_image_is_captured_as_given() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] != 1:
                raise ValueError("one image at a time")
            return x * 2

    captured = capture(One(), torch.randn(1, 4))
    assert captured.batch is None
    assert "one image at a time" in str(captured.static_reason) and __file__ in str(captured.static_reason)
    assert captured.run_inputs is captured.example


def test_without_tensors_there_is_no_batch() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))

        def forward(self, scale: float) -> Tensor:
            return self.bias * scale

    captured = capture(Bias(), (2.0,))
    assert captured.batch is None and "no input tensor" in str(captured.static_reason)
    assert_same(run_graph(captured, captured.example), torch.full((3,), 2.0))


def test_any_pytree_goes_in_and_comes_out() -> None:
    model = TiedLanguageModel().eval()
    example = {"ids": IDS, "mask": None, "scale": 2.0, "note": "any", "flag": True}
    captured = capture(model, example)
    assert len(captured.inputs) == captured.in_spec.num_leaves == 5
    placeholders = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    constants = [placeholders[name] for name in captured.inputs[1:]]
    assert [node.meta["val"] for node in constants] == [None, 2.0, "any", True]
    assert not any(node.users for node in constants)
    actual, expected = run_graph(captured, captured.example), model(**example)
    assert list(actual) == list(expected) == ["logits", "hidden", "size"]
    assert actual["hidden"][1] is None and actual["size"] == 7
    assert_same(actual["logits"], expected["logits"])


def test_keywords_keep_the_order_that_the_user_gave() -> None:
    captured = capture(TiedLanguageModel(), {"mask": torch.ones(3, 7), "ids": IDS})
    assert captured.in_spec.child(1).context == ["mask", "ids"]
    dtypes = [captured.graph.find_nodes(op="placeholder")[-2 + i].meta["val"].dtype for i in range(2)]
    assert captured.inputs == ("mask", "ids") and dtypes == [torch.float32, torch.int64]


def test_writes_through_views_stay() -> None:
    class Write(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            y[:, 1:] = x[:, :-1]
            y[:, 0].add_(1)
            x.relu()
            return y

    model = Write()
    captured = capture(model, torch.randn(2, 4))
    assert "aten.copy_.default" in calls(captured) and "aten.add_.Tensor" in calls(captured)
    assert "aten.relu.default" not in calls(captured), "a call without effect and without users stays"
    x = torch.randn(5, 4)
    assert_same(run_graph(captured, as_inputs(x)), model(x))


def test_checks_at_run_time_are_dropped() -> None:
    class Checked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._check(x.shape[0] < 1000)
            return x.to(torch.float64).mul(2).to(torch.float32)

    captured = capture(Checked(), torch.randn(2, 4))
    assert calls(captured) == ["aten.to.dtype", "aten.mul.Tensor", "aten.to.dtype"]


def test_wrappers_without_effect_on_the_numbers_are_inlined() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                y = self.a(x)
                with torch.autocast("cpu", enabled=False):
                    z = self.b(y).tanh()
            w = torch.utils.checkpoint.checkpoint(self.a, z, use_reentrant=False)
            return w, z + y

    model = Wrapped()
    captured = capture(model, torch.randn(2, 4))
    assert calls(captured) == ["aten.linear.default"] * 2 + [
        "aten.tanh.default",
        "aten.linear.default",
        "aten.add.Tensor",
    ]
    assert captured.graph.find_nodes(op="get_attr") == []
    x = torch.randn(3, 4)
    assert_same(run_graph(captured, as_inputs(x)), model(x))
    stacks = [node.meta["nn_module_stack"] for node in captured.graph.nodes if "linear" in str(node.target)]
    assert [list(stack.values())[-1][0].split(".")[-1] for stack in stacks] == ["a", "b", "a"]


def test_autocast_becomes_casts() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.fc(x)

    model = Mixed()
    captured = capture(model, torch.randn(2, 4))
    assert calls(captured) == ["aten.to.dtype"] * 3 + ["aten.linear.default"]
    x = torch.randn(3, 4)
    assert torch.equal(run_graph(captured, as_inputs(x)), model(x))


def test_encoder_layers_are_not_fused_when_frozen() -> None:
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).requires_grad_(False).eval()
    with torch.no_grad():
        captured = capture(encoder, torch.randn(1, 5, 16))
    assert "aten.scaled_dot_product_attention.default" in calls(captured)
    assert_same(run_graph(captured, captured.example), encoder(captured.example.args[0]))


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_the_graph_does_not_depend_on_the_callers_modes(mode: Any) -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = x * 2
            return self.fc(x) if torch.is_grad_enabled() else x

    model, x = Switch(), torch.randn(2, 4)
    plain = capture(model, x)
    with mode():
        inside = capture(model, x)
    assert architecture_hash(inside) == architecture_hash(plain)
    assert inside.graph.output_node().args[0][0].meta["val"].dtype == torch.float32


def test_objects_among_the_outputs_are_left_out_and_named() -> None:
    class Cache:
        def __init__(self, keys: Tensor) -> None:
            self.keys = keys

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": self.fc(x), "cache": Cache(x), "pair": (x, Cache(x))}

    model = Decoder()
    captured = capture(model, torch.randn(2, 4))
    assert captured.left_out == ("cache (Cache)", "Cache")
    out = run_graph(captured, captured.example)
    assert out["cache"] is None and out["pair"][1] is None
    assert_same(out["logits"], model(captured.example.args[0])["logits"])
    assert isinstance(model(captured.example.args[0])["cache"], Cache), (
        "the model itself must still return it"
    )


class Biased(nn.Module):
    """Keeps what it computes from a parameter in a dictionary, as some vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("index", torch.tensor([0, 2, 2, 1]), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.table[:, self.index]
        return x + self.cache["bias"]


@pytest.mark.parametrize("grad", [True, False])
def test_what_a_model_has_cached_is_computed_in_the_graph(grad: bool) -> None:
    model = Biased().eval()
    with torch.set_grad_enabled(grad):
        model(torch.randn(2, 3, 4))
    before = model.cache["bias"]
    captured = capture(model, torch.randn(2, 3, 4))
    assert "constant" not in captured.kinds.values()
    assert "aten.index.Tensor" in calls(captured)
    assert model.cache["bias"] is before


def test_a_dictionary_that_cannot_be_refilled_is_a_constant() -> None:
    model = Biased().eval()
    model.cache = {"bias": torch.ones(3, 4), "other": torch.ones(1)}
    model.forward = lambda x: x + model.cache["bias"]  # type: ignore[method-assign]
    captured = capture(model, torch.randn(2, 3, 4))
    assert list(captured.kinds.values()).count("constant") == 1
    assert_same(run_graph(captured, as_inputs(torch.zeros(2, 3, 4))), torch.ones(2, 3, 4))


def test_sizes_are_plain_integers() -> None:
    class Merge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] * 4, -1).repeat(2, 1)

    captured = capture(Merge(), torch.randn(1, 8, 3))
    nodes = [node for node in captured.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert [size_of(node) for node in nodes] == [(2, 8, 3), (8, 6), (16, 6)]
    assert all(type(size) is int for node in nodes for size in size_of(node))
    numbers = concrete([node.meta["val"] for node in captured.graph.nodes if "sym_size" in str(node.target)])
    assert numbers == [2] and type(numbers[0]) is int
    assert concrete({"a": (1, "b", None)}) == {"a": (1, "b", None)}


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_wrappers_around_the_model_are_taken_off(wrap: Any) -> None:
    model = ConvNet()
    captured = capture(wrap(model), torch.randn(2, 3, 8, 8))
    assert captured.model is model
    assert "conv1.weight" in captured.names.values()


def test_a_model_without_memory_for_its_weights() -> None:
    model = ConvNet().to("meta")
    captured = capture(model, torch.randn(2, 3, 8, 8, device="meta"))
    assert captured.batch == 2
    assert architecture_hash(captured) == architecture_hash(capture(ConvNet(), torch.randn(2, 3, 8, 8)))


@settings(max_examples=15)
@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    size=st.integers(1, 4),
    keyword=st.booleans(),
    inplace=st.booleans(),
    other=st.integers(1, 6),
)
def test_graph_equals_model(widths: list[int], size: int, keyword: bool, inplace: bool, other: int) -> None:
    layers: list[nn.Module] = []
    for a, b in zip([3, *widths], widths, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU(inplace)]
    model = nn.Sequential(*layers)
    example = {"input": torch.randn(size, 3)} if keyword else torch.randn(size, 3)
    captured = capture(model, example)
    x = torch.randn(other, 3)
    inputs = Inputs((), {"input": x}) if keyword else Inputs((x,))
    assert_same(run_graph(captured, inputs), model(x))
