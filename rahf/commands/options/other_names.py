"""Names that options have in other projects, and the options that they may mean here."""

from argparse import ArgumentParser
from difflib import get_close_matches

OTHER_OPTIONS = {
    "--model": ("--model_name_or_path", "--model_name", "--model_id", "--model_path", "--adapter"),
    "--base": ("--base_model", "--base_model_name_or_path", "--base_model_name"),
    "--max_new_tokens": ("--max_length", "--max_tokens", "--max_completion_length", "--num_tokens"),
    "--max_length": ("--max_seq_length", "--max_seq_len", "--cutoff_len", "--max_tokens"),
    "--length": ("--max_length", "--max_seq_length", "--seq_len", "--context_size", "--ctx_len"),
    "--tokens": ("--training_tokens", "--num_tokens", "--max_tokens"),
    "--k": ("--top_k", "--topk", "--l0"),
    "--latents": ("--dict_size", "--width", "--d_sae", "--num_latents", "--features"),
    "--layers": ("--layer", "--target_layers", "--hook_layer"),
    "--steered_layers": ("--layers", "--layer", "--target_layers"),
    "--learning_rate": ("--lr",),
    "--feature": ("--features", "--latent", "--latents", "--feature_index"),
    "--dictionary": ("--sae", "--sae_path", "--autoencoder"),
    "--directions": ("--steering_vector", "--control_vector", "--vector", "--direction"),
    "--alpha": ("--coeff", "--multiplier", "--strength", "--scale", "--steering_strength"),
    "--strength": ("--alpha", "--coeff", "--multiplier", "--scale"),
    "--prompts": ("--input", "--input_file", "--questions", "--data", "--dataset"),
    "--pairs": ("--dataset", "--dataset_name", "--data", "--data_path", "--train_file"),
    "--text": ("--texts", "--data", "--data_path", "--train_file", "--corpus"),
    "--dataset": ("--dataset_name", "--hf_dataset"),
    "--texts": ("--text", "--data", "--dataset", "--dataset_name"),
    "--output": ("--output_dir", "--out", "--output_path", "--save_dir", "--outfile"),
    "--limit": ("--num_samples", "--max_samples", "--num_prompts", "--n"),
    "--dtype": ("--torch_dtype", "--precision"),
    "--batch_size": ("--bs", "--eval_batch_size", "--per_device_eval_batch_size"),
    "--few_shot": ("--num_fewshot", "--num_few_shot"),
    "--judge": ("--judge_model", "--judge_name"),
    "--url": ("--base_url", "--api_base", "--api_url"),
    "--formats": ("--format", "--outtype"),
}
"""Options of plain commands with their names elsewhere. A command may have a name of the right side
as an option with another meaning; then it is that option.
"""


def hint(name: str, parser: ArgumentParser) -> str:
    """Return what was probably meant by an option that the command does not have; "": not known."""
    known = [option for option in parser._option_string_actions if option != "--help"]
    plain = "--" + name.removeprefix("--").replace("-", "_")
    meant = [option for option, others in OTHER_OPTIONS.items() if plain in others]
    near = [option for option in known if option.startswith(plain)]
    near = near if len(near) == 1 else get_close_matches(name, known, n=1)
    found = next((option for option in meant if option in known), *near or (None,))
    return f", did you mean {found}?" if found else ""
