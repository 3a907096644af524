"""8-bit moments beside bitsandbytes: the same codes, and optimizers that go on from each other's state."""
import pytest
import torch

import sherd

functional = pytest.importorskip("bitsandbytes.functional")
optimizers = pytest.importorskip("bitsandbytes.optim")

BLOCK = 256
VALUES = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def nearest(x, book):
    """bitsandbytes' rule where it has no kernel of its own (backends/default/ops.py, quantize_blockwise); that for CPUs
    takes a coarser way, and misses the nearest entry."""
    absmax = x.view(-1, BLOCK).abs().amax(1)
    scaled = (x.view(-1, BLOCK) * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1).flatten()
    return torch.bucketize(scaled, (book[:-1] + book[1:]) / 2, out_int32=True).to(torch.uint8), absmax


def book_of(signed):
    return functional.create_dynamic_map(signed=signed)


def stepped(parameter, gradients, **options):
    """AdamW8bit after these gradients."""
    optimizer = sherd.optim.AdamW8bit([parameter], **VALUES, **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e6])
def test_first_moments_get_bitsandbytes_codes(scale):
    torch.manual_seed(0)
    differing = 0
    for shape in [(16, 256), (5, 1024), (64, 64)]:
        parameter = torch.nn.Parameter(torch.zeros(shape))
        # With these betas the moments are the gradient and its square, exactly, whatever they are.
        gradient = torch.randn(shape) * scale * torch.exp(3 * torch.randn(shape))
        optimizer = sherd.optim.AdamW8bit([parameter], lr=0.0, betas=(0.0, 0.0))
        parameter.grad = gradient
        optimizer.step()
        state = optimizer.state[parameter]
        for code, absmax, values, signed in [("state1", "absmax1", gradient, True),
                                             ("state2", "absmax2", gradient * gradient, False)]:
            codes, scales = nearest(values.flatten(), book_of(signed))
            assert torch.equal(state[absmax].flatten(), scales)
            off = (state[code].flatten().int() - codes.int()).abs()
            assert off.max() <= 1
            differing += int(off.sum())
    assert differing <= 20  # of 30000: quotients as good as halfway between two entries


def bitsandbytes_nearest(monkeypatch):
    """Its optimizer with its own default rule in the place of its kernel for CPUs."""
    from bitsandbytes.backends.cpu import ops

    def quantize(values, book, absmax_out, codes_out, blocksize):
        codes, absmax = nearest(values.flatten(), book)
        codes_out.copy_(codes.view(codes_out.shape))
        absmax_out.copy_(absmax)
    monkeypatch.setattr(ops, "_quant_blockwise_fp32_direct", quantize)


def expect_within_one_code(ours, theirs):
    for code in ("state1", "state2"):
        off = (ours[code].flatten().int() - theirs[code].flatten().int()).abs()
        assert off.max() <= 1, code
        assert off.float().mean() < 0.02, code
    for scale in ("absmax1", "absmax2"):
        torch.testing.assert_close(ours[scale].flatten(), theirs[scale].flatten(), rtol=1e-2, atol=0)


def test_ten_steps_agree_with_bitsandbytes(monkeypatch):
    bitsandbytes_nearest(monkeypatch)
    torch.manual_seed(1)
    start = torch.randn(32, 512)
    gradients = [0.02 * torch.randn(32, 512) for _ in range(10)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    state = stepped(ours, gradients).state[ours]
    optimizer = optimizers.AdamW8bit([theirs], **VALUES)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    expect_within_one_code(state, optimizer.state[theirs])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * VALUES["lr"])


def test_bitsandbytes_goes_on_from_our_state_and_we_from_its(monkeypatch):
    bitsandbytes_nearest(monkeypatch)
    torch.manual_seed(2)
    start = torch.randn(16, 1024)
    gradients = [0.02 * torch.randn(16, 1024) for _ in range(6)]
    ours = torch.nn.Parameter(start.clone())
    mine = stepped(ours, gradients[:3])
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer = optimizers.AdamW8bit([theirs], **VALUES)
    theirs.grad = torch.zeros_like(theirs)
    optimizer.init_state(optimizer.param_groups[0], theirs, 0, 0)
    for name in ("state1", "state2"):
        optimizer.state[theirs][name].copy_(mine.state[ours][name])
    for name in ("absmax1", "absmax2"):
        optimizer.state[theirs][name].copy_(mine.state[ours][name].flatten())
    optimizer.state[theirs]["step"] = 3
    for gradient in gradients[3:5]:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        optimizer.step()
    expect_within_one_code(mine.state[ours], optimizer.state[theirs])
    for name in ("state1", "state2"):
        mine.state[ours][name] = optimizer.state[theirs][name].clone()
    for name in ("absmax1", "absmax2"):
        mine.state[ours][name] = optimizer.state[theirs][name].view(16, 4).clone()
    ours.grad, theirs.grad = gradients[5].clone(), gradients[5].clone()
    mine.step()
    optimizer.step()
    expect_within_one_code(mine.state[ours], optimizer.state[theirs])


def test_small_and_excluded_parameters_keep_fp32():
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))  # 4096 elements and 640
    named = list(layers.named_parameters())
    for parameter in layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    for exclude, with_codes in [((), {"0.weight"}), (("0.*",), set())]:
        optimizer = sherd.optim.AdamW8bit(named, exclude=exclude)
        optimizer.step()
        assert {name for name, p in named if "state1" in optimizer.state[p]} == with_codes
        assert all("exp_avg" in optimizer.state[p] for name, p in named if name not in with_codes)
