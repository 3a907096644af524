"""Mixed precision: FSDP2's policy, the configuration's, masters of 16-bit parameters, and the loss scale."""
import copy
import math

import pytest
import torch
from torch import nn

from fsdp_models import Net, shard_layers, token_loss, tokens
from ranks import RanksFailed, run

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def seeded(make=Net, **options):
    torch.manual_seed(0)
    return make(**options)


class Seeing(nn.Module):
    """A model that remembers the types it saw."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.seen = []

    def forward(self, x, scale=None):
        self.seen.append((x.dtype, self.inner.weight.dtype, None if scale is None else scale.dtype))
        return self.inner(x)


def types_under(policy):
    import sherd
    model = sherd.fully_shard(Seeing(), mp_policy=policy)
    out = model(torch.ones(2, 8), scale=torch.ones(1))
    out.float().sum().backward()
    return model.seen, out.dtype, model.inner.weight.dtype, model.inner.weight.grad.dtype


@pytest.mark.parametrize("whose", ("sherd", "torch"))
def test_types_are_those_of_fsdp2(whose):
    import torch.distributed.fsdp

    import sherd
    make = (sherd if whose == "sherd" else torch.distributed.fsdp).MixedPrecisionPolicy
    for policy, seen, out in [(make(param_dtype=BF16), (BF16, BF16, BF16), BF16),
                              (make(param_dtype=BF16, output_dtype=FP32), (BF16, BF16, BF16), FP32),
                              (make(reduce_dtype=BF16, output_dtype=FP16), (FP32, FP32, FP32), FP16),
                              (make(), (FP32, FP32, FP32), FP32)]:
        assert run(1, types_under, policy)[0] == ([seen], out, FP32, FP32)
    uncast = make(param_dtype=FP32, cast_forward_inputs=False)
    assert run(1, types_under, uncast)[0][0] == [(FP32, FP32, FP32)]


def one_gradient(model, dtype, rank):
    """What a rank's backward makes with parameters of this type, as it travels."""
    plain = copy.deepcopy(model).to(dtype)
    token_loss(plain, 0, rank).backward()
    return {name: p.grad for name, p in plain.named_parameters()}


def gradients_under_a_policy(reduce, transport, strategy):
    import sherd
    world = sherd.init(transport=transport)
    model = seeded()
    parts = [one_gradient(model, BF16, rank) for rank in range(world.size)]
    policy = sherd.MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=reduce)
    shard_layers(model, mp_policy=policy, strategy=strategy)
    token_loss(model, 0, world.rank).backward()
    for name, parameter in model.named_parameters():
        expected = sum(part[name].to(reduce or BF16).float() for part in parts) / world.size
        assert parameter.dtype == FP32 and torch.equal(parameter.grad.full_tensor(), expected), name


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_gradients_travel_in_the_reduce_type_and_are_summed_in_fp32(transport):
    for reduce in (None, FP32, FP16):
        for strategy in ("zero3", "ddp"):
            run(2, gradients_under_a_policy, reduce, transport, strategy)


def updated_by_given_gradients(make, dtype):
    """Parameters and states after three steps of gradients that are the same for any number of ranks."""
    import sherd
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(256, 64), nn.Linear(256, 12, bias=False), nn.LayerNorm(100)).to(dtype)
    sherd.fully_shard(model)
    optimizer = make(list(model.named_parameters()))
    for step in range(3):
        for parameter in model.parameters():
            whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
            parameter.grad = sherd.rows.over_rows(sherd.rows.rows_like(whole, parameter).contiguous(), parameter)
        optimizer.step()
    states = [{name: value.full_tensor() if hasattr(value, "full_tensor") else value
               for name, value in optimizer.state[p].items()}
              for p in model.parameters()]
    return [p.detach().full_tensor() for p in model.parameters()], states


def muon(named, **options):
    from sherd import optim
    return optim.Muon([{"params": [each for each in named if (each[1].dim() == 2) == matrices], "use_muon": matrices}
                       for matrices in (True, False)], **options)


def makes():
    from sherd import optim
    return {
        "muon": (muon, FP32), "muon split": (lambda p: muon(p, master="split", adjust_lr_fn="match_rms_adamw"), BF16),
        "muon none": (lambda p: muon(p, master="none", nesterov=False), BF16), "muon fp16": (muon, FP16),
        "adamw": (optim.AdamW, FP32), "adamw8bit": (optim.AdamW8bit, FP32), "adam8bit": (optim.Adam8bit, FP32),
        "bf16 nearest": (optim.AdamW, BF16), "bf16 fp32 master": (lambda p: optim.AdamW(p, master="fp32"), BF16),
        "bf16 split": (lambda p: optim.AdamW8bit(p, master="split"), BF16),
        "bf16 none": (lambda p: optim.AdamW8bit(p, master="none"), BF16),
        "fp16 fp32 master": (lambda p: optim.AdamW8bit(p, master="fp32"), FP16),
        "sgd split": (lambda p: optim.SGD(p, momentum=0.9, master="split"), BF16),
        "sgd none": (lambda p: optim.SGD(p, momentum=0.9, master="none"), BF16),
    }


