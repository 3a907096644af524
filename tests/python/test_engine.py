"""initialize(), the engine it returns, sherd's optimizers and checkpoints, against plain training on the same data."""
import pytest
import torch
from torch import nn

from ranks import Failure, outcomes, run
from test_sharding import batch, loss_of, make_model

CONFIG = {"strategy": "zero3", "clip": 0.5, "units": ["Block"],
          "optimizer": {"type": "adamw", "lr": 1e-2, "weight_decay": 0.1, "no_decay": ["*norm*"]},
          "schedule": {"type": "cosine", "warmup": 2, "final_ratio": 0.1}, "steps": 6}


def plain_training(ranks, steps, accumulate=1):
    model = make_model()
    decays = [p for n, p in model.named_parameters() if "norm" not in n]
    others = [p for n, p in model.named_parameters() if "norm" in n]
    optimizer = torch.optim.AdamW([{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=1e-2, betas=(0.9, 0.95))
    norms = []
    for step in range(steps):
        warmup, last, final = 2, 5, 0.1
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - 1) / (last - 1))).item())
        scale = (step + 1) / warmup if step < warmup else final + (1 - final) * cosine
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * scale
        losses = [loss_of(model, *batch(step * accumulate + i, rank)) for rank in range(ranks)
                  for i in range(accumulate)]
        (sum(losses) / len(losses)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms, {k: v.detach() for k, v in model.state_dict().items()}


def train(engine, first, last, accumulate=1):
    norms = []
    for step in range(first, last):
        for i in range(accumulate):
            ids, targets = batch(step * accumulate + i, engine.world.rank)
            loss = nn.functional.cross_entropy(engine(ids).flatten(0, 1), targets.flatten())
            engine.backward(loss)
            engine.step()
        norms.append(engine.get_global_grad_norm())
    return norms


def engine_training(steps, accumulate, reduce, optimizer):
    import sherd
    model = make_model()
    made = {"own": None, "torch": lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))}[optimizer]
    config = {**CONFIG, "batch": {"accumulate": accumulate, "reduce": reduce}}
    engine, *_ = sherd.initialize(model=model, config=config, optimizer=made)
    norms = train(engine, 0, steps, accumulate)
    assert (engine.global_steps, engine.micro_steps) == (steps, steps * accumulate)
    return norms, sherd.full_state_dict(model, all_ranks=True)


def assert_same(state, weights):
    assert state.keys() == weights.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("ranks, accumulate, reduce, optimizer",
                         [(1, 1, "every", "own"), (2, 1, "every", "own"), (3, 1, "every", "torch"),
                          (2, 3, "every", "own"), (2, 3, "last", "own"), (2, 2, "last", "torch")])
def test_engine_trains_as_plain(ranks, accumulate, reduce, optimizer):
    norms, weights = plain_training(ranks, 6, accumulate)
    for ours, state in run(ranks, engine_training, 6, accumulate, reduce, optimizer):
        assert ours == pytest.approx(norms, rel=1e-4)
        assert_same(state, weights)


def own_and_torchs(kind, options, dtype):
    """Four steps of both optimizers from the same weights and gradients; a checkpoint of each is read by the other."""
    import sherd
    own_class, torch_class = getattr(sherd.optim, kind), getattr(torch.optim, kind)
    results = []
    for order in ((own_class, own_class), (torch_class, torch_class), (own_class, torch_class),
                  (torch_class, own_class)):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)
        sherd.fully_shard(model)
        state = None
        for half, cls in enumerate(order):
            optimizer = cls(model.parameters(), **options)
            if state is not None:
                optimizer.load_state_dict(state)
            for step in range(2):
                x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * half + step)).to(dtype)
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            state = optimizer.state_dict()
        results.append([p.full_tensor().detach().float() for p in model.parameters()])
    return results


@pytest.mark.parametrize("kind, options",
                         [("AdamW", {"lr": 0.1, "weight_decay": 0.1}), ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
                          ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}), ("SGD", {"lr": 0.1})])
def test_optimizers_are_torchs(kind, options):
    for first, *others in run(2, own_and_torchs, kind, options, torch.float32):
        for other in others:
            for a, b in zip(first, other):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def save_half(folder):
    import sherd
    engine, *_ = sherd.initialize(model=make_model(), config=CONFIG)
    train(engine, 0, 3)
    engine.save_checkpoint(folder, client_state={"seen": 3})


def resume_half(folder, data_ranks):
    """Goes on with the batches of `data_ranks` ranks: each rank here computes all of them, so that any number fits."""
    import sherd
    torch.manual_seed(99)
    engine, *_ = sherd.initialize(model=make_model(), config=CONFIG)
    path, client_state = engine.load_checkpoint(folder)
    assert path.endswith("global_step3") and client_state == {"seen": 3} and engine.global_steps == 3
    for step in range(3, 6):
        losses = [nn.functional.cross_entropy(engine(ids).flatten(0, 1), targets.flatten())
                  for ids, targets in (batch(step, rank) for rank in range(data_ranks))]
        engine.backward(sum(losses) / data_ranks)
        engine.step()
    return sherd.full_state_dict(engine.module)


