"""Gradients of sharded parameters until the step: accumulation, zero_grad, what users do to .grad, clipping."""
import functools

import pytest
import torch
from torch.distributed.tensor import DTensor

from fsdp_models import Net, Pair, adam, close, joined, shard_layers, shard_root, token_loss, whole
from ranks import run


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def accumulate(sync_every, shard, micro_batches=3):
    pair = Pair(Net, shard)
    for step in range(3):
        for micro in range(micro_batches):
            last = micro == micro_batches - 1
            pair.ours.set_requires_gradient_sync(sync_every or last)
            before = [p.grad for p in pair.ours.parameters()]
            pair.backward(token_loss, 10 * step + micro)
            if sync_every:
                pair.compare_gradients()
            elif not last:
                assert all(a is b for a, b in zip(before, (p.grad for p in pair.ours.parameters())))
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def accumulate_all():
    for sync_every in (True, False):
        for shard in (shard_layers, shard_root):
            accumulate(sync_every, shard)


@pytest.mark.parametrize("sync_every", (True, False))
def test_gradients_accumulate_over_micro_batches(sync_every):
    run(2, joined, "auto", (accumulate, sync_every, shard_layers), (accumulate, sync_every, shard_root))


def mixed_accumulation():
    """A reduced micro-batch, two held ones and a reduced one again; then a held one on top of zeroed gradients."""
    pair = Pair(Net, optimizer=sgd)
    for step in range(2):
        for micro, sync in enumerate((True, False, False, True)):
            pair.ours.set_requires_gradient_sync(sync)
            pair.backward(token_loss, 10 * step + micro)
        pair.compare_gradients()
        pair.update(set_to_none=step == 0)
    pair.compare_weights()


def test_reduced_and_held_micro_batches_mix():
    run(3, joined, "auto", (mixed_accumulation,))


def accumulation_within_a_unit():
    """Some units hold what others reduce; what they hold comes with the next reduction of theirs."""
    pair = Pair(functools.partial(Net, 3), optimizer=sgd)
    one, two = pair.ours.layers[0], pair.ours.layers[1]
    plain = {id(module): other for module, other in zip(pair.ours.modules(), pair.plain.modules())}
    for step in range(3):
        for micro, held in enumerate(((one,), (one, two, pair.ours), ())):
            for module in (pair.ours, one, two):
                module.set_requires_gradient_sync(module not in held, recurse=False)
            pair.backward(token_loss, 10 * step + micro)
            late = {id(p) for module in held for p in (plain[id(module)].parameters(recurse=module is not pair.ours))}
            if pair.ours in held:
                late |= {id(p) for module in (pair.plain.embed, pair.plain.norm, pair.plain.head)
                         for p in module.parameters()}
            for (name, p), q in zip(pair.plain.named_parameters(), pair.ours.parameters()):
                if id(p) not in late:
                    close(whole(q.grad), p.grad, msg=lambda m: f"{name}: {m}")
                elif micro == 0:
                    assert q.grad is None, name
        pair.compare_gradients()
        pair.update()
    # All of them, and then all but one.
    pair.ours.set_requires_gradient_sync(False)
    pair.backward(token_loss, 50)
    assert all(q.grad is None for q in pair.ours.parameters())
    two.set_requires_gradient_sync(True)
    pair.backward(token_loss, 51)
    reduced = [name for name, q in pair.ours.named_parameters() if q.grad is not None]
    assert reduced == [f"layers.1.{n}" for n, _ in two.named_parameters()]
    pair.ours.set_requires_gradient_sync(True)
    pair.backward(token_loss, 52)
    pair.compare_gradients()
    pair.update()
    pair.compare_weights()


def test_gradient_sync_of_some_units():
    run(2, joined, "auto", (accumulation_within_a_unit,))


def divided():
    pair = Pair(Net)
    pair.ours.set_gradient_divide_factor(1.0)
    pair.backward(lambda model, step, rank: token_loss(model, step, rank))
    for p, q in zip(pair.plain.parameters(), pair.ours.parameters()):
        close(whole(q.grad), p.grad * pair.size)


def test_gradients_are_divided_by_the_set_factor():
    run(3, joined, "auto", (divided,))


