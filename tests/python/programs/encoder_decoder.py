"""A program that trains small encoder-decoders, generates with them, calls their encoders directly, and saves them as
they are: encoder_decoder.py FOLDER ROWS. Nothing in it knows of sherd. Prints losses, tokens and sums of weights."""
import json
import pathlib
import sys

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

folder, rows = pathlib.Path(sys.argv[1]), int(sys.argv[2])
SIZES = dict(vocab_size=53, pad_token_id=0, eos_token_id=1, bos_token_id=1)
LAYERS = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
              encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=1, forced_eos_token_id=None, dropout=0.0)


def t5():
    return T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                               decoder_start_token_id=0, dropout_rate=0.0, **SIZES))


def bart():
    return BartForConditionalGeneration(BartConfig(max_position_embeddings=32, **LAYERS, **SIZES))


def whisper():
    return WhisperForConditionalGeneration(WhisperConfig(num_mel_bins=5, max_source_positions=8,
                                                         max_target_positions=32, suppress_tokens=[],
                                                         begin_suppress_tokens=[], **LAYERS, **SIZES))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, attn_pdrop=0, embd_pdrop=0,
                                      resid_pdrop=0, **SIZES))


accelerator = Accelerator()
results = {}
for make in (t5, bart, whisper, gpt2):
    torch.manual_seed(0)
    model = make()
    ids = torch.randint(2, 53, (16, 9), generator=torch.Generator().manual_seed(1))
    sounds = torch.randn(16, 5, 16, generator=torch.Generator().manual_seed(2))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, sounds), batch_size=rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    losses = []
    for inputs, sound in data:
        loss = model(input_features=sound,
                     labels=inputs).loss if make is whisper else model(input_ids=inputs, labels=inputs).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()[None]).mean().item())
    inner = accelerator.unwrap_model(model).eval()
    first = sounds[:2] if make is whisper else ids[:2]
    tokens = inner.generate(first, max_new_tokens=6, min_new_tokens=6, do_sample=False).tolist()
    encoded = 0.0
    if make is not gpt2:
        with torch.no_grad():
            encoded = inner.get_encoder()(first)[0].abs().sum().item()
    inner.save_pretrained(folder / make.__name__, is_main_process=accelerator.is_main_process,
                          save_function=accelerator.save)
    accelerator.wait_for_everyone()
    read = load_file(folder / make.__name__ / "model.safetensors")
    results[make.__name__] = {"losses": losses, "tokens": tokens, "encoded": encoded,
                              "read": {name: value.double().abs().sum().item() for name, value in read.items()}}
    accelerator.free_memory()
if accelerator.is_main_process:
    print("RESULT", json.dumps(results))
accelerator.end_training()
