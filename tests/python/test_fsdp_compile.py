"""fully_shard with torch.compile: the compute is compiled, in as many graphs as without sharding, and once."""
import torch
from torch import nn

from fsdp_models import Block, Net, Pair, joined, shard_layers, token_loss
from ranks import run


def counts():
    from torch._dynamo.utils import counters
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
            "frames": counters["frames"]["total"], "ok": counters["frames"]["ok"]}


def settled(pair, steps=4):
    """Trains; the counts after the first step, which no later one may change."""
    first = None
    for step in range(steps):
        pair.step(token_loss, step)
        if first is None:
            first = counts()
    assert counts() == first, (first, counts())
    pair.compare_weights()
    return first


def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def unsharded_counts(compile_blocks):
    """Of the same model without sharding."""
    fresh()
    torch.manual_seed(0)
    model = Net()
    compile_blocks(model)
    for step in range(2):
        token_loss(model, step, 0).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        model.zero_grad()
    found = counts()
    fresh()
    return found


def compile_each(backend):
    def compile_blocks(model):
        for layer in model.layers:
            layer.compile(backend=backend, fullgraph=True)
    return compile_blocks


def before_sharding(backend, reshard):
    expected = unsharded_counts(compile_each(backend))
    pair = Pair(Net, lambda m: (compile_each(backend)(m), shard_layers(m, reshard_after_forward=reshard)))
    assert_like(settled(pair), expected)


def after_sharding(backend, reshard):
    expected = unsharded_counts(compile_each(backend))
    pair = Pair(Net, lambda m: (shard_layers(m, reshard_after_forward=reshard), compile_each(backend)(m)))
    assert_like(settled(pair), expected)


def assert_like(found, expected):
    assert expected["graphs"] > 0 and expected["breaks"] == 0 and found == expected, (found, expected)


def test_blocks_compiled_in_place_before_and_after_sharding():
    run(2, joined, "auto", (before_sharding, "aot_eager", True), (after_sharding, "aot_eager", False))


def by_inductor():
    before_sharding("inductor", True)


def test_blocks_compiled_by_inductor():
    run(2, joined, "auto", (by_inductor,), timeout=240)


def wrap(model):
    for i, layer in enumerate(model.layers):
        model.layers[i] = torch.compile(layer, backend="aot_eager", fullgraph=True)


def wrapped():
    """torch.compile(block) in the ModuleList, then fully_shard of what it returned: torchtitan's order."""
    import sherd
    expected = unsharded_counts(wrap)
    names = [n for n, _ in Net().named_parameters()]

    def make():
        torch.manual_seed(0)
        return Net()

    pair = Pair(make, lambda m: (wrap(m), shard_layers(m)))
    ours = dict(pair.ours.named_parameters())
    assert [n.replace("_orig_mod.", "") for n in ours] == names
    assert all(isinstance(layer, sherd.ShardedModule) for layer in pair.ours.layers)
    first = None
    for step in range(4):
        pair.backward(token_loss, step)
        pair.update()
        first = first or counts()
    assert counts() == first
    assert_like(first, expected)


def test_compiled_blocks_that_are_then_sharded():
    run(2, joined, "auto", (wrapped,))


def whole_model():
    fresh()
    pair = Pair(Net)
    compiled = torch.compile(pair.ours, backend="aot_eager")
    first = None
    for step in range(5):
        pair.backward(token_loss, step, compiled)
        pair.compare_gradients()
        pair.update()
        first = first or (counts()["graphs"], counts()["breaks"])
    assert first[0] > 0
    assert (counts()["graphs"], counts()["breaks"]) == first
    pair.compare_weights()


def test_a_sharded_model_compiled_as_a_whole():
    run(2, joined, "auto", (whole_model,))


def whole_after_a_forward():
    """The same where the model was run once before."""
    fresh()
    pair = Pair(Net)
    token_loss(pair.ours, 0, pair.rank).backward()
    pair.optimizers[1].zero_grad()
    compiled = torch.compile(pair.ours, backend="aot_eager")
    seen = []
    for step in range(4):
        token_loss(compiled, step, pair.rank).backward()
        (sum(pair.plain_losses(token_loss, step)) / pair.size).backward()
        pair.compare_gradients()
        pair.update()
        seen.append((counts()["graphs"], counts()["breaks"]))
    assert seen[0][0] > 0 and set(seen) == {seen[0]}
    pair.compare_weights()


def test_a_sharded_model_compiled_as_a_whole_after_its_first_forward():
    run(2, joined, "auto", (whole_after_a_forward,))


def evaluated():
    """Evaluation compiles once for itself; training afterwards compiles nothing."""
    fresh()
    pair = Pair(Net, lambda m: (compile_each("aot_eager")(m), shard_layers(m)))
    settled(pair, 2)
    seen = []
    for step in range(3):
        with torch.no_grad():
            loss = token_loss(pair.ours, 50, 0)
        torch.testing.assert_close(loss, token_loss(pair.plain, 50, 0).detach(), rtol=1e-4, atol=1e-5)
        pair.backward(token_loss, step)
        pair.update()
        seen.append(counts())
    assert seen[0] == seen[1] == seen[2]


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


def checkpointing_net():
    model = Net()
    model.layers = nn.ModuleList(Checkpointed() for _ in range(2))
    return model


def checkpointed():
    fresh()
    settled(Pair(checkpointing_net, lambda m: (compile_each("aot_eager")(m), shard_layers(m))))


def test_evaluation_of_compiled_blocks_and_checkpointing_inside_of_them():
    run(2, joined, "auto", (evaluated,), (checkpointed,))


def test_the_same_by_gloo():
    run(2, joined, "gloo", (before_sharding, "aot_eager", True), (evaluated,))
