"""What FSDP2's fully_shard and its modules take, by FSDP2's names: lists, numbers of ranks, hooks,
factors, settings of units."""
import collections
import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from fsdp_models import Net, Pair, close, joined, shard_layers, token_loss, tokens, whole
from ranks import run


def trained(strategy):
    """Settings that change memory and messages, and no number."""
    import sherd

    def in_one_list(model, **options):
        sherd.fully_shard(model.embed, **options)
        for layer in model.layers:
            sherd.fully_shard(layer, **options)
        listed = [model.norm, model.head]
        assert sherd.fully_shard(listed, **options) is listed
        return sherd.fully_shard(model, **options)

    ranks = sherd.world().size
    for reshard in (None, True, False, 1, ranks):
        pair = Pair(Net, lambda model: in_one_list(model, strategy=strategy, reshard_after_forward=reshard))
        units = [module for module in pair.ours.modules() if isinstance(module, FSDPModule)]
        assert len(units) == 6 and all(isinstance(module, sherd.ShardedModule) for module in units)
        assert not isinstance(pair.ours.layers[0].up, FSDPModule)
        # Before the model has run, when parameters may have no values yet.
        pair.ours.embed.set_unshard_in_backward(False)
        pair.ours.layers[0].set_modules_to_forward_prefetch([pair.ours.layers[1], pair.ours.norm])
        pair.ours.layers[1].set_modules_to_backward_prefetch([pair.ours.layers[0]])
        for step in range(2):
            for micro, last in enumerate((False, False, True)):
                pair.ours.set_is_last_backward(last)
                pair.ours.set_reshard_after_backward(last)
                pair.ours.set_requires_gradient_sync(last or step == 0)
                pair.backward(token_loss, 3 * step + micro)
            pair.compare_gradients()
            pair.update()
        pair.ours.reset_iter_state()
        pair.ours.set_reduce_scatter_unused_params(True)
        pair.ours.set_force_sum_reduction_for_comms(True)
        pair.ours.set_reshard_after_forward(True, recurse=False)
        pair.train(token_loss, 1)


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_lists_numbers_and_settings_train_as_the_plain_model(transport):
    run(2, joined, transport, (trained, "zero3"), (trained, "ddp"))


def kept_whole():
    """Whole parameters stay after backward, not shown, and are given up by an update."""

    def are_whole():
        try:
            return bool(sum(p._sherd_whole.sum().isfinite() for p in pair.ours.parameters()))
        except RuntimeError:
            return False
    pair = Pair(Net)
    pair.backward(token_loss, 0)
    assert not are_whole()
    pair.ours.set_reshard_after_backward(False)
    pair.backward(token_loss, 1)
    assert are_whole()
    assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in pair.ours.parameters())
    pair.compare_gradients()
    pair.update()
    with torch.no_grad():
        close(pair.ours(tokens(0, 0)), pair.plain(tokens(0, 0)))
    pair.train(token_loss, 2)


def needed_in_backward():
    import sherd
    model = shard_layers(Net())
    model.layers[0].set_unshard_in_backward(False)
    model.layers[1].set_reshard_after_forward(True)
    with pytest.raises((RuntimeError, sherd.FaultError), match=r"layers.0.*while it is sharded"):
        token_loss(model, 0, 0).backward()


def test_whole_parameters_after_backward_and_none_in_it():
    run(2, joined, "gloo", (kept_whole,), (needed_in_backward,))


def factors():
    pair = Pair(Net)
    pair.ours.layers[0].set_gradient_divide_factor(4.0)
    pair.ours.set_reduce_scatter_divide_factor(1.0)
    pair.backward(token_loss)
    for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters()):
        close(whole(q.grad), p.grad * pair.size / (4.0 if name.startswith("layers.0") else 1.0),
              msg=lambda m: f"{name}: {m}")