@pytest.mark.parametrize("saved_by, loaded_by", [(2, 2), (3, 2), (2, 1), (1, 3)])
def test_checkpoint_goes_on_with_any_number_of_ranks(tmp_path, saved_by, loaded_by):
    run(saved_by, save_half, tmp_path)
    _, weights = plain_training(saved_by, 6)
    assert_same(run(loaded_by, resume_half, tmp_path, saved_by)[0], weights)


def full_states():
    import sherd
    model = make_model()
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    other = make_model()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    sherd.shard(model, ["Block"])
    sherd.shard(other, ["Block"])
    other(batch(0, 0)[0])
    state = sherd.full_state_dict(model)
    rank = sherd.world().rank
    assert (state.keys() == expected.keys()) if rank == 0 else state == {}
    sherd.load_full_state_dict(other, state)
    loaded = sherd.full_state_dict(other, all_ranks=True)
    assert all(loaded[k].equal(v) for k, v in expected.items())
    return other(batch(0, 0)[0]).equal(model(batch(0, 0)[0]))


def test_full_state_dict_both_ways():
    assert run(3, full_states) == [True] * 3


def wrong_state():
    import sherd
    model = make_model()
    sherd.fully_shard(model)
    state = sherd.full_state_dict(model)
    state.pop("embed.weight", None)
    sherd.load_full_state_dict(model, state)


def test_a_state_that_does_not_fit_is_an_error_on_all_ranks():
    for failure in outcomes(2, wrong_state):
        assert isinstance(failure, Failure) and failure.kind == "ConfigError" and "embed.weight" in failure.message


@pytest.mark.parametrize("config, message", [
    ({"strategi": "zero3"}, "strategy"), ({"model": {"preset": "tiny"}}, "brings its own"),
    ({"optimizer": {"lr": -1}}, "optimizer.lr"), ({"units": "Block"}, "units"), ({"units": ["Blok"]}, "no module"),
    ({"mesh": {"replicate": 2}}, "replicate"), ({"seed": 1}, "'seed' in a program's configuration"),
    ({"units": []}, "LlamaDecoderLayer"), ({"precision": {"outputs": "fp32"}}, "try 'output'"),
    ("/no/such/file.json", "cannot be read")])
def test_wrong_configurations_are_named(config, message):
    import sherd
    model = make_model()
    with pytest.raises(sherd.ConfigError, match=message):
        sherd.initialize(model=model, config=config)
    assert not isinstance(model, sherd.ShardedModule)


@pytest.mark.parametrize("text, message", [
    ('{"steps": 3, "steps": 4}', "'steps' twice"), ('{"steps": ', "line 1"), ("[]", "JSON object"),
    ('{"steps": 0}', "'steps'")])
def test_a_wrong_file_is_named(tmp_path, text, message):
    import sherd
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(sherd.ConfigError, match=message):
        sherd.initialize(model=make_model(), config=tmp_path / "c.json")


@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_linear_cross_entropy_is_torchs(reduction):
    import sherd
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (3, 5))
    targets[0, :2] = -100
    ours = sherd.linear_cross_entropy(x, weight, targets, reduction=reduction, scale=0.5)
    plain = 0.5 * nn.functional.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), reduction=reduction)
    for a, b in zip((ours, *torch.autograd.grad(ours, (x, weight))), (plain, *torch.autograd.grad(plain, (x, weight)))):
        torch.testing.assert_close(a, b)


def different_models():
    import sherd
    torch.manual_seed(0)
    rank = sherd.world().rank
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5 if rank == 2 else 4))
    sherd.fully_shard(model)
    with pytest.raises(sherd.ConfigError, match=r"'1.weight' \[5, 4\].* on rank 2 and .*\[4, 4\].* on rank 0"):
        model(torch.ones(2, 4))


def test_different_models_on_different_ranks_are_named():
    run(3, different_models)


def with_fsdp2(path, load):
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo")
    model = make_model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    other = [p.full_tensor().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.0 if load else 3.0)
    state = {"model": model.state_dict()}
    if load:
        dcp.load(state, checkpoint_id=path)
        return all(p.full_tensor().equal(3 * o) for p, o in zip(model.parameters(), other))
    dcp.save(state, checkpoint_id=path)
    return True


def with_sherd(path, load):
    import torch.distributed.checkpoint as dcp

    import sherd
    model = sherd.shard(make_model(), ["Block"])
    other = [p.full_tensor().clone() for p in model.parameters()]
    with torch.no_grad():
        model(batch(0, 0)[0])
        for p in model.parameters():
            p.mul_(0.0 if load else 3.0)
    state = {"model": model.state_dict()}
    if load:
        dcp.load(state, checkpoint_id=path)
        model.load_state_dict(state["model"])
        return all(p.full_tensor().equal(3 * o) for p, o in zip(model.parameters(), other))
    dcp.save(state, checkpoint_id=path)
    return True


def test_checkpoints_of_fsdp2_load_into_sherd_and_the_reverse(tmp_path):
    assert all(run(2, with_fsdp2, tmp_path / "a", False) + run(3, with_sherd, tmp_path / "a", True))
    assert all(run(3, with_sherd, tmp_path / "b", False) + run(2, with_fsdp2, tmp_path / "b", True))