def updated_by_all():
    return {name: updated_by_given_gradients(*each) for name, each in makes().items()}


def test_optimizers_give_the_same_bits_for_any_number_of_ranks():
    alone = run(1, updated_by_all)[0]
    assert alone["bf16 split"][1][0]["remainder"].shape == (64, 256, 2)  # bytes
    assert alone["bf16 fp32 master"][1][0]["master"].dtype == FP32
    for ranks in (2, 3, 4):
        for got in run(ranks, updated_by_all)[:1]:
            for name, (weights, states) in got.items():
                for i, weight in enumerate(weights):
                    assert torch.equal(weight, alone[name][0][i]), (ranks, name, i)
                    for key, value in states[i].items():
                        assert torch.equal(value, alone[name][1][i][key]), (ranks, name, i, key)


def casts_of_the_configuration():
    import sherd
    seen = {}
    for name, more in {"none": {}, "output": {"output": "fp32"},
                       "inputs": {"output": "bf16", "cast_inputs": False}}.items():
        engine, *_ = sherd.initialize(model=Seeing(), config={"precision": {"compute": "fp16", **more}})
        try:
            result = str(engine(torch.ones(2, 8)).dtype)
        except RuntimeError as error:
            result = str(error)
        seen[name] = (result, str(engine.module.seen[0][0]))
    messages = []
    for wrong in ({"output": "half"}, {"cast_inputs": 1}):
        try:
            sherd.initialize(model=Seeing(), config={"precision": wrong})
        except sherd.ConfigError as error:
            messages.append(str(error))
    return seen, messages


def test_outputs_and_inputs_are_cast_as_the_configuration_says():
    seen, messages = run(1, casts_of_the_configuration)[0]
    assert seen["none"] == ("torch.float16", "torch.float16") and seen["output"] == ("torch.float32", "torch.float16")
    # The linear gets what the user gave.
    assert seen["inputs"][1] == "torch.float32" and "same dtype" in seen["inputs"][0]
    assert "\"half\" (a string) for 'precision.output'" in messages[0]
    assert "got 1 for 'precision.cast_inputs'" in messages[1]


def mean_of_small_steps():
    from sherd import optim
    parameter = nn.Parameter(torch.ones(4096, dtype=BF16))
    optimizer = optim.SGD([("p", parameter)], lr=1.0, master="none")
    for _ in range(64):
        parameter.grad = torch.full_like(parameter, 2.0 ** -12)  # an eighth of what bf16 can tell below 1
        optimizer.step()
    return parameter.detach().float().mean().item(), parameter.detach().float().std().item()


def test_random_rounding_draws_anew_in_each_step():
    mean, deviation = run(1, mean_of_small_steps)[0]
    assert abs(mean - (1 - 64 * 2.0 ** -12)) < 0.002
    assert deviation < 0.02  # all have moved about as far: not some in every step and others in none


def trained(config, steps=6, poison=None, linear_scale=1.0):
    """Losses of this rank and what the engine says; poison: (rank, step) whose gradients become infinite."""
    import sherd
    config = {"units": ["Block"], "optimizer": {"lr": 1e-2}, **config}
    engine, *_ = sherd.initialize(model=seeded(), config=config)
    losses, scales, norms = [], [], []
    for step in range(steps):
        loss = token_loss(engine, step, engine.world.rank) * linear_scale
        if poison == (engine.world.rank, step):
            loss = loss * torch.ones((), requires_grad=True).mul(1.0)
            loss.register_hook(lambda gradient: gradient * math.inf)
        scales.append(engine.loss_scale)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        norms.append(engine.get_global_grad_norm())
    weights = {name: p.detach().full_tensor().float() for name, p in engine.module.named_parameters()}
    types = {name: p.dtype for name, p in engine.module.named_parameters()}
    return losses, scales, norms, engine.skipped_steps, weights, types


@pytest.mark.parametrize("precision",
                         ({"storage": "bf16"}, {"compute": "bf16"}, {"compute": "fp16"}, {"compute": "auto"},
                          {"storage": "bf16", "reduce": "bf16", "master": "none"},
                          {"compute": "bf16", "norms": "compute"}))
def test_precision_of_the_configuration_trains(precision):
    exact = run(2, trained, {})[0]
    losses, scales, _, skipped, weights, types = run(2, trained, {"precision": precision})[0]
    storage = {"fp16": FP16}.get(precision.get("compute"), BF16)
    assert types["layers.0.up.weight"] == storage
    assert types["layers.0.norm.weight"] == (storage if precision.get("norms") == "compute" else FP32)
    assert losses == pytest.approx(exact[0], rel=6e-2)
    assert skipped <= (3 if precision.get("compute") == "fp16" else 0)  # until the scale fits
    assert scales[0] == (65536 if precision.get("compute") == "fp16" else 1)


