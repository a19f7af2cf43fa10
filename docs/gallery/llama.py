"""
A Llama, smaller, that writes with its cache
============================================

Half of the heads and of the units of the MLPs of a Llama go. It generates with its cache as before, and
``from_pretrained`` builds it again.
"""

# %%
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prunekit import Recipe, prune

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlamaConfig(vocab_size=200, num_key_value_heads=2, **sizes)
model = AutoModelForCausalLM.from_config(config).eval()  # your checkpoint
tokens = torch.randint(200, (32, 24))  # your calibration text

# %%
# ``|output x gradient|`` of the language model's own loss says what goes, half of each layer.
recipe = Recipe(
    score="feature_taylor",
    granularity={"name": "unit", "kinds": ["heads", "MLP width"]},
    allocation="per_layer",
    schedule={"name": "one_shot", "sparsity": 0.5},
)
pruned = prune(model, recipe, {"input_ids": tokens, "labels": tokens})
print(pruned.shrink({"input_ids": tokens[:2]}))

# %%
# The way with the cache is part of the proof. The files are the library's own.
prompt = {"input_ids": tokens[:1, :8], "attention_mask": torch.ones(1, 8), "pad_token_id": 0}
written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
model.save_pretrained("small-llama")
again = AutoModelForCausalLM.from_pretrained("small-llama")
print(again.config.num_attention_heads, "heads,", again.config.intermediate_size, "units in each MLP")
print(torch.equal(again.generate(**prompt, max_new_tokens=8, do_sample=False), written))
