"""`evaluate`: what a function of the user's says of the model, step by step."""

from typing import Any

import pytest
import torch
from torch import nn

import prunus
from tests.recovery.test_recover import Residual, error, smooth

TARGET = prunus.Target(macs=0.6)


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    return Residual()


def judge(original: nn.Module, seen: list[nn.Module] | None = None) -> Any:
    data = smooth(32)

    def evaluate(model: nn.Module) -> float:
        assert not model.training and not torch.is_grad_enabled()
        if seen is not None:
            seen.append(model)
        return error(original.eval() if original is not model else model, model, data)

    return evaluate


@pytest.mark.parametrize("recover", [True, "compensate", "batch_norm"])
def test_every_step_has_its_number(model: Residual, recover: bool | str) -> None:
    seen: list[nn.Module] = []
    reference = Residual()
    reference.load_state_dict(model.state_dict())
    data = smooth(32)
    result = prunus.compress(
        model, data[0][:2], target=TARGET, data=data, recover=recover, evaluate=judge(reference, seen)
    )
    values = result.report.evaluation
    assert values is not None and seen[0] is model and model.training
    steps = ["compensate", "batch_norm"] if recover is True else [recover]
    assert list(values) == ["original", "cut", *steps] and values["original"] == 0
    assert values[steps[-1]] == error(reference, result.model.eval(), data)  # type: ignore[index]
    assert values["cut"] > 0 and all(isinstance(m, Residual) for m in seen)
    if recover is not True:
        return
    alone = prunus.apply(model, result.plan, data=data, recover="compensate", evaluate=judge(reference))
    plain = prunus.apply(model, result.plan, evaluate=judge(reference))
    assert alone.report.evaluation and plain.report.evaluation
    assert alone.report.evaluation["compensate"] == pytest.approx(values["compensate"], rel=1e-4)
    assert plain.report.evaluation == {"original": 0.0, "cut": values["cut"]}
    assert f"Evaluated: 0 the original, {values['cut']:.6g} cut" in str(result.report)
    assert result.report.to_dict()["evaluation"] == values


def test_without_it_nothing_is_said(model: Residual) -> None:
    result = prunus.compress(model.eval(), smooth(4)[0], target=TARGET)
    assert result.report.evaluation is None and "Evaluated" not in str(result.report)


def test_several_steps_have_one_number(model: Residual) -> None:
    first = prunus.compress(model.eval(), smooth(4)[0], target=TARGET)
    both = prunus.decompose(first, ranks={"head": 2})
    result = prunus.apply(model, both.plan, evaluate=lambda m: sum(p.numel() for p in m.parameters()))
    assert result.report.evaluation == {
        "original": sum(p.numel() for p in model.parameters()),
        "result": sum(p.numel() for p in result.model.parameters()),
    }


@pytest.mark.parametrize(("returned", "said"), [(None, "NoneType"), (float("nan"), "nan"), ("good", "a str")])
def test_what_is_no_number_is_found_before_the_work(model: Residual, returned: Any, said: str) -> None:
    with pytest.raises(prunus.ConfigError, match=rf"evaluate returned .*{said}.*\(original\)"):
        prunus.compress(model.eval(), smooth(4)[0], target=TARGET, evaluate=lambda m: returned)
    with pytest.raises(prunus.ConfigError, match="evaluate is a float"):
        prunus.compress(model.eval(), smooth(4)[0], target=TARGET, evaluate=0.5)  # type: ignore[arg-type]


def test_a_program_is_evaluated_too(model: Residual) -> None:
    x = smooth(4)[0]
    program = torch.export.export(model.eval(), (x,))
    result = prunus.compress(program, target=TARGET, evaluate=lambda m: float(m(x).sum()))
    assert result.report.evaluation
    with torch.no_grad():
        wanted = {"original": float(model(x).sum()), "cut": float(result.model(x).sum())}
    assert result.report.evaluation == pytest.approx(wanted, rel=1e-4)