def test_a_split_master_has_the_losses_of_an_fp32_master():
    results = [run(2, trained, {"precision": {"storage": "bf16", "master": master}})[0] for master in ("split", "fp32")]
    assert results[0][0] == results[1][0]


def test_a_power_of_two_as_loss_scale_changes_nothing():
    plain, scaled = (run(2, trained, {"loss_scale": scale})[0] for scale in (None, 1024))
    assert plain[0] == scaled[0] and plain[2] == scaled[2]
    assert all(torch.equal(plain[4][name], scaled[4][name]) for name in plain[4])


def test_overflow_on_one_rank_skips_the_step_on_all():
    scaling = {"initial": 256, "window": 2, "hysteresis": 1}
    for got in run(2, trained, {"loss_scale": scaling}, 6, (1, 2)):
        assert got[1] == [256, 256, 512, 256, 256, 512] and got[3] == 1
        assert [math.isfinite(norm) for norm in got[2]] == [True, True, False, True, True, True]


def test_gradients_that_are_not_finite_name_where_they_came_from():
    with pytest.raises(RanksFailed) as failed:
        run(2, trained, {}, 3, (1, 1))
    for failure in failed.value.failures.values():
        assert failure.kind == "FaultError"
        assert "the gradient of 'layers.1.down.bias' in unit 'layers.1' (rank 0)" in failure.message
    with pytest.raises(RanksFailed) as failed:
        run(2, trained, {"loss_scale": {"initial": 2, "hysteresis": 1}}, 4, None, math.inf)
    for failure in failed.value.failures.values():
        assert "smallest loss scale, 1" in failure.message and "try a lower learning rate" in failure.message


def wrong_policies():
    import sherd
    messages = []
    for call in (lambda: sherd.fully_shard(nn.Linear(2, 2), mp_policy=BF16),
                 lambda: sherd.fully_shard(nn.Linear(2, 2),
                                           mp_policy=sherd.MixedPrecisionPolicy(param_dtype=torch.int8)),
                 lambda: sherd.optim.AdamW(nn.Linear(2, 2).parameters(), master="half"),
                 lambda: sherd.initialize(model=Net(), config={"precision": {"storage": "fp16", "master": "split"}}),
                 lambda: sherd.initialize(model=Net(), config={"precision": {"storage": "bf16", "master": "split"}},
                                          optimizer=lambda groups: torch.optim.AdamW(groups))):
        try:
            call()
        except sherd.ConfigError as error:
            messages.append(str(error))
    return messages


def test_mistakes_are_named():
    messages = run(1, wrong_policies)[0]
    assert len(messages) == 5 and "with an optimizer of yours" in messages[4]
    assert "got a dtype as mp_policy" in messages[0] and "param_dtype=torch.int8" in messages[1]
    assert "master='half'" in messages[2] and "precision.master" in messages[3]


def scaled(folder, load):
    import sherd
    config = {"units": ["Block"], "precision": {"compute": "fp16"},
              "loss_scale": {"initial": 4096, "window": 3, "hysteresis": 1}}
    engine, *_ = sherd.initialize(model=seeded(), config=config)
    if load:
        engine.load_checkpoint(folder)
    scales = []
    for step in range(4, 9) if load else range(9):
        loss = token_loss(engine, step, 0)
        if step == 1:
            loss = loss * torch.ones((), requires_grad=True).mul(1.0)
            loss.register_hook(lambda gradient: gradient * math.inf)
        scales.append(engine.loss_scale)
        engine.backward(loss)
        engine.step()
        if step == 3 and not load:
            engine.save_checkpoint(folder)
    return scales[-5:], engine.skipped_steps, engine.global_steps


def test_a_checkpoint_keeps_the_loss_scale_and_its_counters(tmp_path):
    expected = run(2, scaled, str(tmp_path), False)[0]
    assert expected == ([2048, 4096, 4096, 4096, 8192], 1, 9)
    assert run(1, scaled, str(tmp_path), True)[0] == expected


def saved(config, folder, load):
    import sherd
    engine, *_ = sherd.initialize(model=seeded(), config={"units": ["Block"], **config})
    if load:
        engine.load_checkpoint(folder)
    losses = []
    for step in range(3, 6) if load else range(6):
        loss = nn.functional.cross_entropy(engine(tokens(step, 0)[:, :-1]).flatten(0, 1),
                                           tokens(step, 0)[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if step == 2:
            engine.save_checkpoint(folder)
    return losses[-3:]


def test_a_checkpoint_of_a_16_bit_model_goes_on(tmp_path):
    config = {"precision": {"storage": "bf16"}, "optimizer": {"type": "adamw8bit", "lr": 1e-2}}
    expected = run(2, saved, config, str(tmp_path), False)[0]
    assert run(2, saved, config, str(tmp_path), True)[0] == expected
