"""Every argument that works has a test that shows what it changes: the list of these tests."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from app.config.argument import Disposition
from app.config.arguments.table import ARGUMENTS
from tests.support.configs import ROOT

JOBS = "tests/integration/argument_jobs.py"  # the command lines that the first module looks at

# module -> argument -> the test that fails when the argument changes nothing
PROOFS = {
    "tests/integration/test_arguments_in_a_run.py": {
        "batch_size": "test_batch_size_and_gradient_accumulation_steps_cut_the_global_batch",
        "bf16": "test_bf16_is_the_dtype_of_the_network",
        "debug": "test_debug_shows_which_samples_were_in_a_batch",
        "epochs": "test_epochs_is_the_length_in_passes_over_the_data",
        "eval_batch_size": "test_eval_arguments_and_valid_data_decide_what_is_validated",
        "eval_interval": "test_eval_arguments_and_valid_data_decide_what_is_validated",
        "eval_iters": "test_eval_arguments_and_valid_data_decide_what_is_validated",
        "exit_interval": "test_exit_interval_saves_then_stops_and_the_next_start_goes_on",
        "experiment_name": "test_experiment_name_names_the_run_and_run_id_replaces_it",
        "force_train": "test_force_train_starts_although_a_table_is_missing",
        "gradient_accumulation_steps": (
            "test_batch_size_and_gradient_accumulation_steps_cut_the_global_batch"
        ),
        "grid_num_rows": "test_grid_num_rows_is_the_shape_of_the_grid",
        "keep_checkpoints": "test_save_interval_and_keep_checkpoints_leave_the_newest",
        "load": "test_load_gives_the_first_weights",
        "lora_from": "test_lora_from_gives_the_first_pairs_of_a_new_run",
        "log_image": "test_log_image_false_leaves_the_videos_out",
        "log_interval": "test_log_interval_spaces_the_log_lines",
        "no_load_rng": "test_no_load_rng_starts_the_generators_anew",
        "no_save_rng": "test_no_save_rng_leaves_the_generators_out",
        "only_log_video_latents": "test_only_log_video_latents_leaves_the_decoding_out",
        "profiling": "test_profiling_traces_the_steps_from_the_given_one_on",
        "register": "test_train_data_and_register_give_the_samples",
        "resume_dataloader": "test_resume_dataloader_goes_on_in_the_data_of_upstreams_order",
        "run_id": "test_experiment_name_names_the_run_and_run_id_replaces_it",
        "sample_order": "test_sample_order_is_upstreams",
        "save": "test_save_says_where_the_run_lies",
        "save_args": "test_save_args_writes_every_argument",
        "save_interval": "test_save_interval_and_keep_checkpoints_leave_the_newest",
        "seed": "test_seed_changes_samples_and_noise",
        "strict_eval": "test_strict_eval_counts_the_whole_set",
        "summary_dir": "test_summary_dir_takes_what_tensorboard_and_wandb_write",
        "train_data": "test_train_data_and_register_give_the_samples",
        "train_iters": "test_train_iters_is_the_length",
        "valid_data": "test_eval_arguments_and_valid_data_decide_what_is_validated",
        "wandb": "test_wandb_and_wandb_project_name_make_a_run_of_the_project",
        "wandb_project_name": "test_wandb_and_wandb_project_name_make_a_run_of_the_project",
    },
    "tests/integration/test_bucket_run.py": {
        "split": "test_a_part_of_the_training_data_validates",
    },
    "tests/integration/test_sample.py": {
        "force_inference": (
            "test_only_save_latents_leaves_the_videos_out_and_force_inference_takes_what_is_there"
        ),
        "image2video": "test_image_to_video_begins_with_its_image",
        "input_file": "test_prompts_of_a_file_become_videos_and_one_contact_sheet",
        "input_type": "test_prompts_of_a_file_become_videos_and_one_contact_sheet",
        "only_save_latents": (
            "test_only_save_latents_leaves_the_videos_out_and_force_inference_takes_what_is_there"
        ),
        "output_dir": "test_upstreams_sizes_are_those_of_the_videos",
        "sampling_fps": "test_prompts_of_a_file_become_videos_and_one_contact_sheet",
        "sampling_image_size": "test_upstreams_sizes_are_those_of_the_videos",
        "sampling_num_frames": "test_upstreams_sizes_are_those_of_the_videos",
    },
    "tests/unit/run/test_arguments_reach.py": {
        "activation_checkpointing": "test_activation_checkpointing_says_who_decides",
        "base": "test_base_names_layers_of_which_the_last_wins",
        "checkpoint_skip_layers": "test_checkpoint_skip_layers_are_not_recomputed",
        "deepspeed_config": "test_deepspeed_config_file_reaches_deepspeed",
        "distributed_backend": "test_distributed_backend_is_the_one_that_is_joined_with",
        "draws": "test_draws_are_keyed_by_position_or_upstreams_stream",
        "flag_types": "test_flag_types_are_honest_or_upstreams",
        "fp16": "test_fp16_and_bf16_are_what_deepspeed_gets",
        "frame_rule": "test_frame_rule_is_by_time_or_upstreams",
        "image_dropout": "test_image_dropout_is_decided_per_sample_or_micro_batch",
        "lr": "test_lr_is_the_first_rate_and_lr_decay_style_its_shape",
        "lr_curve": "test_lr_curve_is_upstreams_and_mode_decides_its_first_steps",
        "lr_decay_iters": "test_lr_decay_iters_is_the_length_of_the_decay",
        "lr_decay_ratio": "test_lr_decay_ratio_is_where_the_cosine_ends",
        "lr_decay_style": "test_lr_is_the_first_rate_and_lr_decay_style_its_shape",
        "mode": "test_lr_curve_is_upstreams_and_mode_decides_its_first_steps",
        "num_workers": "test_num_workers_read_at_the_same_time",
        "prefetch_factor": "test_prefetch_factor_is_how_far_each_of_num_workers_reads_ahead",
        "sdedit": "test_sdedit_reaches_the_sampler",
        "strata": "test_strata_divide_the_timesteps_of_a_batch_or_are_upstreams_of_a_rank",
        "train_data_weights": "test_train_data_weights_are_how_often_a_sample_of_each_comes",
        "warmup": "test_warmup_is_a_rise",
        "weight_decay": "test_weight_decay_is_that_of_the_optimizer",
        "zero_stage": "test_zero_stage_is_the_one_that_deepspeed_gets",
    },
    "tests/unit/run/test_shared_network.py": {
        "model_parallel_size": (
            "test_model_parallel_size_makes_ranks_that_share_a_network_share_their_samples"
        ),
    },
    "tests/unit/run/attempt/test_latents.py": {
        "latent_cache": "test_losses_from_the_cache_are_those_of_live_encoding",
    },
    "tests/unit/run/test_arguments.py": {
        "device": "test_contradiction_with_the_environment_is_a_mistake",
        "local_rank": "test_contradiction_with_the_environment_is_a_mistake",
    },
    "tests/unit/run/attempt/test_start.py": {
        "restart": "test_a_restart_begins_at_step_0_and_is_done_once",
        "resume_from": "test_resume_from_goes_back_and_is_done_once",
    },
    "tests/unit/cli/test_train.py": {
        "nproc_per_node": "test_nproc_per_node_is_the_number_of_processes_started",
    },
    "tests/unit/config/arguments/test_table.py": {
        "checkpoint_activations": (
            "test_activation_checkpointing_reaches_the_network_but_not_under_compat_sat"
        ),
        "checkpoint_num_layers": (
            "test_activation_checkpointing_reaches_the_network_but_not_under_compat_sat"
        ),
        "compat": "test_compat_sat_sets_every_key_and_each_can_be_set_alone",
        "rotary_positions": "test_rotary_positions_reach_the_network_and_compat_sat_sets_them",
        "position_rows": "test_position_rows_reach_the_network_and_compat_sat_sets_them",
    },
    "tests/unit/config/test_values.py": {
        "precedence": "test_precedence_has_a_key_of_its_own",
    },
    "tests/unit/config/test_precision.py": {
        "section_precision": "test_silent_section_means_fp32_under_compat_sat",
    },
}
EFFECTIVE = {
    name
    for name, argument in ARGUMENTS.items()
    if argument.disposition in (Disposition.WORKS, Disposition.MAPPED)
}
LISTED = [(name, module, test) for module, tests in PROOFS.items() for name, test in tests.items()]


@cache
def sources(module: str) -> dict[str, str]:
    """Test -> its source."""
    text = (ROOT / module).read_text()
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_argument_that_works_is_listed_once() -> None:
    names = [name for name, _, _ in LISTED]

    assert set(names) == EFFECTIVE
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "module", "test"), LISTED, ids=[name for name, _, _ in LISTED])
def test_the_proof_exists_and_sets_the_argument(name: str, module: str, test: str) -> None:
    text = sources(module).get(test)

    assert text is not None, f"{module} has no {test}"
    words = {name, "--" + name.replace("_", "-")}
    decorated = (ROOT / (JOBS if module.endswith("_in_a_run.py") else module)).read_text()
    assert any(word in text or word in decorated for word in words)
