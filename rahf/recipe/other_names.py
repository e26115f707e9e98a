"""Names that are not keys of a recipe, and what to write in their place.

Keys that recipes once had, fields of earlier TrainingArguments, and names from other projects.
"""

from typing import Any, NamedTuple


class Removed(NamedTuple):
    """A key that recipes once had."""

    advice: str  # what to do instead
    inert: Any = None  # value at which it changed nothing, so that old results stay as they are


REMOVED = {
    "kl_temperature": Removed(
        "remove it: it is 2 for repbend, as published, and 1 for every other method", 1.0
    ),
    "prediction_alpha": Removed(
        "remove it; prediction_weight, beside which it was read, is gone too", 1.0
    ),
    "prediction_weight": Removed(
        "remove it, and set dpo_weight: 1 with pairs_together: true instead", 0.0
    ),
    "target_cache_gib": Removed(
        "remove it; a training that needs more than the disk has free is refused"
    ),
}

# Choices that options once had, with what to do instead.
REMOVED_CHOICES = {
    "positions: predicting": "set response_and_tail, which aligns the end of the prompt as well",
}

# Names from other projects' recipes, with what to write here.
OTHER_NAMES = {
    "accelerate_config": "remove it; it is an option of rahf align and rahf plan, and no key",
    "activation_checkpoint": "use activation_checkpointing",
    "adapter_name_or_path": "use model_name_or_path for the base; adapters are given as teachers",
    "attn": "use attn_implementation",
    "base_model": "use model_name_or_path",
    "batch_size": "use per_device_train_batch_size",
    "beta": "use dpo_beta for the DPO term, or alpha for the strength of the shift; the beta of a "
    "preferred teacher is teachers.beta",
    "checkpoint": "use resume_from_checkpoint",
    "config": "remove it; the recipe is the first argument, as in rahf validate RECIPE.yaml",
    "cutoff_len": "use max_length",
    "data": "use dataset_name, or datasets for a mixture",
    "data_path": "use dataset_name",
    "dataset": "use dataset_name",
    "dataset_path": "use dataset_name",
    "epochs": "use num_train_epochs",
    "eval_batch_size": "use per_device_eval_batch_size",
    "eval_dataset": "use dataset_test_split",
    "flash_attention": "use attn_implementation: flash_attention_2",
    "grad_accum": "use gradient_accumulation_steps",
    "grad_accumulation_steps": "use gradient_accumulation_steps",
    "gradient_accumulation": "use gradient_accumulation_steps",
    "gradient_checkpointing": "use activation_checkpointing",
    "layers": "use target_layers",
    "learning_rate_scheduler": "use lr_scheduler_type",
    "load_in_16bit": "use dtype: bfloat16",
    "lora_modules": "use lora_target_modules",
    "lora_modules_to_save": "remove it; only adapters are trained",
    "lora_rank": "use lora_r",
    "lr": "use learning_rate",
    "lr_scheduler": "use lr_scheduler_type",
    "max_completion_length": "use max_length, of prompt and response together",
    "max_grad": "use max_grad_norm",
    "max_new_tokens": "use evaluation.max_new_tokens",
    "max_seq_len": "use max_length",
    "max_seq_length": "use max_length",
    "max_tokens": "use max_length",
    "micro_batch_size": "use per_device_train_batch_size",
    "model": "use model_name_or_path",
    "model_id": "use model_name_or_path",
    "model_name": "use model_name_or_path",
    "num_epochs": "use num_train_epochs",
    "num_proc": "use dataset_num_proc",
    "num_processes": "remove it; it is an option of rahf align and rahf plan, and no key",
    "optimizer": "use optim",
    "output": "use output_dir",
    "output_path": "use output_dir",
    "precision": "use bf16: true or fp16: true for training, dtype for the weights",
    "r": "use lora_r",
    "ref_model": "remove it; the reference is the base, or the key reference names a teacher",
    "scheduler": "use lr_scheduler_type",
    "seq_length": "use max_length",
    "sequence_len": "use max_length",
    "steps": "use max_steps",
    "target_modules": "use lora_target_modules",
    "test_split": "use dataset_test_split",
    "tokenizer": "remove it; the tokenizer is that of model_name_or_path",
    "tokenizer_name": "remove it; the tokenizer is that of model_name_or_path",
    "torch_dtype": "use dtype",
    "train_batch_size": "use per_device_train_batch_size",
    "train_dataset": "use dataset_name",
    "train_file": "use dataset_name",
    "train_split": "use dataset_train_split",
    "truncation_mode": "remove it; a longer response loses its end",
    "use_flash_attention_2": "use attn_implementation: flash_attention_2",
    "use_lora": "remove it; an adapter is always what is trained",
    "use_peft": "remove it; an adapter is always what is trained",
    "val_size": "use test_share",
    "wandb_project": "set the environment variable WANDB_PROJECT",
    "warmup": "use warmup_steps: a number below 1 is the share of all steps",
}

REPLACED = {
    "adafactor": "use optim: adafactor",
    "dispatch_batches": "use accelerator_config: {dispatch_batches: ...}",
    "evaluation_strategy": "use eval_strategy",
    "fp16_backend": "remove it",
    "fp16_opt_level": "remove it",
    "fsdp_min_num_params": "remove it; rahf shards the base itself",
    "fsdp_transformer_layer_cls_to_wrap": "remove it; rahf shards the base itself",
    "group_by_length": "use train_sampling_strategy: group_by_length",
    "half_precision_backend": "remove it",
    "include_inputs_for_metrics": "use include_for_metrics: [inputs]",
    "include_tokens_per_second": "use include_num_input_tokens_seen",
    "jit_mode_eval": "remove it",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use use_cpu",
    "overwrite_output_dir": "remove it; a run resumes in the folder that it finds",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "push_to_hub_model_id": "use hub_model_id",
    "push_to_hub_organization": "use hub_model_id: organisation/name",
    "push_to_hub_token": "use hub_token",
    "save_safetensors": "remove it; weights are always saved as safetensors",
    "split_batches": "use accelerator_config: {split_batches: ...}",
    "torchdynamo": "use torch_compile_backend",
    "use_ipex": "remove it",
    "use_mps_device": "remove it; an MPS device is found by itself",
    "warmup_ratio": "use warmup_steps: a number below 1 is the share of all steps",
}
"""Fields that TrainingArguments had in earlier releases, with what takes their place. Read only for
names that the installed release does not have."""
