"""Tiny models, a tokenizer and data sets in a folder, for programs that usually fetch theirs: python make_inputs.py
FOLDER"""
import json
import pathlib
import random
import sys

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ("red green blue small large old new bird tree river stone house sings stands runs falls sleeps under over "
         "near").split()
TEMPLATE = ("{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 12)))


def tokenizer_of(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    plain.train_from_iterator(texts,
                              trainers.BpeTrainer(vocab_size=512, special_tokens=special,
                                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    result = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>", pad_token="<|pad|>",
                                                  model_max_length=256,
                                                   model_input_names=["input_ids", "attention_mask"])
    result.chat_template = TEMPLATE
    return result


def write(file: pathlib.Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: pathlib.Path) -> None:
    draw = random.Random(0)
    texts = [sentence(draw) for _ in range(400)]
    tokenizer = tokenizer_of(texts)
    size = len(tokenizer) | 1  # odd: no number of ranks above one divides it
    tokens = dict(vocab_size=size, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                  bos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    made = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **tokens)),
        "tied": transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, **tokens, tie_word_embeddings=True)),
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=256, **tokens)),
        "reward": transformers.LlamaForSequenceClassification(transformers.LlamaConfig(
            **SHAPE, **tokens, num_labels=1)),
        "t5": transformers.T5ForConditionalGeneration(transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=tokenizer.pad_token_id,
            **tokens)),
        "bart": transformers.BartForConditionalGeneration(transformers.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None, max_position_embeddings=256, **tokens)),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = range(96)
    write(folder / "text" / "train.jsonl", [{"text": " ".join(sentence(draw) for _ in range(4))} for _ in rows])
    write(folder / "preference" / "train.jsonl", [
        {"prompt": [{"role": "user", "content": sentence(draw)}],
         "chosen": [{"role": "assistant", "content": sentence(draw)}],
         "rejected": [{"role": "assistant", "content": sentence(draw)}]} for _ in rows])
    write(folder / "prompts" / "train.jsonl", [{"prompt": [{"role": "user", "content": sentence(draw)}]} for _ in rows])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
