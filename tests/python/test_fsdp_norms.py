"""Norms and clipping of gradients, torch's and sherd's, where ranks have no rows of some parameters."""
import math

import pytest
import torch
from torch import nn

from fsdp_models import Net, Pair, close, own_rows_of, shard_layers, token_loss, whole
from ranks import run

ORDERS = (2.0, 1, 3.0, "inf", math.inf, -math.inf, 0.5, -1.0)


class Scaled(Net):
    """With parameters of one row: some ranks have none of them."""

    def __init__(self):
        super().__init__()
        self.scale, self.one_row = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, 2, 3))

    def forward(self, ids):
        return super().forward(ids) * self.scale * self.one_row.mean()


def pair_with_gradients(strategy, unused=False):
    pair = Pair(Scaled, shard=lambda model: shard_layers(model, strategy=strategy))
    pair.backward(token_loss)
    return pair


def refill(pair, before):
    """Gradients as they were, in place."""
    with torch.no_grad():
        for p, q, values in zip(pair.plain.parameters(), pair.ours.parameters(), before, strict=True):
            p.grad.copy_(values)
            q.grad._local_tensor.copy_(own_rows_of(values, q))


def torchs(strategy, transport):
    import sherd
    sherd.init(transport=transport, timeout=20)
    pair = pair_with_gradients(strategy)
    before = [p.grad.clone() for p in pair.plain.parameters()]
    for order in (0.0, *ORDERS):
        for foreach in (None, True, False):
            refill(pair, before)
            options = {"norm_type": order, "foreach": foreach}
            norms = [torch.nn.utils.get_total_norm([p.grad for p in m.parameters()], **options)
                     for m in (pair.plain, pair.ours)]
            close(whole(norms[1]), norms[0], msg=lambda m: f"{options}: {m}")
            for model, norm in zip((pair.plain, pair.ours), norms):
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), whole(norm).item() / 2, norm, foreach=foreach)
            pair.compare_gradients()
            norms = [torch.nn.utils.clip_grad_norm_(m.parameters(), 0.01, error_if_nonfinite=True, **options)
                     for m in (pair.plain, pair.ours)]
            close(whole(norms[1]), norms[0], msg=lambda m: f"{options}: {m}")
            pair.compare_gradients()
    for foreach in (None, True, False):
        refill(pair, before)
        for model in (pair.plain, pair.ours):
            torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3, foreach=foreach)
        pair.compare_gradients()
    # What is often looked at: of one gradient, of what is computed from it, of a parameter.
    for p, q in zip(pair.plain.parameters(), pair.ours.parameters(), strict=True):
        looks = (lambda t: t.norm(math.inf), lambda t: t.max(), lambda t: t.min(), lambda t: torch.amax(t),
                 lambda t: torch.linalg.vector_norm(t, -math.inf), lambda t: t.norm())
        for look in looks:
            close(whole(look(q.grad)), look(p.grad))
            close(whole(look(q.grad.abs() * 2)), look(p.grad.abs() * 2))
            close(whole(look(q)), look(p).detach())
    # A norm that is no number is one on all ranks.
    if pair.rank == 0:
        pair.ours.scale.grad._local_tensor.fill_(math.nan)
    for order in (2.0, math.inf):
        with pytest.raises(RuntimeError, match="non-finite"):
            torch.nn.utils.clip_grad_norm_(pair.ours.parameters(), 1.0, norm_type=order, error_if_nonfinite=True)
        assert whole(torch.nn.utils.get_total_norm([p.grad for p in pair.ours.parameters()], norm_type=order)).isnan()


@pytest.mark.parametrize("ranks, strategy, transport", ((3, "zero3", "host"), (2, "ddp", "gloo")))
def test_torchs_clipping_with_empty_shards(ranks, strategy, transport):
    run(ranks, torchs, strategy, transport)


def ours(strategy, transport):
    import sherd
    sherd.init(transport=transport, timeout=20)
    pair = pair_with_gradients(strategy)
    before = [p.grad.clone() for p in pair.plain.parameters()]
    for order in ORDERS:
        refill(pair, before)
        wanted = torch.nn.utils.clip_grad_norm_(pair.plain.parameters(), 0.01, norm_type=order)
        close(sherd.clip_grad_norm_(pair.ours, 0.01, norm_type=order, error_if_nonfinite=True, foreach=True), wanted)
        pair.compare_gradients()
    for wrong in ("fro", None, math.nan, 0):
        with pytest.raises(sherd.ConfigError, match="norm_type"):
            sherd.clip_grad_norm_(pair.ours, 1.0, norm_type=wrong)
    for order in (1, 2.0, "inf"):
        pair.ours.scale.grad._local_tensor.fill_(math.inf)  # of one rank's row
        with pytest.raises(sherd.FaultError, match=r"'scale' in the root.*rank 0"):
            sherd.clip_grad_norm_(pair.ours, 1.0, order, error_if_nonfinite=True)
        assert sherd.clip_grad_norm_(pair.ours, 1.0, order).isinf()
    pair.plain.scale.grad.fill_(math.nan)
    pair.ours.scale.grad._local_tensor.fill_(math.nan)
    for order in (1, 2.0, "inf"):
        for model, clip in ((pair.plain.parameters(), torch.nn.utils.clip_grad_norm_),
                            (pair.ours, sherd.clip_grad_norm_)):
            assert clip(model, 1.0, order).isnan()
    assert all(whole(q.grad).isnan().all() and p.grad.isnan().all()
               for p, q in zip(pair.plain.parameters(), pair.ours.parameters()))


@pytest.mark.parametrize("strategy, transport",
                         (("zero3", "host"), ("zero2", "gloo"), ("zero1", "host"), ("ddp", "gloo")))
def test_our_clipping_with_norms_of_any_order(strategy, transport):
    run(3, ours, strategy, transport)


def norms_of_given_gradients(transport):
    import sherd
    sherd.init(transport=transport)
    torch.manual_seed(0)
    model = sherd.fully_shard(nn.Sequential(nn.Linear(301, 37), nn.Linear(37, 1), nn.LayerNorm(5)))
    sherd.full_state_dict(model)
    for parameter in model.parameters():
        whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        parameter.grad = sherd.rows.over_rows(sherd.rows.rows_like(whole, parameter).contiguous(), parameter)
    return [sherd.optim.gradient_norm(model, float(order)) for order in ORDERS]


def test_our_norms_have_the_same_bits_on_every_rank_and_for_any_number_of_them():
    alone = run(1, norms_of_given_gradients, "auto")[0]
    for ranks in (2, 3):
        for transport in ("host", "gloo"):
            assert run(ranks, norms_of_given_gradients, transport) == [alone] * ranks
