"""The keys of a DeepSpeed 0.19.8 configuration that sherd does not follow: which change nothing here, and why, and
which are refused."""
from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from . import distributed
from ._C import ConfigError

log = logging.getLogger("sherd")

FOLLOWED = {
    "zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "managed_gradient_accumulation", "optimizer", "scheduler", "fp16", "bf16", "bfloat16",
    "communication_data_type", "gradient_allreduce_op", "steps_per_print", "dataloader_drop_last", "data_types",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}  # these two allow what is allowed here anyway

# Reason -> keys that change nothing here, with DeepSpeed's own defaults, of which nothing need be said.
UNUSED: dict[str, dict[str, Any]] = {
    "gradients are summed in fp32 and divided once": {"prescale_gradients": False, "gradient_predivide_factor": 1.0},
    "sherd neither measures nor prints that": {
        "wall_clock_breakdown": False, "memory_breakdown": False, "dump_state": False, "flops_profiler": None,
        "comms_logger": None, "tensorboard": None, "csv_monitor": None, "wandb": None, "comet": None,
        "monitor_config": None, "timers": None, "log_level": None, "autotuning": None, "vocabulary_size": None},
    "it is about parts of DeepSpeed that are not here": {
        "disable_allgather": False, "disable_python_gc": False, "aio": None, "activation_checkpointing": None,
        "checkpoint": None, "pipeline": None, "datastates_ckpt": None, "use_data_before_expert_parallelism": False,
        "compile": None, "seq_parallel_communication_data_type": "fp32", "use_node_local_storage": False},
}

# zero_optimization: all that a block may hold, with its default.
STAGE_UNUSED: dict[str, dict[str, Any]] = {
    "these tune DeepSpeed's own buffers and streams": {
        "contiguous_gradients": True, "reduce_scatter": True, "reduce_bucket_size": 5e8,
        "use_multi_rank_bucket_allreduce": True, "allgather_partitions": True, "allgather_bucket_size": 5e8,
        "overlap_comm": None, "sub_group_size": 1e9, "prefetch_bucket_size": 5e7, "param_persistence_threshold": 1e5,
        "model_persistence_threshold": None, "max_live_parameters": 1e9, "max_reuse_distance": 1e9,
        "module_granularity_threshold": 0, "use_all_reduce_for_fetch_params": False, "allgather_sequential": False,
        "round_robin_gradients": False, "parameter_alignment": False, "memory_efficient_linear": True,
        "override_module_apply": True, "leaf_module": None, "zero_hpz_partition_size": 1,
        "cpu_offload_use_pin_memory": None, "pipeline_loading_checkpoint": False, "log_trace_cache_warnings": False,
        "enable_sanity_checks": False, "save_muon_momentum_buffer_in_memory": False},
    "nothing is quantized on its way between ranks": {
        "zero_quantized_weights": False, "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False},
    ("the norm is always computed, unused parameters are always allowed, "
     "and checkpoints always fit other numbers of ranks"): {
        "compute_grad_norm": True, "ignore_unused_parameters": True, "elastic_checkpoint": False,
        "load_from_fp32_weights": True},
}
STAGE_FOLLOWED = {"stage", "offload_param", "offload_optimizer", "cpu_offload", "cpu_offload_param",
                  "gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save", "legacy_stage1",
                  "zenflow"}
SECTIONS = {
    "fp16": {"enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
             "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads"},
    "bf16": {"enabled", "immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads",
             "bf16_optimizer_states"},
}

REMOVED = ("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue",
           "sparse_attention", "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop")
STAGE_REMOVED = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")


def given(value: Any) -> bool:
    return value not in (None, "auto")


def enabled(section: Any) -> bool:
    return isinstance(section, dict) and given(section.get("enabled")) and bool(section["enabled"])


def above_one(value: Any) -> bool:
    return given(value) and value > 1


# What would train otherwise than the configuration says: (is it so, what to try).
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "torch_autocast": (enabled, "bf16"),
    "data_efficiency": (enabled, "the program's own order of the data"),
    "hybrid_engine": (enabled, "to leave it out"),
    "tensor_parallel": (lambda section: above_one(section.get("autotp_size")),
                        "to leave it out: parameters are sharded, not layers"),
    "sequence_parallel_size": (above_one, "1"),
    "expert_parallel": (enabled, "to leave it out"),
    "weight_quantization": (bool, "to leave it out"),
}
STAGE_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "offload_param": (lambda section: (section or {}).get("device", "none") not in ("none", None),
                      "without offloading"),
    "offload_optimizer": (lambda section: (section or {}).get("device", "none") not in ("none", None),
                          "without offloading"),
    "cpu_offload": (bool, "without offloading"),
    "cpu_offload_param": (bool, "without offloading"),
    "zenflow": (given, "to leave it out"),
    "legacy_stage1": (bool, "to leave it out"),
}
SECTION_REFUSED = ("fp16_master_weights_and_grads", "bf16_master_weights_and_grads", "bf16_optimizer_states")


