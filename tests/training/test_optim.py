from __future__ import annotations

import pytest
import torch
from torch import nn

from ra_blip.config import ParamRule, TrainConfig
from ra_blip.errors import ConfigError
from ra_blip.training.optim import apply_rules, build_optimizer, describe, schedule


def net() -> nn.ModuleDict:
    return nn.ModuleDict({"eye": nn.Linear(2, 3), "mouth": nn.Linear(3, 4), "spare": nn.Linear(1, 1)})


RULES = [
    ParamRule(r"eye\..*"),
    ParamRule(r".*\.bias", lr=1e-2),
    ParamRule(r"mouth\..*|spare\..*", lr=1e-3, weight_decay=0.1),
    ParamRule(".*", lr=9.0),
]


def test_the_first_rule_that_matches_wins() -> None:
    model = net()
    table = apply_rules(model, RULES)
    assert [row.names for row in table] == [
        ["eye.weight", "eye.bias"],
        ["mouth.bias", "spare.bias"],
        ["mouth.weight", "spare.weight"],
        [],
    ]
    assert [row.size for row in table] == [9, 5, 13, 0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"mouth.bias", "spare.bias", "mouth.weight", "spare.weight"}


def test_a_rule_thaws_what_was_frozen() -> None:
    model = net().requires_grad_(False)
    apply_rules(model, [ParamRule(".*", lr=1e-3)])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([ParamRule(r"eye\..*", lr=1e-3)], "no rule matches 'mouth.weight'"),
        ([ParamRule("mouth", lr=1e-3), ParamRule(r"eye\..*", lr=1e-3)], "no rule matches 'mouth.weight'"),  # whole name
        ([ParamRule(r"eye\..*"), ParamRule(".*")], "every parameter is frozen"),
        ([ParamRule(".*"), ParamRule(".*", lr=1e-3)], "every parameter is frozen"),
        ([ParamRule("(", lr=1e-3)], r"'\(' is not a regular expression"),
        ([], "no rule matches"),
    ],
)
def test_wrong_rules(rules: list[ParamRule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_rules(net(), rules)


def test_half_precision_is_not_trained() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    with pytest.raises(ConfigError, match=r"'1.weight', which is bfloat16: set model.precision"):
        apply_rules(net, [ParamRule(".*", lr=1e-3)])
    apply_rules(net, [ParamRule("1.*"), ParamRule(".*", lr=1e-3)])


def test_groups_of_the_optimizer() -> None:
    model = net()
    optimizer = build_optimizer(model, apply_rules(model, RULES), TrainConfig(betas=[0.8, 0.9]))
    groups = [(g["peak"], g["weight_decay"], g["betas"], len(g["params"])) for g in optimizer.param_groups]
    assert groups == [(1e-2, 0.0, (0.8, 0.9), 2), (1e-3, 0.1, (0.8, 0.9), 2)]
    assert optimizer.param_groups[1]["params"][0] is model["mouth"].weight


def test_frozen_weights_do_not_move() -> None:
    model = net()
    optimizer = build_optimizer(model, apply_rules(model, RULES), TrainConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (model["mouth"](model["eye"](torch.ones(1, 2))).sum() + model["spare"](torch.ones(1, 1)).sum()).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"mouth.weight", "mouth.bias", "spare.weight", "spare.bias"}


def test_the_table_for_people() -> None:
    lines = describe(apply_rules(net(), RULES)).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == [r"eye\..*", "frozen", "0", "2", "9"]
    assert lines[3].split()[1:] == ["1.0e-03", "0.1", "2", "13"]


def test_schedule() -> None:
    config = TrainConfig(steps=110, warmup=10, floor=0.2)
    assert schedule(0, config) == pytest.approx(0.1)
    assert schedule(4, config) == pytest.approx(0.5)
    assert schedule(9, config) == schedule(10, config) == pytest.approx(1.0)
    assert schedule(35, config) == pytest.approx(0.2 + 0.8 * (1 + 0.5**0.5) / 2)  # a quarter of the way: cos 45 degrees
    assert schedule(60, config) == pytest.approx(0.6)
    assert schedule(110, config) == schedule(500, config) == pytest.approx(0.2)
    rates = [schedule(step, config) for step in range(111)]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_without_warmup_or_with_nothing_else() -> None:
    assert schedule(0, TrainConfig(steps=10, warmup=0)) == 1.0
    assert schedule(9, TrainConfig(steps=10, warmup=10)) == 1.0
    assert schedule(2, TrainConfig(steps=3, warmup=100)) == pytest.approx(0.03)


def tower() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"patches": nn.Linear(2, 2, bias=False), "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in "abc")}
    )


def test_layer_wise_decay_lowers_the_rate_with_every_layer_further_down() -> None:
    rules = [ParamRule(r"(blocks\.(?P<layer>\d+)\.)?.*", lr=1e-3, weight_decay=0.1, layer_decay=0.5)]
    table = apply_rules(tower(), rules)
    assert [row.names for row in table] == [
        ["patches.weight"],
        *[[f"blocks.{layer}.weight", f"blocks.{layer}.bias"] for layer in range(3)],
    ]
    assert [row.rule.lr for row in table] == pytest.approx([1e-3 / 16, 1e-3 / 8, 1e-3 / 4, 1e-3 / 2])
    assert [row.size for row in table] == [4, 6, 6, 6] and {row.rule.weight_decay for row in table} == {0.1}
    assert [group["peak"] for group in build_optimizer(tower(), table, TrainConfig()).param_groups] == pytest.approx(
        [row.rule.lr for row in table]
    )
    assert describe(table).count(" layer ") == 4


def test_layer_wise_decay_without_the_number_of_the_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs the layer's number as \(\?P<layer>\\d\+\)"):
        apply_rules(tower(), [ParamRule(".*", lr=1e-3, layer_decay=0.9)])
    assert len(apply_rules(tower(), [ParamRule("blocks.*", layer_decay=0.9), ParamRule(".*", lr=1e-3)])) == 2  # frozen