def zeroed():
    """set_to_none and not, in turns: gradients of zeros are gradients, which Adam's moments notice."""
    pair = Pair(Net)
    for step, none in enumerate((True, False, False, True, False)):
        pair.backward(token_loss, step)
        pair.compare_gradients()
        pair.update(set_to_none=none)
        for p in pair.ours.parameters():
            assert p.grad is None if none else isinstance(p.grad, DTensor) and not whole(p.grad).any()
    for optimizer in pair.optimizers:
        optimizer.step()
    pair.compare_weights()


def test_zero_grad_to_none_and_to_zeros():
    run(2, joined, "auto", (zeroed,))


def kept():
    pair = Pair(Net, optimizer=sgd)
    held = []
    for step in range(4):
        pair.backward(token_loss, step)
        pair.compare_gradients()
        kind = step % 3
        grads = [p.grad if kind == 0 else p.grad.to_local() if kind == 1 else p.grad._local_tensor[:1]
                 for p in pair.ours.parameters()]
        held.append((grads, [(g.to_local() if isinstance(g, DTensor) else g).clone() for g in grads]))
        pair.update()
        for grads, values in held:
            for grad, value in zip(grads, values):
                assert torch.equal(grad.to_local() if isinstance(grad, DTensor) else grad, value)
    pair.compare_weights()


def test_gradients_that_a_user_keeps_do_not_change():
    run(2, joined, "auto", (kept,))


def replaced():
    """p.grad = another DTensor, before the step and before further accumulation; and one parameter's set to None."""
    pair = Pair(Net, optimizer=sgd)
    for step in range(3):
        pair.backward(token_loss, 10 * step)
        for model in (pair.plain, pair.ours):
            for i, p in enumerate(model.parameters()):
                p.grad = None if i == step else p.grad * (0.5 + i / 20) if i % 2 else p.grad
        pair.backward(token_loss, 10 * step + 1)
        pair.compare_gradients()
        for model in (pair.plain, pair.ours):
            for p in model.parameters():
                p.grad = p.grad * 2.0
        pair.update(set_to_none=step != 1)
    for model in (pair.plain, pair.ours):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    pair.step(token_loss, 50)
    pair.compare_weights()


def test_gradients_that_a_user_replaces_are_used_and_added_to():
    run(2, joined, "auto", (replaced,))


def changed_in_place():
    pair = Pair(Net, optimizer=sgd)
    for step in range(3):
        pair.backward(token_loss, 10 * step)
        for model in (pair.plain, pair.ours):
            for p in model.parameters():
                p.grad.mul_(3.0)
            torch._foreach_mul_([p.grad for p in model.parameters()], 0.25)
        if step == 1:
            pair.step(token_loss, 10 * step + 1)
    pair.compare_weights()


def test_gradients_that_a_user_scales_in_place():
    run(3, joined, "auto", (changed_in_place,))


def clipped(kind, foreach=None):
    pair = Pair(Net, optimizer=sgd)
    for step in range(3):
        pair.backward(token_loss, step)
        norms = [torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, norm_type=kind, foreach=foreach)
                 for model in (pair.plain, pair.ours)]
        close(whole(norms[1]), norms[0])
        assert norms[0] > 0.05
        pair.compare_gradients()
        again = torch.nn.utils.get_total_norm([p.grad for p in pair.ours.parameters()], norm_type=kind)
        close(whole(again), torch.tensor(0.05))
        pair.update()
    pair.compare_weights()


def clipped_all(foreach):
    for kind in (1, 2, float("inf")):
        clipped(kind, foreach)


def test_clip_grad_norm_with_norms_1_2_and_inf():
    run(3, joined, "auto", (clipped_all, None), (clipped_all, False), (clipped_all, True))


def clip_by_value():
    pair = Pair(Net, optimizer=adam)
    pair.backward(token_loss)
    for model in (pair.plain, pair.ours):
        torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    pair.compare_gradients()
    pair.update()
    pair.compare_weights()


def test_clip_grad_value():
    run(2, joined, "auto", (clip_by_value,))


def test_the_same_by_gloo():
    run(3, joined, "gloo", (accumulate_all,), (mixed_accumulation,), (accumulation_within_a_unit,), (divided,),
        (zeroed,), (kept,), (replaced,), (changed_in_place,), (clipped_all, None), (clip_by_value,))
