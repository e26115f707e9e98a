"""Text from a model: tokens after prompts, answers, files of responses, URIAL."""