def check_keys(document: dict) -> None:
    """Raises ConfigError for what DeepSpeed refuses and for what sherd cannot follow;
    warns of all else that is not followed."""
    refuse("", document, REMOVED, REFUSED)
    stages = {unaliased(key): value for key, value in document["zero_optimization"].items()}
    refuse("zero_optimization.", stages, STAGE_REMOVED, STAGE_REFUSED)
    for section, known in SECTIONS.items():
        check_known(section, document.get(section) or {}, known)
        for key in SECTION_REFUSED:
            if (document.get(section) or {}).get(key) is True:
                raise ConfigError(f"[as_deepspeed] got {section}.{key}, "
                                  "expected none: masters and moments are fp32; try to leave it out")
    check_known("zero_optimization", stages, STAGE_FOLLOWED | all_of(STAGE_UNUSED))
    notes = unused("", document, UNUSED) + unused("zero_optimization.", stages, STAGE_UNUSED)
    notes += [nothing_reads(key, FOLLOWED | all_of(UNUSED))
              for key in sorted(document.keys() - FOLLOWED - all_of(UNUSED) - REFUSED.keys())]
    if notes:
        warn("[as_deepspeed] not followed: " + "; ".join(notes))


@functools.cache
def warn(text: str) -> None:
    """Once, on rank 0."""
    if distributed.world().rank == 0:
        log.warning(text)


def refuse(where: str, section: dict, removed: Iterable[str],
           refused: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    for key in removed:
        if key in section:
            raise ConfigError(f"[as_deepspeed] got {where}{key}, which DeepSpeed 0.19.8 has no longer, "
                              "expected none; try to leave it out")
    for key, (is_so, instead) in refused.items():
        if key in section and is_so(section[key]):
            raise ConfigError(f"[as_deepspeed] got {where}{key} {section[key]!r}, "
                              f"expected none: sherd has not got that; try {instead}")


def unaliased(key: str) -> str:
    """Most keys of stage 3 may have its name in front."""
    plain = key.removeprefix("stage3_")
    return plain if plain in all_of(STAGE_UNUSED) | STAGE_FOLLOWED else key


def all_of(table: dict[str, dict[str, Any]]) -> set[str]:
    return {key for keys in table.values() for key in keys}


def check_known(where: str, section: dict, known: set[str]) -> None:
    for key in section:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise ConfigError(f"[as_deepspeed] got {where}.{key}, expected a key of DeepSpeed 0.19.8's; try "
                              f"{repr(close[0]) if close else 'to leave it out'}")


def unused(where: str, section: dict, table: dict[str, dict[str, Any]]) -> list[str]:
    """A note for each reason that some keys are not followed for."""
    notes = []
    for reason, keys in table.items():
        found = [where + key for key, default in keys.items() if given(section.get(key)) and section[key] != default
                 and not off(section[key])]
        if found:
            notes.append(f"{', '.join(found)} ({reason})")
    return notes


def off(section: Any) -> bool:
    return isinstance(section, dict) and (not section or section.get("enabled") is False)


def nothing_reads(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return f"{key} (DeepSpeed does not know it either{f'; {close[0]!r} is meant?' if close else ''})"
