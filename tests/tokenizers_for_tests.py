"""Small tokenizers of the kinds in use, trained on a few sentences when a test asks for them."""

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "What did you think of the film?",
    "I loved it, the ending was a delight.",
    "I hated it, the ending was dull and far too long.",
    "How is the soup? The soup is warm, thick and well seasoned.",
    "You are a helpful assistant. You praise. You complain.",
    "Question: where is the station? Answer: it is behind the market.",
]

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# No system role, roles have to alternate, BOS written by the template, content trimmed.
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

# Skips system messages without a word.
TURNS = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


@cache
def _metaspace() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, fuse_unk=True))
    tokenizer.normalizer = normalizers.NFC()
    # Trained on words, so that no piece reaches over a blank; applied to full texts, as Llama's.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "[INST] [/INST] . , ? ! : \n 0123456789"], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer.to_str()


@cache
def _words() -> str:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken("[EOS]", special=True)])
    return tokenizer.to_str()


def _wrap(backend: str, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend), **special)


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Make a GPT-2 style BPE over bytes, ChatML with a default system message, pad = eos = turn
    end.
    """
    tokenizer = _wrap(
        _byte_level(), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Make a GPT-2 style BPE over bytes without a chat template; bos = eos = pad, none added by
    itself.
    """
    end = "<|endoftext|>"
    return _wrap(_byte_level(), bos_token=end, eos_token=end, pad_token=end)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Make a Sentencepiece style tokenizer; it adds BOS by itself while the template writes one as
    well.
    """
    tokenizer = _wrap(
        _metaspace(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = INST
    return tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Make one id a word between blanks, unknown words share one; no bos, no chat template."""
    return _wrap(_words(), eos_token="[EOS]", unk_token="[UNK]", pad_token="[EOS]")
