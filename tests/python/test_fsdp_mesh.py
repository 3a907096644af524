"""Meshes of two axes (hybrid sharding), and which units are fetched ahead."""
import functools

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from fsdp_models import Net, Pair, close, joined, shard_layers, token_loss
from ranks import RanksFailed, run


def on_mesh(model, shape, **options):
    return shard_layers(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")), **options)


def hybrid(*shape):
    return functools.partial(on_mesh, shape=shape)


def trained(shape, **options):
    import sherd
    pair = Pair(functools.partial(Net, tied=True), functools.partial(on_mesh, shape=shape, **options))
    pair.train(token_loss)
    weight = pair.ours.layers[0].up.weight
    if sherd.world().transport.name == "host":
        assert weight.placements == (Shard(0),) and weight.device_mesh.size() == pair.size
    else:
        assert weight.placements == (Replicate(), Shard(0)) and tuple(weight.device_mesh.shape) == shape


def trained_on_host():
    trained((2, 2))
    trained((1, 4), strategy="hsdp")
    trained((4, 1))


@pytest.mark.parametrize("ranks, shapes", ((4, ((2, 2), (1, 4), (4, 1))), (3, ((3, 1), (1, 3)))))
def test_hybrid_sharding_trains_as_the_unsharded_model(ranks, shapes):
    run(ranks, joined, "gloo", *((trained, shape) for shape in shapes))


@pytest.mark.parametrize("strategy", ("zero3", "fsdp", "hsdp"))
def test_a_mesh_of_two_axes_makes_every_name_of_zero3_hybrid(strategy):
    run(2, joined, "gloo", (functools.partial(trained, strategy=strategy), (2, 1)))


def test_on_one_host_rows_are_spread_over_all_ranks():
    run(4, joined, "auto", (trained_on_host,))


def clipped():
    """sherd's norm and torch's, of gradients that two replicas have."""
    import sherd
    pair = Pair(Net, hybrid(2, 2))
    for step, clip in enumerate((sherd.clip_grad_norm_,
                                 lambda model, most: torch.nn.utils.clip_grad_norm_(model.parameters(), most))):
        pair.backward(token_loss, step)
        expected = torch.nn.utils.clip_grad_norm_(pair.plain.parameters(), 0.05)
        norm = clip(pair.ours, 0.05)
        close(norm.full_tensor() if hasattr(norm, "full_tensor") else norm, expected)
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def norms_agree():
    """The same bits whatever the mesh."""
    import sherd
    norms = []
    for shape in ((2, 2), (4, 1), (1, 4)):
        pair = Pair(Net, hybrid(*shape))
        pair.backward(token_loss)
        norms.append(sherd.optim.gradient_norm(pair.ours))
    assert norms[0] == norms[1] == norms[2]


def accumulated_along_the_shard_axis(shape, used_last=True):
    """Several micro-batches reduced along the shard axis alone, then one over all ranks."""
    pair = Pair(Net, hybrid(*shape))
    ours = pair.ours

    def loss_of(model, step, rank):
        return token_loss(model, step, rank) if used_last or step % 10 < 2 else model.embed.weight.square().sum()

    for step in range(2):
        for micro in range(3):
            ours.set_requires_all_reduce(micro == 2)
            pair.backward(loss_of, 10 * step + micro) if used_last or micro < 2 else embed_only(pair)
            kept = [p for p in ours.parameters() if p.grad is not None]
            assert len(kept) == (0 if micro < 2 and ours.head.weight.device_mesh.ndim == 2
                                 else len(list(ours.parameters())))
        pair.compare_gradients()
        pair.update()
    pair.compare_weights()


def embed_only(pair):
    """A loss of the embedding alone: what the other units have kept back counts all the same."""
    ids = torch.arange(5)
    pair.plain.embed(ids).sum().backward()
    hidden = []
    handle = pair.ours.embed.register_forward_hook(lambda module, args, output: hidden.append(output))
    pair.ours(ids[None, :])
    handle.remove()
    hidden[0].sum().backward()


def test_gradients_of_a_hybrid_model():
    """Norms count each row once; sums along the shard axis wait for the replicas."""
    run(4, joined, "gloo", (clipped,), (norms_agree,), (accumulated_along_the_shard_axis, (2, 2)),
        (accumulated_along_the_shard_axis, (2, 2), False))


def test_without_replicas_every_backward_reduces():
    run(2, joined, "auto", (accumulated_along_the_shard_axis, (2, 1)))


def state_of_hybrid(folder):
    """Full state, torch's distributed checkpoint, and whole parameters."""
    import torch.distributed.checkpoint as dcp

    import sherd
    pair = Pair(Net, hybrid(2, 2))
    pair.train(token_loss, 2)
    full = sherd.full_state_dict(pair.ours, all_ranks=True)
    for name, value in pair.plain.state_dict().items():
        close(full[name], value)
    dcp.save({"model": pair.ours.state_dict()}, checkpoint_id=folder)
    other = Pair(Net, shard_layers)  # on one axis
    state = {"model": other.ours.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    other.ours.load_state_dict(state["model"])
    again = sherd.full_state_dict(other.ours, all_ranks=True)
    assert all(torch.equal(again[name], full[name]) for name in full)
    with sherd.full_parameters(pair.ours, writeback=True):
        with torch.no_grad():
            pair.ours.head.weight.zero_()
    assert not sherd.full_state_dict(pair.ours, all_ranks=True)["head.weight"].any()


def test_state_of_a_hybrid_model(tmp_path):
    run(4, joined, "gloo", (state_of_hybrid, str(tmp_path / "state")))


def by_configuration():
    import sherd
    torch.manual_seed(0)
    model = Net()
    engine, *_ = sherd.initialize(model=model,
                                  config={"strategy": "hsdp", "mesh": {"replicate": 2}, "transport": "gloo",
                                          "units": ["Block"]})
    assert tuple(model.head.weight.device_mesh.shape) == (2, 2)
    for step in range(3):
        engine.backward(token_loss(engine, step, sherd.world().rank))
        engine.step()
    return sherd.full_state_dict(model, all_ranks=True)["head.weight"]


def test_initialize_makes_the_mesh_of_the_configuration():
    weights = run(4, by_configuration)
    assert all(torch.equal(weights[0], weight) for weight in weights)


def mistaken():
    import sherd

    def attempt(expected, **options):
        with pytest.raises(sherd.ConfigError, match=expected):
            sherd.fully_shard(Net(), **options)
    square = init_device_mesh("cpu", (2, 1))
    attempt("no mesh, expected one of two axes", strategy="hsdp")
    attempt("a mesh of 1 axis, expected one of two", strategy="hsdp", mesh=init_device_mesh("cpu", (2,)))
    attempt("two axes with strategy='zero2'", strategy="zero2", mesh=square)
    attempt("all 2 ranks in order", mesh=init_device_mesh("cpu", (1, 2, 1)))
    model = Net()
    sherd.fully_shard(model.layers[0], mesh=square)
    sherd.fully_shard(model)
    with pytest.raises(sherd.ConfigError, match="'layers.0' on mesh.* expected one mesh"):
        model(torch.zeros(1, 2, dtype=torch.long))


def test_meshes_that_do_not_fit_are_rejected():
    run(2, joined, "gloo", (mistaken,))


def wrong_product():
    import sherd
    sherd.initialize(model=Net(), config={"strategy": "hsdp", "mesh": {"replicate": 2}})


def test_a_mesh_of_another_size_than_the_world_is_rejected():
    with pytest.raises(RanksFailed, match="replicate=2 x shard=1, expected a product of 3"):
        run(3, wrong_product)


def prefetched(layers=4):
    """Lists of two, of one, of a unit that has run already, and back to what the model learns by itself."""
    def shard(model):
        shard_layers(model)
        blocks = list(model.layers)
        for i, block in enumerate(blocks):
            block.set_modules_to_forward_prefetch(blocks[i + 1:i + 3])
            block.set_modules_to_backward_prefetch(blocks[max(0, i - 2):i][::-1])
        model.set_modules_to_forward_prefetch(blocks[:1])

    pair = Pair(functools.partial(Net, layers=layers), shard)
    pair.train(token_loss)
    blocks = list(pair.ours.layers)
    blocks[2].set_modules_to_forward_prefetch([blocks[0]])
    blocks[1].set_modules_to_backward_prefetch([blocks[3], pair.ours])
    pair.train(token_loss, 2)
    for block in blocks:
        block.set_modules_to_forward_prefetch([])
        block.set_modules_to_backward_prefetch([])
    pair.train(token_loss, 2)


def prefetch_of_strangers():
    import sherd
    model, other = shard_layers(Net()), shard_layers(Net())
    for stranger in (other.layers[0], model.layers[0].up, torch.nn.Linear(1, 1)):
        with pytest.raises(sherd.ConfigError, match="no unit of this model"):
            model.set_modules_to_forward_prefetch([stranger])


@pytest.mark.parametrize("transport", ("auto", "gloo"))
def test_lists_of_units_to_fetch_ahead(transport):
    run(2, joined, transport, (prefetched,), (prefetch_of_strangers,))
