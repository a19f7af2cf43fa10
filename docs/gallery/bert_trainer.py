"""
A BERT in the Trainer of transformers
=====================================

Units of a BERT go while the library's own Trainer trains it. Nothing else of the training changes.
"""

# %%
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from prunekit import Recipe
from prunekit.integrations.transformers import TrainerPruning

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=1000, **sizes))  # your checkpoint
words = torch.randint(1000, (128, 16))
data = [{"input_ids": each, "labels": int(each[0] > 500)} for each in words]

# %%
# Half of the units inside the MLPs go, in four steps, one after every third step of the optimizer.
recipe = Recipe(
    granularity={"name": "unit", "kinds": ["MLP width"]},
    ignore=["*pooler*"],  # whose width the configuration cannot say
    allocation="per_layer",
    schedule={"name": "cubic", "sparsity": 0.5, "steps": 4},
)
pruning = TrainerPruning(recipe, every=3)
arguments = TrainingArguments("bert-runs", max_steps=24, report_to=[], disable_tqdm=True, use_cpu=True)
Trainer(model, arguments, train_dataset=data, callbacks=[pruning]).train()

# %%
# The result is what ``prune`` gives: it shrinks with its proof, and the library's own files hold the
# smaller network.
pruned = pruning.result()
print(pruned.shrink({"input_ids": words[:2]}))
model.save_pretrained("small-bert")
again = BertForSequenceClassification.from_pretrained("small-bert")
print(again.config.intermediate_size, "of 64 units in each MLP are left")
