"""Trains model.py under one peer engine, as one of WORLD_SIZE ranks, on the rows that sherd would take.

    python train.py --save-init FOLDER --model small                 # initial weights, in Hugging Face form
    RANK=0 WORLD_SIZE=1 python train.py --engine single --model small --tokens FILE --metrics OUT.jsonl

The environment gives RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Rank 0 writes one line for each step into
--metrics: {"step", "loss", "step_s"}; the loss is the mean over the global batch. Threads are those of OMP_NUM_THREADS.
"""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist

import model as m

ENGINES = ("single", "ddp", "zero1-torch", "fsdp1", "fsdp2", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")
SEED = 0


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--engine", default="single", choices=ENGINES)
    p.add_argument("--model", default="small", choices=sorted(m.PRESETS))
    p.add_argument("--tokens", help="flat little-endian uint16 tokens, taken in order")
    p.add_argument("--rows", type=int, default=4, help="sequences of one step over all ranks")
    p.add_argument("--steps", type=int, default=7)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--compile", action="store_true", help="torch.compile each block; DeepSpeed: its engine.compile()")
    p.add_argument("--keep-unsharded", action="store_true", help="fsdp2: reshard_after_forward=False")
    p.add_argument("--chunked-loss", action="store_true", help="torch's linear_cross_entropy in place of whole logits")
    p.add_argument("--metrics", help="where rank 0 writes its lines")
    p.add_argument("--save-init", help="write the initial weights into this folder and stop")
    return p.parse_args()


def save_init(cfg, folder):
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    save_file(m.build(cfg, SEED).state_dict(), f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as f:
        json.dump(cfg.hugging_face(), f, indent=2)


def batches(args, cfg, rank, world):
    """Yields this rank's (tokens, targets) of each step; step s trains on rows [s*rows, (s+1)*rows) of the stream."""
    stream = torch.from_file(args.tokens, size=os.path.getsize(args.tokens) // 2, dtype=torch.uint16)
    share = args.rows // world
    for step in range(args.steps):
        starts = [(step * args.rows + rank * share + k) * cfg.context for k in range(share)]
        rows = torch.stack([stream[s : s + cfg.context + 1] for s in starts]).long()
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def adamw(args):
    return dict(lr=args.lr, weight_decay=args.weight_decay, betas=(0.9, 0.95), eps=1e-8)


def torch_engine(args, model, world):
    """The wrapped model, its optimizer and what clips its gradients."""
    parameters, optimizer, extra = model.parameters, torch.optim.AdamW, {"fused": True}
    net = model
    if args.engine in ("ddp", "zero1-torch"):
        net = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    if args.engine == "zero1-torch":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer, extra = ZeroRedundancyOptimizer, {"optimizer_class": torch.optim.AdamW, "fused": True}
    if args.engine == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh, reshard_after_forward=not args.keep_unsharded)
        fully_shard(model, mesh=mesh)
    if args.engine == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        net = FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({m.Block}), use_orig_params=True,
                                       device_id=torch.device("cpu"))
        parameters = net.parameters

    def clip():
        if args.engine == "fsdp1":
            net.clip_grad_norm_(args.clip)
        else:
            torch.nn.utils.clip_grad_norm_(parameters(), args.clip)

    opt = optimizer(parameters(), **extra, **adamw(args))

    def step(tokens, targets):
        loss = net(tokens, targets)
        loss.backward()
        value = loss.item()
        clip()
        opt.step()
        opt.zero_grad(set_to_none=True)
        return value

    return step


def deepspeed_engine(args, model, world):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise SystemExit("deepspeed is not installed in this environment; try benchmarks/peers/setup.sh "
                         "benchmarks/peers/requirements-deepspeed.txt") from None
    threads = torch.get_num_threads()
    conf = {
        "train_micro_batch_size_per_gpu": args.rows // world,
        "gradient_clipping": args.clip,
        "zero_optimization": {"stage": int(args.engine[-1]), "overlap_comm": True, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "AdamW", "params": {**adamw(args), "betas": [0.9, 0.95]}},
    }
    engine, *_ = deepspeed.initialize(model=model, config=conf, dist_init_required=True)
    torch.set_num_threads(threads)  # initialize() changes it
    if args.compile:
        engine.compile()

    def step(tokens, targets):
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
        return loss.item()

    return step


def main():
    args = arguments()
    cfg = m.PRESETS[args.model]
    if args.save_init:
        return save_init(cfg, args.save_init)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if args.rows % world:
        raise SystemExit(f"got {args.rows} rows on {world} ranks; the peers average over ranks: try a multiple")
    if (args.engine == "single") != (world == 1):
        raise SystemExit(f"got engine {args.engine} on {world} ranks; single takes one rank, the others more")
    deepspeed = args.engine.startswith("deepspeed")
    if world > 1 and not deepspeed:
        dist.init_process_group("gloo")
    model = m.build(cfg, SEED)
    model.chunked_loss = args.chunked_loss
    if args.compile and not deepspeed:
        for i, block in enumerate(model.model.layers):
            model.model.layers[i] = torch.compile(block)
    step = (deepspeed_engine if deepspeed else torch_engine)(args, model, world)

    lines = open(args.metrics, "w") if rank == 0 else None
    data = batches(args, cfg, rank, world)
    for number in range(1, args.steps + 1):
        start = time.perf_counter()
        loss = torch.tensor(step(*next(data)), dtype=torch.float64)
        seconds = time.perf_counter() - start
        if world > 1:
            dist.all_reduce(loss)
        if lines:
            print(json.dumps({"step": number, "loss": loss.item() / world, "step_s": seconds}), file=lines, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
