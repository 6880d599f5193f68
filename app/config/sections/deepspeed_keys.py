"""Keys that DeepSpeed 0.19.8 reads.

Source: deepspeed/runtime/constants.py, runtime/zero/config.py, runtime/precision_config.py.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOP_KEYS = _names(
    """
    activation_checkpointing aio amp bf16 checkpoint comms_logger communication_data_type compile
    csv_monitor data_types dataloader_drop_last disable_allgather disable_python_gc dump_state
    eigenvalue flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op
    gradient_clipping gradient_predivide_factor memory_breakdown optimizer prescale_gradients
    seq_parallel_communication_data_type sparse_gradients steps_per_print tensorboard timers
    torch_autocast train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """
)
ZERO_KEYS = _names(
    """
    stage3_allgather_sequential stage3_module_granularity_threshold
    stage3_use_all_reduce_for_fetch_params
    allgather_bucket_size allgather_partitions allgather_sequential compute_grad_norm
    contiguous_gradients cpu_offload cpu_offload_param cpu_offload_use_pin_memory
    elastic_checkpoint enable_sanity_checks gather_16bit_weights_on_model_save
    ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights
    log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear
    model_persistence_threshold module_granularity_threshold offload_optimizer offload_param
    override_module_apply overlap_comm param_persistence_threshold parameter_alignment
    pipeline_loading_checkpoint prefetch_bucket_size reduce_bucket_size reduce_scatter
    round_robin_gradients stage stage3_gather_16bit_weights_on_model_save
    stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters stage3_max_reuse_distance
    stage3_model_persistence_threshold stage3_param_persistence_threshold
    stage3_prefetch_bucket_size sub_group_size use_all_reduce_for_fetch_params
    use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
    """
)
PRECISION_KEYS = _names(
    """
    auto_cast bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow
    consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis immediate_grad_update
    initial_scale_power loss_scale loss_scale_window min_loss_scale
    """
)