def hooked(mesh):
    """A hook sees what a backward has reduced, alone and once; what it changes counts."""
    import sherd
    seen = collections.Counter()

    def hook_of(name, factor):
        def hook(reduced):
            seen[name] += 1
            reduced.mul_(factor)
            total = reduced.clone()
            torch.distributed.all_reduce(total)  # all ranks are here
        return hook

    pair = Pair(Net,
                lambda model: shard_layers(model, mesh=None if mesh is None else sherd.distributed.hybrid_mesh(mesh)))
    pair.ours.layers[0].set_all_reduce_hook(hook_of("first", 2.0))
    pair.ours.set_all_reduce_hook(hook_of("root", 0.5))

    def factor(name):
        return 2.0 if name.startswith("layers.0") else 1.0 if name.startswith("layers") else 0.5

    for step in range(2):
        for micro in range(2):
            pair.backward(token_loss, 2 * step + micro)
        for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters()):
            close(whole(q.grad), p.grad * factor(name), msg=lambda m: f"{name}: {m}")
        for model in (pair.plain, pair.ours):
            model.zero_grad(set_to_none=step == 0)
    assert seen == {"first": 4, "root": 4}
    pair.ours.set_all_reduce_hook(None)
    pair.backward(token_loss, 5)
    assert seen == {"first": 5, "root": 4}


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_divide_factors_of_units_and_hooks_on_what_is_reduced(transport):
    run(2, joined, transport, (factors,), (hooked, None), (hooked, 2))


def refused():
    import sherd
    net = Net()
    names = []

    def placement(parameter):
        names.append(parameter.shape)
        return Shard(1) if parameter.dim() == 2 and len(names) > 3 else None
    with pytest.raises(sherd.ConfigError, match=r"Shard\(dim=1\).*shard_placement_fn.*'layers.0.up.weight'"):
        sherd.fully_shard(net, shard_placement_fn=placement)
    assert not any(isinstance(p, torch.distributed.tensor.DTensor) for p in net.parameters())
    for wrong in (3, 0, -1, "yes", 2.0):
        with pytest.raises(sherd.ConfigError, match="reshard_after_forward=.*True, False, None or a number"):
            sherd.fully_shard(net, reshard_after_forward=wrong)
    for wrong, said in (([], "empty"), ([net, 3], "int in a list"), (3, "int")):
        with pytest.raises(sherd.ConfigError, match=said):
            sherd.fully_shard(wrong)
    with pytest.raises(sherd.ConfigError, match="dp_mesh_dims"):
        sherd.fully_shard(net, dp_mesh_dims=object())
    for layer, policy in zip(net.layers, (OffloadPolicy(), CPUOffloadPolicy())):
        sherd.fully_shard([layer, layer.up], shard_placement_fn=lambda p: Shard(0), offload_policy=policy)
        assert not isinstance(layer.up, FSDPModule)
    sherd.fully_shard(net, offload_policy=OffloadPolicy())
    # torch 2.11 has no such method.
    newer = [(lambda: net.set_separate_reduce_scatter_group(), "separate_reduce_scatter")]
    for call, name in ((lambda: net.set_custom_all_gather(None), "set_custom_all_gather"),
                       (lambda: net.set_post_optim_event(None), "post_optim"),
                       (lambda: net.set_reshard_after_forward(2), "set_reshard_after_forward"),
                       (lambda: net.set_unshard_in_backward(None), "set_unshard_in_backward"),
                       (lambda: net.set_all_reduce_hook(print, stream=1), "stream"),
                       (lambda: net.set_gradient_divide_factor(0), "above 0"),
                       (lambda: copy.deepcopy(net), "before fully_shard"),
                       (lambda: copy.deepcopy(net.layers), "before fully_shard"),
                       *(newer if hasattr(FSDPModule, "set_separate_reduce_scatter_group") else [])):
        with pytest.raises(sherd.ConfigError, match=name):
            call()
    import pickle
    with pytest.raises(sherd.ConfigError, match="state_dict"):
        pickle.dumps(net)
    net.twice = lambda ids: net(ids) * 2
    register_fsdp_forward_method(net, "twice")
    with pytest.raises(sherd.ConfigError, match="register_forward_method"):
        net.twice(tokens(0, 0))
    sequence = sherd.fully_shard(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)))
    first = sequence[:2]
    assert type(first) is nn.Sequential and len(first) == 2 and first[0] is sequence[0]


def test_what_is_refused_is_refused_by_name():
    run(1, joined, "auto", (refused,))
